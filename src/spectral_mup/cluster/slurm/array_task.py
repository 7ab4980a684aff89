"""One element of a job array: train its pack from the snapshot, save when SLURM warns, and leave nothing undone unsaid.

    python -m spectral_mup.cluster.slurm.array_task JOBS/<n>

Exit code 0: every run of the pack has a result, is cancelled, or is somebody else's. 1: some failed. 3: held back, as the
sweep's first runs all failed alike. 75: some failed by a cause that passes (a lost process, a disk). The batch script then runs
`cluster.after`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from spectral_mup.cluster.local import run_local
from spectral_mup.cluster.progress import Progress, pluralize
from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.failure_causes import Cause
from spectral_mup.cluster.slurm.run_states import breaker
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission, submissions
from spectral_mup.cluster.worker import Event
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Plan

HELD_SECONDS = 60.0  # how long to wait for a run that another process holds: it may be my own earlier start, on its last step
NEAR_SECONDS = 120  # SLURM may warn of the limit so much earlier than it was asked to
STUCK_STARTS = 2  # starts without a step of progress, after which a task that reached its time limit is not queued again
OK, FAILED, HELD_BACK, TEMPORARY_FAILURE = 0, 1, 3, 75


class StopSignals:
    """SLURM's warning, as a flag that is looked at between steps."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        for signum in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(signum, lambda s, _: self.signals.append(s))
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self) -> bool:
        return bool(self.signals)


class Pack:
    """The runs of this element, and which of them are still to do."""

    def __init__(self, submission: Submission, index: int) -> None:
        self.submission, self.index = submission, index
        self.config: Config = submission.config()
        self.cluster = slurm_of(self.config)
        self.runs = Path(self.config.paths.runs)
        self.points = submission.points(index)
        self._waited: dict[str, float] = {}
        self._sweep = {
            e["run_id"]
            for s in submissions(submission.path.parent) if s.sweep == submission.sweep and s.declared == submission.declared
            for pack in s.packs for e in pack
        }  # fmt: skip
        self.held_back: str | None = None
        self.check_breaker()

    def todo(self) -> list[RunConfig]:
        """What is neither done nor failed nor cancelled nor long held by somebody else; nothing if the sweep is held back."""
        if self.held_back:
            return []
        now = time.monotonic()
        waited = {i for i, since in self._waited.items() if now - since > HELD_SECONDS}
        return [p for p in self.unfinished() if p.run_id not in waited]

    def unfinished(self) -> list[RunConfig]:
        return [p for p in self.points if unfinished(self.runs, p.run_id) and not self.submission.is_cancelled(p.run_id)]

    def plan(self) -> Plan:
        """For the view of progress."""
        curves: dict[Curve, list[RunConfig]] = {}
        for run in self.points:
            curves.setdefault(run.curve, []).append(run)
        return Plan(curves, self.unfinished(), [], [])

    def note_held(self, point: RunConfig) -> None:
        self._waited.setdefault(point.run_id, time.monotonic())

    def note_held_no_more(self, point: RunConfig) -> None:
        self._waited.pop(point.run_id, None)

    def check_breaker(self) -> None:
        self.held_back = breaker(self.runs, self._sweep)

    def progress(self) -> int:
        """Steps that are safe on disk, over the pack: what a start has added tells whether another makes sense."""
        total = 0
        for point in self.points:
            folder = RunFolder(self.runs, point.run_id)
            ended = folder.result() is not None
            total += point.train.steps if ended else folder.newest_checkpoint()
        return total


def unfinished(runs: Path, run_id: str) -> bool:
    """Neither ended nor failed for good."""
    folder = RunFolder(runs, run_id)
    error = folder.error()
    return folder.result() is None and (error is None or causes.classify_traceback(error).again)


def main(argv: list[str]) -> int:
    me = slurm.here()
    if len(argv) != 1 or me is None:
        print("usage, inside a job array only: python -m spectral_mup.cluster.slurm.array_task JOBS/<n>", file=sys.stderr)
        return 2
    stopping = StopSignals()
    submission = next(s for s in submissions(Path(argv[0]).parent) if s.path.name == Path(argv[0]).name)
    pack = Pack(submission, int(os.environ["SLURM_ARRAY_TASK_ID"]))
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from spectral_mup.cluster.slurm.distributed_task import train_together

        return train_together(pack, stopping, me)
    begin(pack, me)
    return finish(pack, me, train_apart(pack, stopping), stopping)


def begin(pack: Pack, me: slurm.ArrayTaskId) -> None:
    """Record the start, and how far all was then. Ends the process if too many starts in a row saved no step."""
    before = pack.submission.task(pack.index)
    added = pack.progress() > before.get("progress", -1)
    starts = 1 if added else before.get("starts_without_progress", 0) + 1
    pack.submission.write_task(
        pack.index, job=me.job, restart=me.restart, cause=None, detail="", progress=pack.progress(),
        starts_without_progress=starts, state="running",
    )  # fmt: skip
    if starts > pack.cluster.retries + 1:
        sys.exit(give_up(pack, f"{starts - 1} starts saved no step"))
    done = len(pack.points) - len(pack.unfinished())
    print(f"job {me.job}, start {me.restart + 1}: {pluralize(len(pack.points), 'point')}, {done} done", flush=True)


def train_apart(pack: Pack, stopping: StopSignals) -> dict[str, str]:
    """Several runs at once, each in a worker of its own; {run id: error} of those that failed."""
    c = pack.cluster
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    workers = c.workers or gpus or max(1, cores // c.threads)
    config = pack.config.model_copy(
        update={"cluster": c.model_copy(update={"workers": min(workers, max(1, len(pack.points)))})}
    )
    progress = Progress(pack.plan(), config.cluster.workers or 1, 0)

    def on_event(event: Event) -> None:
        if event.kind == "held":
            pack.note_held(event.point)
        elif event.kind == "started":
            pack.note_held_no_more(event.point)
        elif event.kind == "failed":
            pack.check_breaker()
        progress.on_event(event)

    def todo() -> list[RunConfig]:
        progress.plan = pack.plan()
        return pack.todo()

    return run_local(
        config, todo, on_event, stopping,
        give_up_after=len(pack.points) + 1,  # the breaker looks at the whole sweep
        patience=c.signal_seconds / 2,
    )  # fmt: skip


def finish(pack: Pack, me: slurm.ArrayTaskId, failed: Mapping[str, str], stopping: StopSignals) -> int:
    """Queue this element again if it was stopped with work left; else say how it ended and submit what the sweep wants next."""
    for run_id, error in failed.items():
        folder = RunFolder(pack.runs, run_id)
        if folder.error() is None and folder.result() is None:
            folder.write_error(f"WorkerDied: {error}\n")
    left = pack.unfinished()
    if stopping() and left and not pack.held_back:
        return stop(pack, me, stopping.signals)
    why = causes.HELD if pack.held_back and left else None
    pack.submission.write_task(pack.index, state="ended", cause=why and why.name, detail=pack.held_back or "")
    if why:
        print(f"held back: the sweep's first runs all failed alike: {pack.held_back}", flush=True)
        return HELD_BACK
    wrong = [p for p in pack.points if RunFolder(pack.runs, p.run_id).error() is not None]
    for point in wrong:
        print(f"{point}: failed, see {pack.runs / point.run_id}/error.txt", flush=True)
    if any(causes.classify_traceback(RunFolder(pack.runs, p.run_id).error() or "").again for p in wrong):
        return TEMPORARY_FAILURE
    if not stopping():
        extend(pack)
    return FAILED if wrong else OK


def stop(pack: Pack, me: slurm.ArrayTaskId, signals: list[int]) -> int:
    """All is saved: queue this element again, unless it cannot get anywhere, and wait for SLURM to end it."""
    if slurm.is_cancelled(me):
        pack.submission.write_task(pack.index, state="ended", cause=causes.CANCELLED.name)
        print("cancelled, all is saved", flush=True)
        return FAILED
    why = why_stopped(me, pack.cluster.signal_seconds)
    task = pack.submission.task(pack.index)
    if why is causes.TIME and pack.progress() <= task["progress"] and task["starts_without_progress"] >= STUCK_STARTS:
        return give_up(pack, f"{STUCK_STARTS} starts of {pack.cluster.time} min saved no step")
    pack.submission.write_task(pack.index, state="stopped", cause=why.name, detail=f"signals {signals}")
    print(f"stopped ({why.name}), all is saved; queued again", flush=True)
    slurm.requeue(me.job)
    deadline = time.monotonic() + pack.cluster.signal_seconds + 60
    while time.monotonic() < deadline:  # exit code 0 now would count as done, another as failed
        time.sleep(1)
    return TEMPORARY_FAILURE


def give_up(pack: Pack, detail: str) -> int:
    """End this element for good, as starting again gets it nowhere."""
    pack.submission.write_task(pack.index, state="ended", cause=causes.STUCK.name, detail=detail)
    print(f"stopped for good: {detail}; {causes.STUCK.advice}", flush=True)
    return FAILED


def why_stopped(me: slurm.ArrayTaskId, signal_seconds: float) -> Cause:
    """SLURM's reason for the warning: a job that it preempts has a PreemptTime or waits already, else the limit is near."""
    try:
        job = slurm.show_job(me.job)
    except slurm.NoAnswer:
        return causes.PREEMPTED
    if job.get("PreemptTime", "None") not in ("None", "N/A") or int(job.get("Restarts", "0")) > me.restart:
        return causes.PREEMPTED
    end = slurm.clock(job.get("EndTime", ""))
    near = end is not None and end - time.time() < signal_seconds + NEAR_SECONDS
    return causes.TIME if near else causes.PREEMPTED


def extend(pack: Pack) -> None:
    """Submit what the sweep has come to want by these results, and what was lost: a launcher need not be there."""
    from spectral_mup.cluster.slurm.submit import extend_from_task

    try:
        print(extend_from_task(pack.config, pack.submission), flush=True)
    except Exception as error:  # this task's own work is done and must not count as failed
        print(f"could not look for more to submit ({type(error).__name__}: {error}); action=extend does", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
