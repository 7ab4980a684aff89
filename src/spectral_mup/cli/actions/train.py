"""The actions that decide what is trained, here or on SLURM: run, plan, retry, extend."""

import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectral_mup.cli.context import FAILED, INTERRUPTED, OK, REFUSED, Context, format_counts, print_notes
from spectral_mup.cli.names import keep_name
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.durations import guessed_seconds, measured_durations
from spectral_mup.cluster.failure_causes import CAUSES
from spectral_mup.cluster.placement import Machine, Placement
from spectral_mup.cluster.slurm.run_states import Report, State
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.cluster.slurm.submit import SubmissionPlan, check_script, describe, plan_submission, states_or_refuse, submit
from spectral_mup.config.schema import Config, SlurmConfig
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import AXES, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.search.plan import make_plan, outlook
from spectral_mup.util.files import check_writable
from spectral_mup.util.text import format_duration, pluralize, table

KEYS_BY_SBATCH_ERROR = {
    "account": ["account"], "partition": ["partition"], "qos": ["qos"], "feature": ["constraint"], "node name": ["exclude"],
    "time limit": ["time"], "generic resource|gres": ["gpus"], "memory": ["memory"],
    "processors|node": ["gpus", "cpus", "memory", "nodes"],
}  # fmt: skip
"""Words of sbatch, looked for in this order, and the keys they are about."""
RETRIED = ("failed", "lost", "paused", "cancelled", "preempted")


def run(context: Context) -> int:
    """On SLURM submit what is planned, was cancelled, or failed for a passing cause; else train here until all is done."""
    cluster = context.config.cluster
    context.check_model()
    print(_format_plan(context))
    if not context.plan.todo:
        return _nothing_to_do(context)
    if not isinstance(cluster, SlurmConfig):
        return train_here(context)
    report = states_or_refuse(context.config, context.plan)
    return _submit(context, report, lambda s: s.should_resubmit(cluster.retries) or s.name == "cancelled" and not s.live)


def plan(context: Context) -> int:
    """Print the runs so far, those to do, and what would train them; on SLURM the tasks. Starts nothing."""
    context.check_model()
    print(_format_plan(context))
    if not context.plan.todo:
        return _nothing_to_do(context)
    if isinstance(context.config.cluster, SlurmConfig):
        report = states_or_refuse(context.config, context.plan)
        print_notes(report)
        print(format_counts(report))
        runs = [s.run for s in report.states.values() if s.should_resubmit(context.config.cluster.retries)]
        submission = plan_submission(context.config, context.plan, runs) if runs else None
        print(_format_submission(submission, context.config) if submission else "Nothing to submit.")
    else:
        _print_workers(context, _machine(context).place(context.config, context.plan.todo))
    return OK


def extend(context: Context) -> int:
    """Submit what the results so far call for, but nothing that was cancelled."""
    retries = slurm_of(context.config).retries
    return _submit(context, states_or_refuse(context.config, context.plan), lambda s: s.should_resubmit(retries))


def retry(context: Context) -> int:
    """Run failed, lost, held back and cancelled runs again; with cause=NAME or run=ID only those."""
    cause = context.config.cause
    if cause is not None and cause not in CAUSES:
        raise ConfigError(f"cause={cause}: must be one of {', '.join(CAUSES)}; quote it, as in 'cause=out of memory'")
    states = context.matching()
    ended = [s for s in states if not s.live and s.name in RETRIED]
    chosen = {s.run.run_id for s in ended if cause in (None, s.cause and s.cause.name)}
    planned = {s.run.run_id for s in states if s.name == "planned" and cause is None}
    if not chosen:
        print_notes(context.report)
        print(f"{format_counts(context.report)}\nNothing to retry{f' with cause={cause}' if cause else ''}.")
        return OK
    if isinstance(context.config.cluster, SlurmConfig):
        return _submit(context, context.report, lambda s: s.run.run_id in chosen | planned, chosen)
    return train_here(context, chosen)


def _format_plan(context: Context) -> str:
    """Counts first, then one line per curve."""
    plan, later = context.plan, context.later_curves
    todo, total = set(plan.todo), len(plan.runs)
    text = f"{context.config.sweep.name}: {pluralize(total, 'run')} so far: {total - len(todo)} done, {len(todo)} to do"
    if later:
        text += f"; {pluralize(later, 'more curve')} to follow, each around the optimum of the one before"
    lines = [text]
    for curve, runs in plan.curves.items():
        values = ", ".join(f"{value:g}" for value in sorted({run.value for run in runs}))
        missing, seeds = len(todo.intersection(runs)), pluralize(len({run.seed for run in runs}), "seed")
        mark = ", not bracketed within lr.budget" if curve in plan.unbracketed else ""
        lines.append(f"  {curve}: {curve.tuned} 2^[{values}] × {seeds}, {len(runs) - missing} done, {missing} to do{mark}")
    return "\n".join([*lines, *(f"note: {line}" for line in context.sweep.warnings())])


def _format_outlook(context: Context, workers: int, device: str) -> str:
    """How many runs the search takes until its verdicts, and how long: at least and at most."""
    config, plan = context.config, context.plan
    measured = measured_durations(context.runs, plan.runs, device)

    def seconds(run: RunConfig) -> float:
        known = measured.seconds(run)
        return guessed_seconds(run, device) if known is None else known

    def total(runs: list[tuple[RunConfig, int]]) -> tuple[int, float]:
        return sum(n for _, n in runs), sum(n * seconds(run) for run, n in runs)

    (least, shortest), (most, longest) = map(total, outlook(context.sweep, plan))
    if isinstance(config.sweep.budget, int):
        within = max(least, min(config.sweep.budget, most))
        most, longest = within, longest * within / most
    spent = sum(map(seconds, plan.runs)) - sum(map(seconds, plan.todo))
    shortest, longest = (max(0.0, x - spent) / workers for x in (shortest, longest))
    if isinstance(config.sweep.budget, str):
        longest = min(longest, 3600 * float(config.sweep.budget.removesuffix("h")) / workers)
    times = f"{format_duration(shortest)} to {format_duration(max(shortest, longest))}"
    source = measured.source if measured.runs else "a guess until a run has ended"
    return f"Until the verdicts: {least} to {most} runs in all, about {times} from now ({source})"


def _machine(context: Context) -> Machine:
    """This one, and what is known already of the memory that the sweep's runs need."""
    machine = Machine.here(context.config)
    if machine.gpus:
        machine.memory.learn(context.plan.runs)
    return machine


def _print_workers(context: Context, placement: Placement) -> None:
    print(f"To train them: {placement}")
    if context.config.lr.adaptive:
        print(_format_outlook(context, placement.workers, "cuda" if placement.gpus else "cpu"))


def _nothing_to_do(context: Context) -> int:
    print("Nothing to do.", *context.plan.endings, *context.next_lines(), sep="\n")
    return OK


def train_here(context: Context, forgiven: Collection[str] = (), in_this_process: bool = False) -> int:
    """Train on this machine until the plan is empty, Ctrl-C, or only failed runs are left; the failures of the runs `forgiven`
    are put away first. Raises ConfigError if this machine cannot train what the config says, or write where."""
    from spectral_mup.cluster.local import run_here, run_local
    from spectral_mup.cluster.progress import Progress

    config, machine = context.config, _machine(context)

    def place(runs: Sequence[RunConfig]) -> Placement:
        return Placement(1, "in this process") if in_this_process else machine.place(config, runs)

    placement = place(context.plan.todo)
    _check_folders(config, "runs", "results")
    keep_name(context)
    _print_workers(context, placement)
    for run_id in forgiven:
        RunFolder(context.runs, run_id).archive_error()
    if note := context.load_corpus().note:
        print(f"note: {note}")
    progress = Progress(context.plan, placement.workers, context.later_curves, lambda line, _run: print(line, flush=True))

    def todo() -> list[Any]:
        context.refresh()
        progress.plan, progress.later_curves = context.plan, context.later_curves
        if runs := context.plan.todo:
            progress.workers = place(runs).workers
        return runs

    with _stop_requests() as stopping, progress:
        failed = (run_here if in_this_process else run_local)(config, todo, progress.on_event, stopping, machine)
    context.refresh()
    total = len(context.plan.runs)
    done = pluralize(total - len(context.plan.todo), "run")
    if stopping():
        print(f"Stopped with {done} done. Resume with: {context.launch_command()}")
        return INTERRUPTED
    if failed:
        lines = [f"  {config.paths.runs}/{run_id}: {error} (traceback in error.txt)" for run_id, error in failed.items()]
        print(f"{len(failed)} of {pluralize(total, 'run')} failed:", *lines, sep="\n", file=sys.stderr)
        print(f"Once the cause is removed, resume with: {context.launch_command()}", file=sys.stderr)
        return FAILED
    print(f"All {done} done.", *context.plan.endings, *context.next_lines(), sep="\n")
    return OK


def _check_folders(config: Config, *keys: str) -> None:
    """Raises ConfigError about the first of these paths that cannot be written."""
    for key in keys:
        path = Path(getattr(config.paths, key)).absolute()
        try:
            check_writable(path)
        except OSError as error:
            reason = f"cannot be written ({error.strerror or error}: {error.filename or path})"
            raise ConfigError(f"paths.{key}={path}: {reason}; free it, or give another folder") from None


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM make the function given return True, and no more; from the second on they kill the
    workers, or without any interrupt what is done here."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            for worker in (workers := multiprocessing.active_children()):
                worker.kill()
            if not workers:
                raise KeyboardInterrupt

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _submit(context: Context, report: Report, select: Callable[[State], bool], forgiven: Collection[str] = ()) -> int:
    """Validate, show, ask, submit, print what to do next."""
    config, sweep = context.config, context.sweep
    print_notes(report)
    print(format_counts(report))
    runs = [s.run for s in report.states.values() if select(s)]
    if not runs:
        return _nothing_to_submit(context, report)
    ordered = plan_submission(config, context.plan, runs)
    print(_format_submission(ordered, config))
    _check_folders(config, "runs", "results", "jobs")
    _refuse_what_sbatch_would(context, ordered)
    if not context.confirmed(f"Submit {pluralize(len(runs), 'run')}?"):
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
    """Raises ConfigError about the keys that sbatch's words are about, with their values."""
    try:
        if note := check_script(context.config, ordered.packs[: ordered.array_size], context.sweep.fingerprint):
            print(f"note: {note}; the jobs will wait")
    except slurm.Refused as error:
        keys = next((keys for words, keys in KEYS_BY_SBATCH_ERROR.items() if re.search(words, str(error), re.I)), [])
        values = {key: getattr(context.config.cluster, key) for key in keys}
        about = ", ".join(f"cluster.{key}={'null' if value is None else value}" for key, value in values.items())
        reason = f"sbatch would refuse this, so nothing was submitted: {error}; action=doctor shows what the site offers"
        raise ConfigError(f"{about or 'cluster.*'}: {reason}") from None
    except slurm.NoAnswer as error:
        raise slurm.NoAnswer(f"no answer from SLURM, nothing was submitted: {error}; see action=doctor") from None


def _nothing_to_submit(context: Context, report: Report) -> int:
    """Say why: all done, already submitted, or failed for good."""
    counts = report.counts()
    if counts.keys() <= {"done", "diverged"}:
        return _nothing_to_do(context)
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


def _format_submission(ordered: SubmissionPlan, config: Config) -> str:
    """Runs, tasks, GPUs and expected time, one row per size."""
    c = slurm_of(config)
    hours, unit = ordered.gpu_hours, "GPU-hours" if ordered.gpus else "task-hours"
    cost = f"{unit} unknown (no earlier runs)" if hours is None else f"about {hours:.2g} {unit} ({ordered.expected.source})"
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
        seconds, place = ordered.expected.total(max(packs, key=len)), ordered.placements[packs[0][0].shape]
        takes = "unknown" if seconds is None else f"about {format_duration(seconds / place.workers)}"
        rows.append([*(f"{size[i]}" for i in varied), f"{sum(map(len, packs))}", f"{len(packs)}", takes, f"{place}"])
    head = [*(AXES[i].replace("_", " ") for i in varied), "runs", "tasks", "time per task", "each with"]
    shown = table(rows, header=head, right=range(len(varied) + 2), indent=2)
    return "\n".join([*lines, *shown])
