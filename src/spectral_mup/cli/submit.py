"""What launch.py does with cluster=slurm: submit, extend, retry, cancel. Imports no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from spectral_mup.cli.main import INTERRUPTED, OK, REFUSED, command
from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.run_states import Report, State, reconcile
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.cluster.slurm.submit import SubmissionPlan, check_script, describe, plan_submission, states_or_refuse, submit
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Plan, Sweep, result_reader
from spectral_mup.util.text import format_duration, pluralize

KEYS_BY_SBATCH_ERROR = {
    "account": ["account"], "partition": ["partition"], "qos": ["qos"], "feature": ["constraint"], "node name": ["exclude"],
    "time limit": ["time"], "generic resource|gres": ["gpus"], "memory": ["memory"],
    "processors|node": ["gpus", "cpus", "memory", "nodes"],
}  # fmt: skip
"""Words of sbatch, looked for in this order, and the keys they are about."""


def launch(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """Submit what is planned, was cancelled, or failed by a cause that passes."""
    retries = slurm_of(config).retries
    report = states_or_refuse(config, plan)

    def select(s: State) -> bool:
        return s.should_resubmit(retries) or s.name == "cancelled" and not s.live

    return _order(config, sweep, plan, report, select, argv)


def extend(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """Submit what the results so far ask for, but nothing that was cancelled."""
    retries = slurm_of(config).retries
    return _order(config, sweep, plan, states_or_refuse(config, plan), lambda s: s.should_resubmit(retries), argv)


def _order(
    config: Config,
    sweep: Sweep,
    plan: Plan,
    report: Report,
    select: Callable[[State], bool],
    argv: list[str],
    forgiven: Collection[str] = (),
) -> int:
    """Validate, show, ask, submit, say what next."""
    print_notes(report)
    print(format_counts(report))
    points = [s.run for s in report.states.values() if select(s)]
    if not points:
        return _nothing(report, argv)
    ordered = plan_submission(config, plan, points)
    print(order_table(ordered, config))
    try:
        check_script(config, ordered.packs[: ordered.array_size], sweep.fingerprint)
    except slurm.Refused as error:
        why = f"sbatch would refuse this, so nothing was submitted: {error}; action=doctor shows what the site has"
        raise ConfigError(f"{_blamed(config, str(error))}: {why}") from None
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"SLURM gives no answer, nothing was submitted: {error}; see action=doctor") from None
    if not confirmed(config, f"Submit {pluralize(len(points), 'point')}?"):
        return REFUSED
    runs = Path(config.paths.runs)
    try:
        made = submit(config, sweep, lambda: sweep.plan(result_reader(runs)), select, forgiven=forgiven)
    except KeyboardInterrupt:
        print(f"Interrupted; what was submitted stays. To go on: {command('launch.py', argv)}")
        return INTERRUPTED
    if not made:
        print("They have been submitted meanwhile:")
        return _nothing(states_or_refuse(config, plan), argv)
    print(f"Submitted {describe(made)}. The launcher is not needed any more.")
    print(f"To see how it goes: {command('launch.py', argv, 'status')}")
    return OK


def _blamed(config: Config, said: str) -> str:
    """The keys that sbatch's words are about."""
    keys = next((keys for words, keys in KEYS_BY_SBATCH_ERROR.items() if re.search(words, said, re.I)), None)
    if keys is None:
        return "cluster.*"
    values = {key: getattr(config.cluster, key) for key in keys}
    return ", ".join(f"cluster.{key}={'null' if value is None else value}" for key, value in values.items())


def _nothing(report: Report, argv: list[str]) -> int:
    counts = report.counts()
    if counts.get("done", 0) + counts.get("diverged", 0) == len(report.states):
        print(f"Nothing to do. Next: {command('analyze.py', argv)}")
        return OK
    for name in ("queued", "running", "preempted"):
        mine = [s for s in report.states.values() if s.name == name and s.submission]
        if mine:
            who = sorted({_who(s.submission) for s in mine if s.submission})
            print(f"{len(mine)} {name} in {', '.join(who)}")
    bad = sum(counts.get(n, 0) for n in ("failed", "paused", "lost", "cancelled"))
    if bad:
        why, them = command("launch.py", argv, "why"), "it" if bad == 1 else "them"
        print(f"{pluralize(bad, 'point')} ended without a result: {why} tells, action=retry begins {them} again")
    print("Nothing to submit.")
    return OK


def _who(submission: Submission) -> str:
    by = f"process {submission.launcher['pid']} on {submission.launcher['host']}"
    return f"job {submission.job} (submitted by {by})" if submission.job else f"a job that {by} is submitting"


def confirmed(config: Config, question: str) -> bool:
    """The user's word: yes=true, or y on a terminal."""
    if config.yes:
        return True
    if not sys.stdin.isatty():
        print(f"refused: {question} Not on a terminal, so give yes=true", file=sys.stderr)
        return False
    try:
        agreed = input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        agreed = False
    if not agreed:
        print("Nothing was done.", file=sys.stderr)
    return agreed


def format_counts(report: Report) -> str:
    """'84 points: 72 done, 3 running, 9 planned'."""
    return f"{pluralize(len(report.states), 'point')}: " + (
        ", ".join(f"{n} {name}" for name, n in report.counts().items()) or "none"
    )


def print_notes(report: Report) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)


def order_table(ordered: SubmissionPlan, config: Config) -> str:
    """runs, packs, GPUs and expected time, a row a shape."""
    c = slurm_of(config)
    arrays = -(-len(ordered.packs) // ordered.array_size)
    device = pluralize(ordered.gpus, "GPU") if ordered.gpus else "no GPU"
    hours = ordered.gpu_hours
    unit = "GPU-hours" if ordered.gpus else "task-hours"
    cost = f"about {hours:.2g} {unit} ({ordered.expected.source})" if hours is not None else f"{unit} unknown (no earlier runs)"
    lines = [
        f"To submit: {pluralize(len(ordered.runs), 'point')} in {pluralize(len(ordered.packs), 'task')}, "
        f"{pluralize(arrays, 'array')} of at most {ordered.array_size}; {cost}",
        f"A task has {device}, {c.cpus} cores and {c.time} min, and trains {ordered.workers} at once.",
        f"  {'width':>7} {'depth':>6} {'points':>7} {'tasks':>6}  a task takes",
    ]
    shapes = dict.fromkeys((p[0].curve.width, p[0].curve.depth) for p in ordered.packs)
    for width, depth in shapes:
        packs = [p for p in ordered.packs if (p[0].curve.width, p[0].curve.depth) == (width, depth)]
        longest = max(packs, key=len)
        seconds = ordered.expected.total(longest)
        takes = "unknown" if seconds is None else f"about {format_duration(seconds / ordered.workers)}"
        lines.append(f"  {width:>7} {depth:>6} {sum(map(len, packs)):>7} {len(packs):>6}  {takes}")
    return "\n".join(lines)


def show(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """The tasks that the runs to do would make; submits nothing."""
    report = states_or_refuse(config, plan)
    print_notes(report)
    print(format_counts(report))
    retries = slurm_of(config).retries
    points = [s.run for s in report.states.values() if s.should_resubmit(retries)]
    print(order_table(plan_submission(config, plan, points), config) if points else "Nothing to submit.")
    return OK


def retry(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """Begin failed, lost, held and cancelled runs again; with cause=NAME or run=ID only those."""
    if config.cause is not None and config.cause not in causes.CAUSES:
        raise ConfigError(
            f"cause={config.cause}: must be one of {', '.join(causes.CAUSES)}; quote it, as in 'cause=out of memory'"
        )
    report = reconcile(Path(config.paths.runs), Path(config.paths.jobs), plan.runs)
    chosen = {
        s.run.run_id
        for s in matching(config, report)
        if not s.live and s.name in ("failed", "lost", "paused", "cancelled", "preempted")
        and config.cause in (None, s.cause and s.cause.name)
    }  # fmt: skip
    held = {s.run.run_id for s in matching(config, report) if s.name == "planned" and config.cause is None}
    if not chosen:
        print_notes(report)
        print(f"{format_counts(report)}\nNothing to retry{f' with cause={config.cause}' if config.cause else ''}.")
        return OK
    if config.cluster.name == "local":
        for run_id in chosen:
            RunFolder(Path(config.paths.runs), run_id).archive_error()
        from spectral_mup.cli.main import run

        return run(config, sweep, result_reader(Path(config.paths.runs)), plan, argv)
    return _order(config, sweep, plan, report, lambda s: s.run.run_id in chosen | held, argv, chosen)


def cancel(config: Config, sweep: Sweep, plan: Plan, argv: list[str]) -> int:
    """End the jobs of this sweep's runs, or of run=ID: only ids that we recorded, shown first."""
    report = reconcile(Path(config.paths.runs), Path(config.paths.jobs), plan.runs)
    print_notes(report)
    chosen = [s for s in matching(config, report) if s.live and s.name != "cancelled" and s.submission and s.job]
    if not chosen:
        print(f"{format_counts(report)}\nNothing to cancel.")
        return OK
    ids = {s.run.run_id for s in chosen}
    whole, shared = [], []
    for submission, index in dict.fromkeys((s.submission, s.index) for s in chosen):
        assert submission is not None
        rest = [
            entry for entry in submission.packs[index]
            if entry["run_id"] not in ids | submission.cancelled
            and RunFolder(Path(config.paths.runs), entry["run_id"]).result() is None
        ]  # fmt: skip
        (shared if rest else whole).append(f"{submission.job}_{index}")
    for state in chosen:
        print(f"  {state.job}  {state.run}: {state.name}")
    if whole:
        print(f"These tasks end at once: {', '.join(whole)}")
    if shared:
        print(f"These go on with their other points, and skip the cancelled that they have not begun: {', '.join(shared)}")
    if not confirmed(config, f"Cancel {pluralize(len(chosen), 'point')}?"):
        return REFUSED
    for submission in dict.fromkeys(s.submission for s in chosen):
        assert submission is not None
        submission.cancel(ids & {e["run_id"] for pack in submission.packs for e in pack})
    try:
        slurm.scancel(whole)
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"SLURM gives no answer ({error}); recorded as cancelled, give the command again") from None
    print(f"Cancelled {pluralize(len(chosen), 'point')}.")
    return OK


def matching(config: Config, report: Report) -> list[State]:
    """States of the runs that run=ID names; all of them without it. Raises ConfigError if it names none."""
    found = [s for s in report.states.values() if config.run is None or s.run.run_id.startswith(config.run)]
    if config.run is not None and not found:
        raise ConfigError(f"run={config.run}: no run of this sweep begins so; action=status lists them")
    return found


ACTIONS = {"retry": retry, "cancel": cancel, "extend": extend}
