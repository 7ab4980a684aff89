"""action=logs: what a task printed."""

from __future__ import annotations

import time
from pathlib import Path

from spectral_mup.cli.actions._slurm import format_counts, matching, print_notes
from spectral_mup.cli.actions._states import WATCH_SECONDS, log_name, run_line
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.run_states import State, reconcile, tail
from spectral_mup.errors import ConfigError

FOLLOW_SECONDS = 1.0
LAST_LINES = 40


def logs(context: Context) -> int:
    """Print the end of a task's log: of run=ID, else of the first running run, else of a failed one; watch=true follows it."""
    print_notes(context.report)
    states = [s for s in matching(context) if s.submission and s.submission.log(s.index)]
    if not states:
        which = "run" if context.config.run else "sweep"
        raise ConfigError(f"no logs yet for this {which}; {format_counts(context.report)}")
    state = min(states, key=lambda s: ["running", "failed"].index(s.name) if s.name in ("running", "failed") else 2)
    assert state.submission is not None
    print(f"{run_line(state)}, {state.name}\n{log_name(state)}:")
    print("\n".join(tail(state.submission, state.index).splitlines()[-LAST_LINES:]), flush=True)
    if context.config.watch:
        _follow(context, state)
    return OK


def _follow(context: Context, state: State) -> None:
    """Print what is added to a task's log until SLURM no longer has the task."""
    assert state.submission is not None
    sizes = {p: p.stat().st_size for p in state.submission.log(state.index)}
    asked = time.monotonic()
    live = state.live
    while True:
        for path in state.submission.log(state.index):
            with path.open(errors="replace") as f:
                f.seek(sizes.get(path, 0))
                print(f.read(), end="", flush=True)
                sizes[path] = f.tell()
        if not live:
            return
        if time.monotonic() - asked > WATCH_SECONDS:
            report = reconcile(context.runs, Path(context.config.paths.jobs), [state.run])
            live, asked = report.states[state.run.run_id].live, time.monotonic()
        time.sleep(FOLLOW_SECONDS)
