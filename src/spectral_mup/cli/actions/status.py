"""action=status: where every run of a sweep is. Reads files and SLURM; starts nothing."""

from __future__ import annotations

import sys
import time

from spectral_mup.cli.actions._slurm import format_counts, matching, print_notes
from spectral_mup.cli.actions._states import SHOWN, WATCH_SECONDS, run_line
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.run_states import NAMES, State
from spectral_mup.cluster.slurm.snapshot import code_now
from spectral_mup.config.schema import SlurmConfig
from spectral_mup.util.text import pluralize, table

LISTED = ("running", "preempted", "failed", "paused", "lost", "cancelled")


def status(context: Context) -> int:
    """Counts of the sweep, a row a curve, a line a run that runs or failed; with watch=true until all have ended."""
    while True:
        text = format_status(context)
        if context.config.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print_notes(context.report)
        print(text, flush=True)
        unfinished = any(s.name in ("running", "queued", "preempted") for s in context.report.states.values())
        if not context.config.watch or not unfinished:
            return OK
        time.sleep(WATCH_SECONDS)
        context.refresh()
        if not sys.stdout.isatty():
            print()


def format_status(context: Context) -> str:
    later, states = context.later_curves, matching(context)
    lines = [f"{context.config.sweep.name}: {format_counts(context.report)}"]
    lines[0] += f"; {pluralize(later, 'more curve')} to follow" if later else ""
    return "\n".join(lines + _curves(states) + _runs(states, every=context.config.run is not None) + _next(context))


def _curves(states: list[State]) -> list[str]:
    """One row per curve: how many of its runs are in which state."""
    names = [name for name in NAMES if any(s.name == name for s in states)]
    rows = []
    for curve in dict.fromkeys(s.run.curve for s in states):
        own = [s.name for s in states if s.run.curve == curve]
        rows.append([curve.rule, str(curve.width), str(curve.depth), *(str(own.count(name) or "") for name in names)])
    return table(rows, header=["rule", "width", "depth", *names], right=range(1, 3 + len(names)), indent=2)


def _runs(states: list[State], every: bool) -> list[str]:
    """The runs that are running or failed, by state; `every`: all of them."""
    lines = []
    for name in NAMES if every else LISTED:
        own = [s for s in states if s.name == name]
        shown = own if every else own[:SHOWN]
        lines += [f"{name}:"] * bool(own) + [f"  {run_line(s)}" for s in shown]
        if len(shown) < len(own):
            lines.append(f"  … and {len(own) - len(shown)} more; run=ID shows one")
    return lines


def _next(context: Context) -> list[str]:
    """The commands that make sense now."""
    counts, lines = context.report.counts(), []
    jobs = [s.submission.code for s in context.report.states.values() if s.live and s.submission]
    current = code_now()[0] if jobs else None
    if other := sum(code != current for code in jobs):
        lines.append(f"code≠: {pluralize(other, 'unfinished run')} on a snapshot that differs from the current code")
    if any(counts.get(name) for name in ("failed", "lost", "paused")):
        lines.append(f"To see why: {context.launch_command('why')}")
        lines.append(f"To run them again: {context.launch_command('retry')}")
    if counts.get("planned") or counts.get("cancelled"):
        do = "submit" if isinstance(context.config.cluster, SlurmConfig) else "train"
        lines.append(f"To {do} what is missing: {context.launch_command()}")
    if not context.plan.todo and not context.later_curves:
        lines.append(f"All done. Next: {context.analyze_command()}")
    return lines
