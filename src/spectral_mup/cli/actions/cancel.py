"""action=cancel: end the jobs of a sweep's runs."""

from __future__ import annotations

from collections.abc import Collection

from spectral_mup.cli.actions._slurm import confirmed, format_counts, matching, print_notes
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK, REFUSED
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.run_states import State
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize


def cancel(context: Context) -> int:
    """Cancel the jobs of this sweep's runs, or of run=ID: only ids that we recorded, shown first."""
    print_notes(context.report)
    chosen = [s for s in matching(context) if s.live and s.name != "cancelled" and s.submission and s.job]
    if not chosen:
        print(f"{format_counts(context.report)}\nNothing to cancel.")
        return OK
    ids = {s.run.run_id for s in chosen}
    whole, shared = tasks_of(context, chosen, ids)
    for state in chosen:
        print(f"  {state.job}  {state.run}: {state.name}")
    if whole:
        print(f"These tasks end at once: {', '.join(whole)}")
    if shared:
        print(f"These continue with their other runs and skip the cancelled ones not yet started: {', '.join(shared)}")
    if not confirmed(context.config, f"Cancel {pluralize(len(chosen), 'run')}?"):
        return REFUSED
    for submission in dict.fromkeys(s.submission for s in chosen):
        assert submission is not None
        submission.cancel(ids & {e["run_id"] for pack in submission.packs for e in pack})
    try:
        slurm.scancel(whole)
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"no answer from SLURM ({error}); recorded as cancelled, give the command again") from None
    print(f"Cancelled {pluralize(len(chosen), 'run')}.")
    return OK


def tasks_of(context: Context, chosen: list[State], ids: Collection[str]) -> tuple[list[str], list[str]]:
    """Ids of the tasks that have none but these runs left, and of those that also have others."""
    whole, shared = [], []
    for submission, index in dict.fromkeys((s.submission, s.index) for s in chosen):
        assert submission is not None
        others = {entry["run_id"] for entry in submission.packs[index]} - {*ids} - submission.cancelled
        left = [run_id for run_id in others if RunFolder(context.runs, run_id).result() is None]
        (shared if left else whole).append(f"{submission.job}_{index}")
    return whole, shared
