"""The actions that show the state of runs, from files and SLURM, or cancel them: status, why, logs, cancel, doctor."""

import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from spectral_mup.cli.context import FAILED, OK, REFUSED, Context, format_counts, print_notes
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.doctor import LEGEND, WRONG
from spectral_mup.cluster.slurm.doctor import doctor as examine
from spectral_mup.cluster.slurm.run_states import STATES, State, reconcile, tail
from spectral_mup.cluster.slurm.snapshot import code_now
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.config.tune import LR
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import format_duration, pluralize, table

WATCH_SECONDS, FOLLOW_SECONDS = 10.0, 1.0
LISTED = ("running", "preempted", "failed", "paused", "lost", "cancelled")
SHOWN = 20  # runs of a state or cause that are listed one by one without run=ID
WHY_LINES, LOG_LINES = 20, 40  # of a traceback or log


def status(context: Context) -> int:
    """Print counts, one row per curve, one line per run that is running or failed; with watch=true until all have ended."""
    while True:
        text = _format_status(context)
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


def _format_status(context: Context) -> str:
    later, states = context.later_curves, context.matching()
    text = f"{context.config.sweep.name}: {format_counts(context.report)}"
    text += f"; {pluralize(later, 'more curve')} to follow" if later else ""
    return "\n".join([text, *_curves(states), *_runs(states, every=context.config.run is not None), *_next(context)])


def _curves(states: list[State]) -> list[str]:
    """Return one row per curve: how many of its runs are in which state."""
    names = [name for name in STATES if any(s.name == name for s in states)]
    counts, curves = Counter((s.run.curve, s.name) for s in states), dict.fromkeys(s.run.curve for s in states)
    about = {
        "rule": [c.rule for c in curves], "width": [f"{c.width}" for c in curves], "depth": [f"{c.depth}" for c in curves],
        "steps": [f"{c.steps or ''}" for c in curves], "batch size": [f"{c.batch_size or ''}" for c in curves],
        "tuned, held": [", ".join(filter(None, [c.tuned, c.held_text])) for c in curves],
    }  # fmt: skip
    usual = {"steps": "", "batch size": "", "tuned, held": LR}
    shown = {head: column for head, column in about.items() if {*column} != {usual.get(head)}}
    rows = [[*own, *(f"{counts[c, name] or ''}" for name in names)] for c, *own in zip(curves, *shown.values(), strict=True)]
    right = [i for i, head in enumerate([*shown, *names]) if head not in ("rule", "tuned, held")]
    return table(rows, header=[*shown, *names], right=right, indent=2)


def _runs(states: list[State], every: bool) -> list[str]:
    """Return lines about the runs that are running or failed, by state; with `every`, about all of them."""
    lines = []
    for name in STATES if every else LISTED:
        own = [f"  {_run_line(s)}" for s in states if s.name == name]
        shown = own if every else own[:SHOWN]
        lines += [f"{name}:"] * bool(own) + shown
        if len(shown) < len(own):
            lines.append(f"  … and {len(own) - len(shown)} more; run=ID shows one")
    return lines


def _next(context: Context) -> list[str]:
    """Return the commands that make sense now."""
    counts, lines = context.report.counts(), []
    jobs = [s.submission.code.partition(".")[0] for s in context.report.states.values() if s.live and s.submission]
    try:
        current = code_now()[0] if jobs else None
        if other := sum(code != current for code in jobs):
            lines.append(f"code≠: {pluralize(other, 'unfinished run')} on a snapshot that differs from the current code")
    except ConfigError as error:
        lines.append(f"code≠: {error}")
    if held := {s.job.partition("_")[0]: s.hold for s in context.report.states.values() if s.hold and s.job}:
        reasons = ", ".join(dict.fromkeys(held.values()))
        lines.append(f"Held in the queue ({reasons}); to let them start: scontrol release {','.join(held)}")
    if any(counts.get(name) for name in ("failed", "lost", "paused")):
        lines.append(f"To see why: {context.launch_command('why')}")
        lines.append(f"To run them again: {context.launch_command('retry')}")
    ended = any(s.name == "preempted" and not s.live for s in context.report.states.values())  # as where SLURM does not requeue
    if ended or counts.get("planned") or counts.get("cancelled"):
        do = "submit" if isinstance(context.config.cluster, SlurmConfig) else "train"
        lines.append(f"To {do} what is missing: {context.launch_command()}")
    if not context.plan.todo and not context.later_curves:
        lines.append(f"All done. Next: {context.analyze_command()}")
    return lines


def _run_line(state: State) -> str:
    """Return a line about a run: its state, cause and details."""
    progress = _progress(state.status) if state.name == "running" else ""
    tries = f"submitted {state.tries} times" if state.tries > 1 else ""
    parts = [f"{state.run.run_id[:8]}  {state.run}", progress, state.cause and state.cause.name, tries, state.detail]
    return ", ".join(part for part in parts if part)


def _progress(status: dict | None) -> str:
    """Return 'step 120/400, 18,400 tokens/s, 1.2 GB, about 3 min left'."""
    if not status:
        return "starting"
    s = status
    speed = (s["step"] - s.get("began", 0)) / max(1e-3, s["time"] - s["started"]) if "started" in s else 0
    left = f"about {format_duration((s['steps'] - s['step']) / speed)} left" if speed > 0 else ""
    return ", ".join(filter(None, [_reached(s), left]))


def _reached(status: dict) -> str:
    """Return how far a run came, how fast and in how much memory: 'step 120/400, 18,400 tokens/s, 1.2 GB'."""
    said = {"tokens_per_second": "{:,.0f} tokens/s", "examples_per_second": "{:,.0f} examples/s", "mfu": "MFU {:.0%}"}
    parts = [f"step {status['step']}/{status['steps']}"]
    parts += [text.format(status[name]) for name, text in said.items() if name in status]
    return ", ".join([*parts, *([f"{status['memory'] / 1e9:.1f} GB"] if "memory" in status else [])])


def why(context: Context) -> int:
    """Print the runs that failed or were interrupted, by cause: advice, the last lines, the file that has more."""
    print_notes(context.report)
    states = context.matching()
    print(f"{context.config.sweep.name}: {format_counts(context.report)}")
    groups: dict[tuple[str, str], list[State]] = {}
    for state in states:
        if state.cause is not None:
            # runs that raised different exceptions share a cause, but not what is to be done
            detail = state.detail if state.cause.name == "exception" else ""
            groups.setdefault((state.cause.name, detail), []).append(state)
    if not groups:
        print("Nothing went wrong." if context.config.run is None else _run_line(states[0]))
    for group in sorted(groups.values(), key=len, reverse=True):
        print("\n" + "\n".join(_explain(context, group)))
    return OK


def _explain(context: Context, group: list[State]) -> list[str]:
    """Return lines about one cause: what it means, the runs it stopped, the last lines of the first of them."""
    first, cause = group[0], group[0].cause
    assert cause is not None
    again = "restarted by the next launch" if cause.retryable else "not retried automatically"
    again = "resumes automatically" if first.live and cause.retryable else again
    lines = [f"{cause.name} ({pluralize(len(group), 'run')}, {again}): {cause.advice}"]
    for state in group[:SHOWN]:
        status = None if state.name == "running" else RunFolder(context.runs, state.run.run_id).status()
        lines.append(f"  {_run_line(state)}{f', reached {_reached(status)}' if status else ''}")
    if len(group) > SHOWN:
        lines.append(f"  … and {len(group) - SHOWN} more")
    return lines + [f"    {line}" for line in _last_lines(context, first)]


def _last_lines(context: Context, state: State) -> list[str]:
    """Return the end of a run's traceback, or of its task's log, under the file's name."""
    folder = RunFolder(context.runs, state.run.run_id)
    if error := folder.error():
        return [f"{folder.path}/error.txt:", *error.splitlines()[-WHY_LINES:]]
    if state.submission is None or not state.job:
        return []
    lines, files = tail(state.submission, state.index).splitlines()[-WHY_LINES:], state.submission.log_files(state.index)
    name = files[0] if files else f"{state.submission.log_folder}/"
    return [f"{name}:", *lines] if lines else [f"{name}: empty or missing"]


def logs(context: Context) -> int:
    """Print the end of a task's log: of run=ID, else of the first running run, else of a failed one; watch=true follows it."""
    print_notes(context.report)
    states = [s for s in context.matching() if s.submission and s.submission.log_files(s.index)]
    if not states:
        which = "run" if context.config.run else "sweep"
        raise ConfigError(f"no logs yet for this {which}; {format_counts(context.report)}")
    state = min(states, key=lambda s: {"running": 0, "failed": 1}.get(s.name, 2))
    assert state.submission is not None
    print(f"{_run_line(state)}, {state.name}\n{state.submission.log_files(state.index)[0]}:")
    print("\n".join(tail(state.submission, state.index).splitlines()[-LOG_LINES:]), flush=True)
    if context.config.watch:
        _follow(context, state)
    return OK


def _follow(context: Context, state: State) -> None:
    """Print what is added to a task's log until SLURM no longer has the task."""
    assert state.submission is not None
    sizes = {p: p.stat().st_size for p in state.submission.log_files(state.index)}
    live, asked = state.live, time.monotonic()
    while True:
        for path in state.submission.log_files(state.index):
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


def cancel(context: Context) -> int:
    """Show the jobs of this sweep's runs, or of run=ID, ask, and cancel them: only ids that a launch recorded."""
    print_notes(context.report)
    chosen = [s for s in context.matching() if s.live and s.name != "cancelled" and s.job]
    if not chosen:
        print(f"{format_counts(context.report)}\nNothing to cancel.")
        return OK
    ids = {s.run.run_id for s in chosen}
    whole, shared = _tasks_of(context, chosen, ids)
    for state in chosen:
        print(f"  {state.job}  {state.run}: {state.name}")
    if whole:
        print(f"These tasks end at once: {', '.join(whole)}")
    if shared:
        print(f"These continue with their other runs and skip the cancelled ones not yet started: {', '.join(shared)}")
    if not context.confirm(f"Cancel {pluralize(len(chosen), 'run')}?"):
        return REFUSED
    for submission in dict.fromkeys(s.submission for s in chosen if s.submission):
        submission.cancel(ids & {entry["run_id"] for pack in submission.packs for entry in pack})
    try:
        slurm.scancel(whole)
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"no answer from SLURM ({error}); recorded as cancelled, give the command again") from None
    print(f"Cancelled {pluralize(len(chosen), 'run')}.")
    return OK


def _tasks_of(context: Context, chosen: list[State], ids: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the ids of the tasks that have none but these runs left, and of those that also have others."""
    whole, shared = [], []
    for submission, index in dict.fromkeys((s.submission, s.index) for s in chosen if s.submission):
        others = {entry["run_id"] for entry in submission.packs[index]} - {*ids} - submission.cancelled
        left = any(RunFolder(context.runs, run_id).result() is None for run_id in others)
        (shared if left else whole).append(f"{submission.job}_{index}")
    return whole, shared


def doctor(context: Context) -> int:
    """Print what this machine and its SLURM offer and what to fix; FAILED if something must be fixed."""
    findings = examine(context.config)
    print("\n".join(table([[f"{f.mark} {f.subject}", f.message] for f in findings])))
    print(LEGEND)
    return FAILED if any(f.mark == WRONG for f in findings) else OK
