"""A launch on SLURM: what would be submitted, what sbatch would refuse, and the submission."""

import re
from collections.abc import Callable, Collection

from spectral_mup.cli.context import INTERRUPTED, OK, REFUSED, Context, check_folders, format_counts, nothing_to_do, print_notes
from spectral_mup.cli.names import keep_name
from spectral_mup.cli.outlook import format_outlook
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.run_states import Report, State
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.cluster.slurm.submit import SubmissionPlan, check_script, describe, plan_submission, states_or_refuse, submit
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import AXES, RunConfig
from spectral_mup.search.outlook import Counted
from spectral_mup.search.plan import make_plan
from spectral_mup.util.text import format_duration, pluralize, table

KEYS_BY_SBATCH_ERROR = {
    "account": ["account"], "partition": ["partition"], "qos": ["qos"], "feature": ["constraint"], "node name": ["exclude"],
    "time limit": ["time"], "generic resource|gres": ["gpus"], "memory": ["memory"],
    "processors|node": ["gpus", "cpus", "memory", "nodes"],
}  # fmt: skip
"""Words in sbatch's errors, looked for in this order, and the keys of cluster that they are about."""


def submit_runs(context: Context, report: Report, select: Callable[[State], bool], forgiven: Collection[str] = ()) -> int:
    """Submit the runs whose state `select` wants: show them, check, ask, submit, say what to do next; return the exit code."""
    config, sweep = context.config, context.sweep
    print_notes(report)
    print(format_counts(report))
    runs = [s.run for s in report.states.values() if select(s)]
    if not runs:
        return _nothing_to_submit(context, report)
    ordered = plan_submission(config, context.plan, runs)
    print(format_submission(ordered, context))
    check_folders(config, "runs", "results", "jobs")
    _refuse_what_sbatch_would(context, ordered)
    if not context.confirm(f"Submit {pluralize(len(runs), 'run')}?"):
        return REFUSED
    keep_name(context)
    try:
        made = submit(
            config, sweep, lambda: make_plan(sweep, context.outcome, context.results.seconds), select, forgiven=forgiven
        )
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
    """Raise ConfigError if sbatch would refuse the script, with the keys that its words are about and their values."""
    try:
        if note := check_script(context.config, ordered.packs[: ordered.array_size], context.sweep.fingerprint):
            print(f"note: {note}; unless they lack something else, the jobs will wait for them")
    except slurm.Refused as error:
        keys = next((keys for words, keys in KEYS_BY_SBATCH_ERROR.items() if re.search(words, str(error), re.I)), [])
        values = {key: getattr(context.config.cluster, key) for key in keys}
        about = ", ".join(f"cluster.{key}={'null' if value is None else value}" for key, value in values.items())
        reason = f"sbatch would refuse this, so nothing was submitted: {error}; action=doctor shows what the site offers"
        raise ConfigError(f"{about or 'cluster.*'}: {reason}") from None
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"no answer from SLURM, nothing was submitted: {error}; see action=doctor") from None


def _nothing_to_submit(context: Context, report: Report) -> int:
    """Print why: all is done, already submitted, or failed for good; return the exit code."""
    counts = report.counts()
    if counts.keys() <= {"done", "diverged"}:
        return nothing_to_do(context)
    for name in ("queued", "running", "preempted"):
        if jobs := [_describe(s.submission) for s in report.states.values() if s.name == name and s.submission]:
            print(f"{len(jobs)} {name} in {', '.join(sorted(set(jobs)))}")
    if bad := sum(counts.get(name, 0) for name in ("failed", "paused", "lost", "cancelled")):
        print(f"{pluralize(bad, 'run')} ended without a result.")
        print(f"To see why: {context.launch_command('why')}")
        print(f"To run {'it' if bad == 1 else 'them'} again: {context.launch_command('retry')}")
    print("Nothing to submit.")
    return OK


def _describe(submission: Submission) -> str:
    launcher = f"process {submission.launcher['pid']} on {submission.launcher['host']}"
    return f"job {submission.job} (submitted by {launcher})" if submission.job else f"a job that {launcher} is submitting"


def format_submission(ordered: SubmissionPlan, context: Context) -> str:
    """Return runs, tasks, GPUs and expected time as text, one row per size; then what is likely to follow them."""
    c, timed = slurm_of(context.config), ordered.expected.run_count > 0
    unit = "GPU-hours" if ordered.gpus else "task-hours"

    def hours(runs: Counted) -> str:
        return f"{ordered.device_hours(runs):.2g} {unit}" if timed else ""

    source = ordered.expected.source if timed else f"{unit} unknown (no earlier runs)"
    cost = f"about {hours([(run, 1.0) for run in ordered.runs])} ({source})" if timed else source
    lines = [
        f"To submit: {pluralize(len(ordered.runs), 'run')} in {pluralize(len(ordered.packs), 'task')}, "
        f"{pluralize(ordered.arrays, 'array')} of at most {ordered.array_size}; {cost}",
        f"A task has {pluralize(ordered.gpus, 'GPU') if ordered.gpus else 'no GPU'}, {c.cpus} cores and {c.time} min.",
    ]
    by_size: dict[tuple[int, ...], list[list[RunConfig]]] = {}
    for pack in ordered.packs:
        by_size.setdefault(tuple(pack[0].sizes.values()), []).append(pack)
    varied = [i for i, axis in enumerate(AXES) if axis in ("width", "depth") or len({size[i] for size in by_size}) > 1]
    rows = []
    for size, packs in by_size.items():
        longest, place = max(packs, key=len), ordered.placements[packs[0][0].shape]
        seconds = ordered.expected.total([(run, 1.0) for run in longest])
        takes = f"about {format_duration(seconds / place.workers)}" if timed else "unknown"
        rows.append([*(f"{size[i]}" for i in varied), f"{sum(map(len, packs))}", f"{len(packs)}", takes, f"{place}"])
    head = [*(AXES[i].replace("_", " ") for i in varied), "runs", "tasks", "time per task", "each with"]
    shown = table(rows, header=head, right=range(len(varied) + 2), indent=2)
    follows = (
        [format_outlook(context, ordered.expected, hours, f"hours are {source}" if timed else source)]
        if context.config.lr.adaptive
        else []
    )
    return "\n".join([*lines, *shown, *follows])
