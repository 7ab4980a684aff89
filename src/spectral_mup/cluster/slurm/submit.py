"""Give SLURM what a sweep still lacks: look, pack, validate, record, sbatch, record. Imports no torch.

A launch first takes the next number of the jobs folder, and looks again if another launch was faster, so that no run is
submitted twice. If it dies at any moment, it leaves either nothing or a folder that the next command understands.
"""

import random
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.durations import Durations, measured_durations
from spectral_mup.cluster.liveness import silence
from spectral_mup.cluster.placement import Machine, Placement, memory_of
from spectral_mup.cluster.slurm.run_states import Report, State, breaker, reconcile
from spectral_mup.cluster.slurm.script import render, slurm_of
from spectral_mup.cluster.slurm.snapshot import check_size, code_files, snapshot_code, snapshot_config
from spectral_mup.cluster.slurm.submission import Submission, Taken, prepare, take
from spectral_mup.config.schema import Config
from spectral_mup.errors import Refusal, Unanswered
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Sweep
from spectral_mup.search.plan import Plan
from spectral_mup.util.files import numbered, write_atomic
from spectral_mup.util.gpus import Gpu
from spectral_mup.util.text import pluralize

UNKNOWN_PACK = 4  # runs for each worker of a task while their duration is unknown
SETTLE_SECONDS = 5.0  # an sbatch that outlives its launcher has reached the controller by then
ATTEMPTS = 3
UNFINISHED_SECONDS = 86400.0  # since a folder was prepared, after which its launcher no longer lives
NO_NODE = re.compile("node configuration is not available|nodes required|down, drained", re.I)
GPU_BYTES = 40e9  # assumed of a node's GPU on a login node; a task measures its own


class SweepPaused(Refusal):
    """The first runs of the sweep all failed in the same way; the message says how and what to do."""


class Incomplete(Unanswered):
    """SLURM refused or did not answer; the message says what, and what was submitted."""


def split_into_packs(
    runs: Sequence[RunConfig], expected: Durations, seconds: float, workers_for: Callable[[Sequence[RunConfig]], int]
) -> list[list[RunConfig]]:
    """Split runs into packs, each of one shape and number of steps, that a task trains in about `seconds`.

    `workers_for` says how many workers a task has for such runs. Packs of a shape have equally many runs, give or take one; the
    largest shapes come first.
    """
    shapes: dict[tuple, list[RunConfig]] = defaultdict(list)
    for run in runs:
        shapes[run.shape, run.train.steps].append(run)
    packs = []
    for same_shape in sorted(shapes.values(), key=lambda runs: runs[0].cost, reverse=True):
        each, workers = max(expected.seconds(same_shape[0]), 1e-3), workers_for(same_shape)
        size = max(workers, int(seconds * workers / each)) if expected.runs else UNKNOWN_PACK * workers
        count = -(-len(same_shape) // size)
        packs += [same_shape[i * len(same_shape) // count : (i + 1) * len(same_shape) // count] for i in range(count)]
    return packs


@dataclass(frozen=True)
class SubmissionPlan:
    """What would be submitted: packs of runs, one task each, in arrays of at most `array_size` tasks.

    `placements` are the workers of a task, by the shape of its runs; `gpus` is how many GPUs it has on all its nodes.
    """

    packs: list[list[RunConfig]]
    expected: Durations
    array_size: int
    placements: dict[tuple[int, int, int], Placement]
    gpus: int

    @property
    def runs(self) -> list[RunConfig]:
        return [run for pack in self.packs for run in pack]

    @property
    def arrays(self) -> int:
        return -(-len(self.packs) // self.array_size)

    def device_hours(self, runs: Iterable[tuple[RunConfig, float]]) -> float:
        """Return the expected hours of runs, given as (a run, how many like it): GPUs × time, or tasks × time without GPUs.

        A run whose shape is not submitted now is assumed to share its task with as few others as any that is.
        """
        fewest = min(place.workers for place in self.placements.values())
        workers = {shape: place.workers for shape, place in self.placements.items()}
        seconds = (self.expected.total([(run, n)]) / workers.get(run.shape, fewest) for run, n in runs)
        return sum(seconds) * max(1, self.gpus) / 3600


def plan_submission(config: Config, plan: Plan, runs: Sequence[RunConfig]) -> SubmissionPlan:
    """Return packs for these runs, with times from the runs of the plan that are done."""
    c = slurm_of(config)
    gpus = [Gpu(str(i), GPU_BYTES) for i in range(c.gpus)] if c.device != "cpu" else []
    expected = measured_durations(Path(config.paths.runs), plan.runs, "cuda" if gpus else "cpu")
    machine = Machine(c.cpus, gpus, memory_of(config))
    machine.memory.learn(plan.runs if gpus else ())

    def place(same_shape: Sequence[RunConfig]) -> Placement:
        if config.train.devices > 1:  # on all nodes of the task
            return Placement(1, f"train.devices={config.train.devices}", [g.id for g in gpus] * c.nodes, config.train.devices)
        return machine.place(config, same_shape)

    packs = split_into_packs(runs, expected, 60 * c.pack_minutes, lambda same_shape: place(same_shape).workers)
    placements = {pack[0].shape: place(pack) for pack in packs}
    return SubmissionPlan(packs, expected, slurm.max_array_size(), placements, c.gpus * c.nodes)


def states_or_refuse(config: Config, plan: Plan, forgiven: Collection[str] = ()) -> Report:
    """Return the state of every run of the plan. Raises SweepPaused if the first, `forgiven` ones apart, share one failure."""
    runs_dir = Path(config.paths.runs)
    report = reconcile(runs_dir, Path(config.paths.jobs), plan.runs)
    if failure := breaker(runs_dir, report.states.keys() - set(forgiven)):
        raise SweepPaused(
            f"the first runs of {config.sweep.name} all failed in the same way ({failure}), so the sweep is paused; "
            "action=why shows the cause; fix it, then action=retry"
        )
    return report


def check_script(config: Config, packs: Sequence[Sequence[RunConfig]], fingerprint: str) -> str | None:
    """Try the script as it will be by sbatch --test-only; return what to say if it can only wait.

    Raises slurm.Refused or slurm.NoAnswer, and ConfigError about code that jobs cannot be given.
    """
    check_size(code_files())
    jobs_dir = Path(config.paths.jobs).absolute()
    trial = prepare(jobs_dir, snapshot_config(config), packs, fingerprint, "code")
    try:
        write_atomic(trial.script, render(config, trial).encode(), 0o600)
        slurm.sbatch(trial.script, "--test-only")
    except slurm.Refused as error:
        if not (NO_NODE.search(str(error)) and (down := _down(config))):
            raise
        return f"no node that is up can run this now; down: {pluralize(down, 'node')} with its cores and GPUs"
    finally:
        shutil.rmtree(trial.path, ignore_errors=True)
    return None


def _down(config: Config) -> int:
    """Return how many nodes that are down have the cores and GPUs of a task.

    sbatch --test-only says that such nodes do not exist; sbatch itself waits for them, unless they lack something else: memory,
    a feature.
    """
    c = slurm_of(config)
    cpus = c.cpus * max(1, config.train.devices // c.nodes)
    return sum(not n.up and n.cpus >= cpus and n.gpus >= c.gpus for n in slurm.nodes(c.partition).values())


def submit(
    config: Config,
    sweep: Sweep,
    plan_now: Callable[[], Plan],
    select: Callable[[State], bool],
    code: str | None = None,
    forgiven: Collection[str] = (),
) -> list[Submission]:
    """Submit the runs of `plan_now` whose state `select` wants, an array at a time; return the submissions.

    `code` is the snapshot to run, by default one taken now. The failures of the runs `forgiven` do not pause the sweep, here or
    in the tasks. Raises Incomplete, SweepPaused.
    """
    jobs_dir, runs_dir = Path(config.paths.jobs).absolute(), Path(config.paths.runs)
    resolved = snapshot_config(config)
    submitted: list[Submission] = []
    given: set[str] = set()
    arrays = 0  # how many this call will make in all
    for folder in (jobs_dir, jobs_dir / "code"):
        _remove_unfinished(folder)
    while True:
        number = max(numbered(jobs_dir), default=0) + 1  # read first: a launch that submits from now on takes it
        plan = plan_now()
        report = states_or_refuse(config, plan, forgiven)
        runs = [s.run for s in report.states.values() if select(s) and s.run.run_id not in given]
        if not runs:
            return submitted
        if _waited_for_sbatch(report):
            continue  # its job may be in the queue now
        planned = plan_submission(config, plan, runs)
        packs = planned.packs[: planned.array_size]
        code = code or snapshot_code(jobs_dir)
        arrays = arrays or planned.arrays
        places = _share(slurm_of(config).array_parallelism, arrays - len(submitted), report, submitted)
        try:
            prepared = prepare(jobs_dir, resolved, packs, sweep.fingerprint, code, *places)
            taken = take(prepared, number, partial(render, config))
        except Taken:
            continue
        taken_ids = {run.run_id for pack in packs for run in pack}
        for run_id in (taken_ids | set(forgiven)) - given:
            RunFolder(runs_dir, run_id).archive_error()
        _sbatch(taken, submitted)
        submitted.append(taken)
        given |= taken_ids


def _remove_unfinished(folder: Path) -> None:
    """Remove what launchers have prepared in a folder and were killed before they had put it in place."""
    for path in folder.glob("new.*"):
        if (silence(path) or 0) > UNFINISHED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _share(limit: int | None, arrays: int, report: Report, submitted: Sequence[Submission]) -> tuple[int | None, str | None]:
    """Return (max_parallel, after_job) for the next of `arrays` arrays.

    They keep the sweep from ever having more than `limit` tasks running. Free places are divided among the arrays; without any,
    the array waits for the job that will free most:

        limit 5     job 1 [###] → job 3 [###]     An array takes over the places of the one that it waits for, so of each
                    job 2 [##]                    chain only the last counts: 3 + 2, no place is free, and job 4 gets
                                                  the 3 places of job 3, after it.
    """
    if limit is None:
        return None, None
    tasks: dict[Submission, set[int]] = {}
    for state in report.states.values():
        if state.name in ("queued", "running", "preempted") and state.submission:
            tasks.setdefault(state.submission, set()).add(state.index)
    seen = {s.path.name for s in tasks}
    places = {s: min(s.max_parallel or limit, len(indices)) for s, indices in tasks.items()}
    places |= {s: min(s.max_parallel or limit, len(s.packs)) for s in submitted if s.path.name not in seen}
    followed = {s.after_job for s in places}
    last = {s: n for s, n in places.items() if s.job is None or s.job not in followed}
    free = limit - sum(last.values())
    if free > 0:
        return max(1, free // max(1, arrays)), None
    largest = max((s for s in last if s.job), key=lambda s: last[s], default=None)
    return (1, None) if largest is None else (last[largest], largest.job)


def _waited_for_sbatch(report: Report) -> bool:
    """Give the sbatch of a launcher that has just died time to reach the queue; return whether that took any."""
    unknown = [s for s in report.submissions if not s.job and not s.refusal and s.launcher_gone]
    age = min((time.time() - s.created for s in unknown), default=SETTLE_SECONDS)
    if not 0 <= age < SETTLE_SECONDS:
        return False
    time.sleep(SETTLE_SECONDS - age)
    return True


def _sbatch(taken: Submission, submitted: Sequence[Submission]) -> None:
    """Submit one array and record its id. Raises Incomplete.

    Without an answer, or without an id in it, look for the job by its name; only without an answer try again.
    """
    so_far = f"submitted so far: {', '.join(f'{s.path.name} (job {s.job})' for s in submitted) or 'nothing'}"
    job, accepted, message = None, False, "it shows no job id, and the queue no job of this name"
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * (1 + random.random()))
        try:
            if not accepted:
                job, accepted = slurm.sbatch(taken.script), True
        except slurm.Refused as error:
            taken.record_refusal(str(error))
            raise Incomplete(f"sbatch refused {taken.script}: {error}; {so_far}") from None
        except slurm.NoAnswer as error:
            message = f"does not answer: {error}"
        try:
            job = job or next((task.job.partition("_")[0] for task in slurm.squeue().values() if task.name == taken.name), None)
        except slurm.NoAnswer as error:
            raise Incomplete(f"SLURM does not answer ({error}); {so_far}; run the same command again") from None
        if job is not None:
            taken.record_job(job)
            return
    raise Incomplete(f"sbatch: {message}; {so_far}; run the same command again")


def describe(submitted: Sequence[Submission]) -> str:
    """Return 'job 7 (12 runs in 3 tasks)', for each submission."""
    return ", ".join(
        f"job {s.job} ({pluralize(sum(map(len, s.packs)), 'run')} in {pluralize(len(s.packs), 'task')})" for s in submitted
    )
