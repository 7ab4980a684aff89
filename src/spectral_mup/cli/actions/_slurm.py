"""What the actions that look at SLURM or submit to it share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection

from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import INTERRUPTED, OK, REFUSED
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.run_states import Report, State
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.cluster.slurm.submit import SubmissionPlan, check_script, describe, plan_submission, states_or_refuse, submit
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError
from spectral_mup.runs.sweep import result_reader
from spectral_mup.util.text import format_duration, pluralize, table

KEYS_BY_SBATCH_ERROR = {
    "account": ["account"], "partition": ["partition"], "qos": ["qos"], "feature": ["constraint"], "node name": ["exclude"],
    "time limit": ["time"], "generic resource|gres": ["gpus"], "memory": ["memory"],
    "processors|node": ["gpus", "cpus", "memory", "nodes"],
}  # fmt: skip
"""Words of sbatch, looked for in this order, and the keys they are about."""


def format_counts(report: Report) -> str:
    """'84 runs: 72 done, 3 running, 9 planned'."""
    counts = ", ".join(f"{n} {name}" for name, n in report.counts().items())
    return f"{pluralize(len(report.states), 'run')}: {counts or 'none'}"


def print_notes(report: Report) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)


def matching(context: Context) -> list[State]:
    """States of the runs that run=ID names; all of them without it. Raises ConfigError if it names none."""
    wanted = context.config.run
    found = [s for s in context.report.states.values() if wanted is None or s.run.run_id.startswith(wanted)]
    if wanted is not None and not found:
        raise ConfigError(f"run={wanted}: no run id of this sweep starts with it; action=status lists them")
    return found


def confirmed(config: Config, question: str) -> bool:
    """Whether the user agrees: yes=true, or y on a terminal."""
    if config.yes:
        return True
    if not sys.stdin.isatty():
        print(f"refused: {question} Cannot ask for confirmation without a terminal; add yes=true", file=sys.stderr)
        return False
    try:
        agreed = input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        agreed = False
    if not agreed:
        print("Nothing was done.", file=sys.stderr)
    return agreed


def submit_runs(context: Context, report: Report, select: Callable[[State], bool], forgiven: Collection[str] = ()) -> int:
    """Validate, show, ask, submit, print what to do next."""
    config, sweep = context.config, context.sweep
    print_notes(report)
    print(format_counts(report))
    runs = [s.run for s in report.states.values() if select(s)]
    if not runs:
        return _nothing_to_submit(context, report)
    ordered = plan_submission(config, context.plan, runs)
    print(format_submission(ordered, config))
    _refuse_what_sbatch_would(context, ordered)
    if not confirmed(config, f"Submit {pluralize(len(runs), 'run')}?"):
        return REFUSED
    try:
        made = submit(config, sweep, lambda: sweep.plan(result_reader(context.runs)), select, forgiven=forgiven)
    except KeyboardInterrupt:
        print(f"Interrupted; what was submitted stays. Resume with: {context.launch_command()}")
        return INTERRUPTED
    if not made:
        print("Another launch submitted them in the meantime:")
        return _nothing_to_submit(context, states_or_refuse(config, context.plan))
    print(f"Submitted {describe(made)}. You can close this terminal.")
    print(f"To watch it: {context.launch_command('status')}")
    return OK


def _refuse_what_sbatch_would(context: Context, ordered: SubmissionPlan) -> None:
    try:
        check_script(context.config, ordered.packs[: ordered.array_size], context.sweep.fingerprint)
    except slurm.Refused as error:
        reason = f"sbatch would refuse this, so nothing was submitted: {error}; action=doctor shows what the site offers"
        raise ConfigError(f"{_keys_about(context.config, str(error))}: {reason}") from None
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"no answer from SLURM, nothing was submitted: {error}; see action=doctor") from None


def _keys_about(config: Config, stderr: str) -> str:
    """The keys that sbatch's words are about, with their values."""
    keys = next((keys for words, keys in KEYS_BY_SBATCH_ERROR.items() if re.search(words, stderr, re.I)), None)
    if keys is None:
        return "cluster.*"
    values = {key: getattr(config.cluster, key) for key in keys}
    return ", ".join(f"cluster.{key}={'null' if value is None else value}" for key, value in values.items())


def _nothing_to_submit(context: Context, report: Report) -> int:
    """Say why: all done, already submitted, or failed for good."""
    counts = report.counts()
    if counts.get("done", 0) + counts.get("diverged", 0) == len(report.states):
        print(f"Nothing to do. Next: {context.analyze_command()}")
        return OK
    for name in ("queued", "running", "preempted"):
        submissions = [s.submission for s in report.states.values() if s.name == name and s.submission]
        if submissions:
            print(f"{len(submissions)} {name} in {', '.join(sorted({_describe(s) for s in submissions}))}")
    bad = sum(counts.get(name, 0) for name in ("failed", "paused", "lost", "cancelled"))
    if bad:
        print(f"{pluralize(bad, 'run')} ended without a result.")
        print(f"To see why: {context.launch_command('why')}")
        print(f"To run {'it' if bad == 1 else 'them'} again: {context.launch_command('retry')}")
    print("Nothing to submit.")
    return OK


def _describe(submission: Submission) -> str:
    launcher = f"process {submission.launcher['pid']} on {submission.launcher['host']}"
    return f"job {submission.job} (submitted by {launcher})" if submission.job else f"a job that {launcher} is submitting"


def format_submission(ordered: SubmissionPlan, config: Config) -> str:
    """Runs, tasks, GPUs and expected time, one row per size."""
    c = slurm_of(config)
    arrays = -(-len(ordered.packs) // ordered.array_size)
    hours, unit = ordered.gpu_hours, "GPU-hours" if ordered.gpus else "task-hours"
    cost = f"{unit} unknown (no earlier runs)" if hours is None else f"about {hours:.2g} {unit} ({ordered.expected.source})"
    lines = [
        f"To submit: {pluralize(len(ordered.runs), 'run')} in {pluralize(len(ordered.packs), 'task')}, "
        f"{pluralize(arrays, 'array')} of at most {ordered.array_size}; {cost}",
        f"A task has {pluralize(ordered.gpus, 'GPU') if ordered.gpus else 'no GPU'}, {c.cpus} cores and {c.time} min, "
        f"and trains {ordered.workers} at once.",
    ]
    rows = []
    for width, depth in dict.fromkeys((p[0].curve.width, p[0].curve.depth) for p in ordered.packs):
        packs = [p for p in ordered.packs if (p[0].curve.width, p[0].curve.depth) == (width, depth)]
        seconds = ordered.expected.total(max(packs, key=len))
        takes = "unknown" if seconds is None else f"about {format_duration(seconds / ordered.workers)}"
        rows.append([str(width), str(depth), str(sum(map(len, packs))), str(len(packs)), takes])
    header = ["width", "depth", "runs", "tasks", "time per task"]
    return "\n".join([*lines, *table(rows, header=header, right=range(4), indent=2)])
