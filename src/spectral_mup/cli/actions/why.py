"""action=why: what went wrong, by cause."""

from __future__ import annotations

from spectral_mup.cli.actions._slurm import format_counts, matching, print_notes
from spectral_mup.cli.actions._states import SHOWN, log_name, run_line
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.run_states import State, tail
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize

LAST_LINES = 20


def why(context: Context) -> int:
    """Print the runs that failed or were interrupted, by cause: advice, the last lines, where to read on."""
    print_notes(context.report)
    states = matching(context)
    print(f"{context.config.sweep.name}: {format_counts(context.report)}")
    groups: dict[tuple[str, str], list[State]] = {}
    for state in states:
        if state.cause is not None:
            # runs that raised different exceptions share a cause, but not what is to be done
            detail = state.detail if state.cause.name == "exception" else ""
            groups.setdefault((state.cause.name, detail), []).append(state)
    if not groups:
        print("Nothing went wrong." if context.config.run is None else run_line(states[0]))
    for group in sorted(groups.values(), key=len, reverse=True):
        print("\n" + "\n".join(_explain(context, group)))
    return OK


def _explain(context: Context, group: list[State]) -> list[str]:
    """One cause: what it means, the runs it stopped, the last lines of the first of them."""
    first, cause = group[0], group[0].cause
    assert cause is not None
    again = "restarted by the next launch" if cause.retryable else "not retried automatically"
    again = "resumes automatically" if first.live and cause.retryable else again
    lines = [f"{cause.name} ({pluralize(len(group), 'run')}, {again}): {cause.advice}"]
    lines += [f"  {run_line(state)}" for state in group[:SHOWN]]
    if len(group) > SHOWN:
        lines.append(f"  … and {len(group) - SHOWN} more")
    return lines + [f"    {line}" for line in last_lines(context, first)]


def last_lines(context: Context, state: State) -> list[str]:
    """The end of a run's traceback, or of its task's log, under the file's name."""
    folder = RunFolder(context.runs, state.run.run_id)
    error = folder.error()
    if error:
        return [f"{folder.path}/error.txt:", *error.splitlines()[-LAST_LINES:]]
    if state.submission is None or not state.job:
        return []
    lines = tail(state.submission, state.index).splitlines()[-LAST_LINES:]
    return [f"{log_name(state)}:", *lines] if lines else [f"{log_name(state)}: empty or missing"]
