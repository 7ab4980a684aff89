"""action=retry: run again what failed."""

from __future__ import annotations

from spectral_mup.cli.actions._local import train_here
from spectral_mup.cli.actions._slurm import format_counts, matching, print_notes, submit_runs
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.failure_causes import CAUSES
from spectral_mup.config.schema import SlurmConfig
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_folder import RunFolder


def retry(context: Context) -> int:
    """Run failed, lost, held back and cancelled runs again; with cause=NAME or run=ID only those."""
    cause = context.config.cause
    if cause is not None and cause not in CAUSES:
        raise ConfigError(f"cause={cause}: must be one of {', '.join(CAUSES)}; quote it, as in 'cause=out of memory'")
    states = matching(context)
    chosen = {
        s.run.run_id
        for s in states
        if not s.live and s.name in ("failed", "lost", "paused", "cancelled", "preempted")
        and cause in (None, s.cause and s.cause.name)
    }  # fmt: skip
    planned = {s.run.run_id for s in states if s.name == "planned" and cause is None}
    if not chosen:
        print_notes(context.report)
        print(f"{format_counts(context.report)}\nNothing to retry{f' with cause={cause}' if cause else ''}.")
        return OK
    if isinstance(context.config.cluster, SlurmConfig):
        return submit_runs(context, context.report, lambda s: s.run.run_id in chosen | planned, chosen)
    for run_id in chosen:
        RunFolder(context.runs, run_id).archive_error()
    return train_here(context)
