"""Give SLURM what a sweep still lacks: look, pack, validate, record, sbatch, record, and go. Imports no torch.

Whoever submits takes the next number of the jobs folder first, and looks again if another was faster, so that no run is given
out twice; a launcher that dies at any moment leaves either nothing or a folder that the next command understands.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spectral_mup.cluster.progress import pluralize
from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.cluster.slurm.packing import Estimate, estimate, pack
from spectral_mup.cluster.slurm.run_states import Report, State, breaker, reconcile
from spectral_mup.cluster.slurm.script import render, slurm_of
from spectral_mup.cluster.slurm.snapshot import snapshot_code, snapshot_config
from spectral_mup.cluster.slurm.submission import Submission, Taken, numbers, prepare, take
from spectral_mup.config.schema import Config
from spectral_mup.errors import Refusal, Unanswered
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Plan, Sweep

SETTLE_SECONDS = 5.0  # an sbatch that outlives its launcher has reached the controller by then
ATTEMPTS = 3


class HeldBack(Refusal):
    """The first runs of the sweep all failed alike; the message says how and what to do."""


class Incomplete(Unanswered):
    """SLURM refused or gave no answer; the message says what, and which submissions are in."""


@dataclass(frozen=True)
class Order:
    """What would be submitted: packs of runs, each a task, in arrays of at most `array_size`."""

    packs: list[list[RunConfig]]
    expected: Estimate
    array_size: int
    workers: int
    gpus: int

    @property
    def points(self) -> list[RunConfig]:
        return [p for some in self.packs for p in some]

    @property
    def gpu_hours(self) -> float | None:
        """Expected device-hours of all packs: GPUs × time, or tasks × time without GPUs."""
        seconds = self.expected.total(self.points)
        return None if seconds is None else seconds / self.workers * max(1, self.gpus) / 3600


def workers_of(config: Config) -> int:
    """runs that a task trains at once."""
    c = slurm_of(config)
    if config.train.devices > 1:
        return 1
    return c.workers or c.gpus or max(1, c.cpus // c.threads)


def order(config: Config, plan: Plan, points: Sequence[RunConfig]) -> Order:
    """Packs for these runs, with times from the runs of the plan that are done."""
    c = slurm_of(config)
    workers, gpus = workers_of(config), c.gpus * c.nodes
    device = "cuda" if c.device != "cpu" and c.gpus else "cpu"
    expected = estimate(Path(config.paths.runs), plan.runs, device)
    return Order(pack(points, expected, 60 * c.pack_minutes, workers), expected, slurm.max_array_size(), workers, gpus)


def look(config: Config, plan: Plan, forgiven: Collection[str] = ()) -> Report:
    """The state of every run of the plan. Raises HeldBack if the first runs, those `forgiven` apart, all failed alike."""
    runs = Path(config.paths.runs)
    report = reconcile(runs, Path(config.paths.jobs), plan.runs)
    failure = breaker(runs, report.states.keys() - set(forgiven))
    if failure:
        raise HeldBack(
            f"the first runs of {config.sweep.name} all failed alike ({failure}), the rest is held back; "
            "action=why shows it; mend the cause, then action=retry"
        )
    return report


def check_script(config: Config, packs: Sequence[Sequence[RunConfig]], fingerprint: str) -> None:
    """sbatch --test-only of the script as it will be. Raises slurm.Refused or slurm.NoAnswer."""
    jobs = Path(config.paths.jobs).absolute()
    trial = prepare(jobs, snapshot_config(config), config.sweep.name, packs, fingerprint, "code")
    try:
        trial.script.write_text(render(config, trial))
        slurm.sbatch(trial.script, Path.cwd(), test_only=True)
    finally:
        trial.discard()


def submit(
    config: Config,
    sweep: Sweep,
    plan_of: Callable[[], Plan],
    select: Callable[[State], bool],
    code: str | None = None,
    forgiven: Collection[str] = (),
) -> list[Submission]:
    """Submit the runs of `plan_of` whose state `select` wants; the submissions made, none if there was nothing.

    `code` is the snapshot to run, by default one taken now. The failures of the runs `forgiven` do not hold back, here nor in
    the tasks. Raises Incomplete, HeldBack.
    """
    jobs = Path(config.paths.jobs).absolute()
    runs = Path(config.paths.runs)
    made: list[Submission] = []
    asked: set[str] = set()
    snapshot = snapshot_config(config)
    arrays = 0  # that this call makes in all
    while True:
        seen = (numbers(jobs) or [0])[-1]
        plan = plan_of()
        report = look(config, plan, forgiven)
        points = [s.point for s in report.states.values() if select(s) and s.point.run_id not in asked]
        if not points:
            return made
        if _settle(report):
            continue  # its job may be there now
        ordered = order(config, plan, points)
        code = code or snapshot_code(jobs)
        arrays = arrays or -(-len(ordered.packs) // ordered.array_size)
        packs = ordered.packs[: ordered.array_size]
        at_once, behind = _share(slurm_of(config).array_parallelism, arrays - len(made), report, made)
        prepared = prepare(jobs, snapshot, config.sweep.name, packs, sweep.fingerprint, code, at_once, behind)
        try:
            taken = take(prepared, seen + 1, partial(render, config))
        except Taken:
            continue
        mine = [p.run_id for some in packs for p in some]
        for run_id in {*mine, *forgiven} - asked:
            RunFolder(runs, run_id).archive_error()
        _sbatch(taken, made)
        made.append(taken)
        asked |= set(mine)


def _share(limit: int | None, arrays: int, report: Report, made: Sequence[Submission]) -> tuple[int | None, str | None]:
    """How many tasks of the next of `arrays` arrays may be at work at once, and the job it must wait for, so that with all that
    the sweep has in the queue they are never more than `limit`.

    An array that waits for another has as many places as that leaves, so in each such chain only the last counts.
    """
    if limit is None:
        return None, None
    tasks: dict[Submission, set[int]] = {}
    for state in report.states.values():
        if state.name in ("queued", "running", "preempted") and state.submission:
            tasks.setdefault(state.submission, set()).add(state.index)
    seen = {s.path.name for s in tasks}
    places = {s: min(s.at_once or limit, len(mine)) for s, mine in tasks.items()}
    places |= {s: min(s.at_once or limit, len(s.packs)) for s in made if s.path.name not in seen}
    chained = {s.behind for s in places}
    last = {s: n for s, n in places.items() if s.job is None or s.job not in chained}
    left = limit - sum(last.values())
    if left > 0:
        return max(1, left // max(1, arrays)), None
    before = max((s for s in last if s.job), key=lambda s: last[s], default=None)
    return (1, None) if before is None else (last[before], before.job)


def _settle(report: Report) -> bool:
    """Give the sbatch of a launcher that died this very moment the time to be seen; whether that took a while."""
    unknown = [s for s in report.submissions if not s.job and not s.refusal and s.launcher_gone]
    age = min((time.time() - s.created for s in unknown), default=SETTLE_SECONDS)
    if not 0 <= age < SETTLE_SECONDS:
        return False
    time.sleep(SETTLE_SECONDS - age)
    return True


def _sbatch(taken: Submission, made: Sequence[Submission]) -> None:
    """Hand one array to SLURM and record its id. When the answer is lost, look for the job by its name before trying again."""
    so_far = f"submitted so far: {', '.join(f'{s.path.name} (job {s.job})' for s in made) or 'nothing'}"
    said = ""
    for attempt in range(ATTEMPTS):
        try:
            taken.record_job(slurm.sbatch(taken.script, Path.cwd()))
            return
        except slurm.Refused as error:
            taken.record_refusal(str(error))
            raise Incomplete(f"sbatch refused {taken.script}: {error}; {so_far}") from None
        except slurm.NoAnswer as error:
            said = str(error)
        try:
            job = next((e.job for e in slurm.squeue().values() if e.name == taken.name), None)
        except slurm.NoAnswer as error:
            raise Incomplete(f"SLURM gives no answer ({error}); {so_far}; the same command goes on") from None
        if job is not None:
            taken.record_job(job.partition("_")[0])
            return
        time.sleep((attempt + 1) * (1 + random.random()))
    raise Incomplete(f"sbatch gives no answer ({said}); {so_far}; the same command goes on")


def extend_from_task(config: Config, mine: Submission) -> str:
    """From inside a job: submit, with the same snapshot, what the sweep wants by the results so far and nobody has."""
    from spectral_mup.runs.sweep import result_reader

    sweep = Sweep(config, mine.fingerprint)
    runs, retries = Path(config.paths.runs), slurm_of(config).retries
    made = submit(config, sweep, lambda: sweep.plan(result_reader(runs)), lambda s: s.again(retries), mine.code)
    return "submitted what these results ask for: " + described(made) if made else "nothing more to submit"


def described(made: Sequence[Submission]) -> str:
    """Submissions in words."""
    return ", ".join(
        f"job {s.job} ({pluralize(sum(map(len, s.packs)), 'point')} in {pluralize(len(s.packs), 'task')})" for s in made
    )
