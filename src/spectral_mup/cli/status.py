"""What launch.py tells of a sweep that runs somewhere: status, why, logs, doctor. Reads files and SLURM; starts nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from spectral_mup.cli.main import FAILED, OK, command
from spectral_mup.cli.submit import format_counts, matching, print_notes
from spectral_mup.cluster.slurm.doctor import LEGEND, WRONG
from spectral_mup.cluster.slurm.doctor import doctor as examine
from spectral_mup.cluster.slurm.run_states import NAMES, Report, State, reconcile, tail
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Plan, Sweep, result_reader
from spectral_mup.util.text import format_duration, pluralize

WATCH_SECONDS = 10.0
FOLLOW_SECONDS = 1.0
SHOWN = 20  # points of a kind that are listed one by one without run=ID
LAST_LINES = 20
LISTED = ("running", "preempted", "failed", "paused", "lost", "cancelled")


def status(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """Counts of the sweep, a row a curve, a line a run that runs or went wrong; with watch=true until all have ended."""
    runs = Path(config.paths.runs)
    while True:
        report = reconcile(runs, Path(config.paths.jobs), plan.runs)
        text = status_text(config, sweep, plan, report, argv)
        if config.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print_notes(report)
        print(text, flush=True)
        if not config.watch or not any(s.name in ("running", "queued", "preempted") for s in report.states.values()):
            return OK
        time.sleep(WATCH_SECONDS)
        plan = sweep.plan(result_reader(runs))
        if not sys.stdout.isatty():
            print()


def status_text(config: Config, sweep: Sweep, plan: Plan, report: Report, argv: list[str]) -> str:
    """What action=status prints."""
    later = sweep.remaining_curves(plan)
    lines = [f"{config.sweep.name}: {format_counts(report)}" + (f"; {later} more curves follow" if later else "")]
    chosen = matching(config, report)
    names = [n for n in NAMES if any(s.name == n for s in chosen)]
    width = max((len(c.rule) for c in (s.run.curve for s in chosen)), default=4) + 2
    lines.append(f"  {'rule':{width}}{'width':>7}{'depth':>7}" + "".join(f"{n:>11}" for n in names))
    for curve in dict.fromkeys(s.run.curve for s in chosen):
        mine = [s.name for s in chosen if s.run.curve == curve]
        counts = "".join(f"{mine.count(n) or '':>11}" for n in names)
        lines.append(f"  {curve.rule:{width}}{curve.width:>7}{curve.depth:>7}{counts}")
    every = config.run is not None
    for name in NAMES if every else LISTED:
        mine = [s for s in chosen if s.name == name]
        if mine:
            lines.append(f"{name}:")
            lines += [f"  {point_line(s)}" for s in (mine if every else mine[:SHOWN])]
            if len(mine) > SHOWN and not every:
                lines.append(f"  … and {len(mine) - SHOWN} more; run=ID shows one")
    lines += _next(config, report, plan, later, argv)
    return "\n".join(lines)


def point_line(state: State) -> str:
    """A run, where it is and why."""
    parts = [f"{state.run.run_id[:8]}  {state.run}"]
    if state.name == "running":
        parts.append(_steps(state))
    if state.cause:
        parts.append(state.cause.name)
    if state.tries > 1:
        parts.append(f"given to {state.tries} jobs")
    if state.detail:
        parts.append(state.detail)
    return ", ".join(parts)


def _steps(state: State) -> str:
    """'step 120/400, about 3 min left'."""
    s = state.status
    if not s:
        return "begins"
    text = f"step {s['step']}/{s['steps']}"
    speed = (s["step"] - s.get("began", 0)) / max(1e-3, s["time"] - s["started"]) if "started" in s else 0
    return text + (f", about {format_duration((s['steps'] - s['step']) / speed)} left" if speed > 0 else "")


def _next(config: Config, report: Report, plan: Plan, later: int, argv: list[str]) -> list[str]:
    """The command that makes sense now."""
    names = report.counts()
    lines = []
    old = _other_code(config, report)
    if old:
        lines.append(f"code≠: {pluralize(old, 'unfinished point')} on a snapshot that differs from the code here")
    if any(names.get(n) for n in ("failed", "lost", "paused")):
        lines.append(f"Why: {command('launch.py', argv, 'why')}; to begin them again: {command('launch.py', argv, 'retry')}")
    if names.get("planned") or names.get("cancelled"):
        lines.append(f"To submit what is missing: {command('launch.py', argv)}")
    if not plan.todo and not later:
        lines.append(f"All done. Next: {command('analyze.py', argv)}")
    return lines


def _other_code(config: Config, report: Report) -> int:
    mine = [s.submission.code for s in report.states.values() if s.live and s.submission]
    if not mine:
        return 0
    from spectral_mup.cluster.slurm.snapshot import code_now

    now, _ = code_now()
    return sum(code != now for code in mine)


def why(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """runs that have no result and will not get one by themselves, by cause: advice, the last lines, where to read on."""
    report = reconcile(Path(config.paths.runs), Path(config.paths.jobs), plan.runs)
    print_notes(report)
    chosen = [s for s in matching(config, report) if s.cause is not None]
    print(f"{config.sweep.name}: {format_counts(report)}")
    if not chosen:
        print("Nothing went wrong." if config.run is None else point_line(matching(config, report)[0]))
        return OK
    groups: dict[tuple[str, str], list[State]] = {}
    for state in chosen:
        assert state.cause is not None
        groups.setdefault((state.cause.name, state.detail if state.cause.name == "exception" else ""), []).append(state)
    for (name, _), mine in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = mine[0]
        assert first.cause is not None
        by_itself = "launch begins it again" if first.cause.retryable else "not begun again by itself"
        again = "it goes on by itself" if first.live and first.cause.retryable else by_itself
        print(f"\n{name} ({pluralize(len(mine), 'point')}, {again}): {first.cause.advice}")
        for state in mine[:SHOWN]:
            print(f"  {point_line(state)}")
        if len(mine) > SHOWN:
            print(f"  … and {len(mine) - SHOWN} more")
        for line in last_words(config, first):
            print(f"    {line}")
    return OK


def last_words(config: Config, state: State) -> list[str]:
    """The end of a run's traceback, or of its task's log, under the file's name."""
    folder = RunFolder(Path(config.paths.runs), state.run.run_id)
    error = folder.error()
    if error:
        return [f"{folder.path}/error.txt:", *error.splitlines()[-LAST_LINES:]]
    if state.submission is None or not state.job:
        return []
    text = tail(state.submission, state.index).splitlines()[-LAST_LINES:]
    return [f"{_log_name(state)}:", *text] if text else [f"{_log_name(state)}: empty or not there"]


def _log_name(state: State) -> str:
    assert state.submission is not None
    found = state.submission.log(state.index)
    return str(found[0]) if found else f"{state.submission.logs}/"


def logs(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """The end of a task's log: of run=ID, else of the first run that is running, else that failed; watch=true follows it."""
    report = reconcile(Path(config.paths.runs), Path(config.paths.jobs), plan.runs)
    print_notes(report)
    chosen = [s for s in matching(config, report) if s.submission and s.submission.log(s.index)]
    chosen.sort(key=lambda s: ["running", "failed"].index(s.name) if s.name in ("running", "failed") else 2)
    if not chosen:
        raise ConfigError(f"no logs yet for {'this run' if config.run else 'this sweep'}; {format_counts(report)}")
    state = chosen[0]
    assert state.submission is not None
    print(f"{point_line(state)}, {state.name}\n{_log_name(state)}:")
    print("\n".join(tail(state.submission, state.index).splitlines()[-2 * LAST_LINES :]), flush=True)
    if config.watch:
        _follow(config, state)
    return OK


def _follow(config: Config, state: State) -> None:
    """Print what a task's log gains, until SLURM has it no more."""
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
            one = reconcile(Path(config.paths.runs), Path(config.paths.jobs), [state.run])
            live, asked = one.states[state.run.run_id].live, time.monotonic()
        time.sleep(FOLLOW_SECONDS)


def doctor(config: Config) -> int:
    """What this machine and its SLURM offer, and what to mend."""
    findings = examine(config)
    width = max(len(f.subject) for f in findings)
    for finding in findings:
        print(f"{finding.mark} {finding.subject:{width}}  {finding.message}")
    print(LEGEND)
    return FAILED if any(f.mark == WRONG for f in findings) else OK


ACTIONS = {"status": status, "why": why, "logs": logs}
