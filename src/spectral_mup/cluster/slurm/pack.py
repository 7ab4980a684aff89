"""The runs of one array task: its start, its end, and whether it starts again. Imports no torch.

Exit codes of a task: OK, every run of the pack has a result, is cancelled or belongs to another process; FAILED, some failed;
PAUSED, the first runs of the sweep all failed in the same way; TEMPORARY_FAILURE, some failed for a cause that may pass (a
lost process, a disk). The batch script then runs requeue.py.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.failure_causes import Cause
from spectral_mup.cluster.liveness import may_hold
from spectral_mup.cluster.progress import Event
from spectral_mup.cluster.slurm.run_states import breaker
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submission import Submission, open_submission, submissions
from spectral_mup.cluster.slurm.submit import describe, submit
from spectral_mup.cluster.slurm_commands import JobStart
from spectral_mup.cluster.team import FAILED, TEMPORARY_FAILURE, Unfit
from spectral_mup.config.schema import Config
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.runs.sweep import Sweep
from spectral_mup.search.plan import Plan, make_plan
from spectral_mup.util.log import log
from spectral_mup.util.text import pluralize

OK, PAUSED = 0, 3
CLAIMED_SECONDS = 60.0  # to wait for a run of another process, which may be this task's earlier start on its last step
NEAR_SECONDS = 120  # SLURM may warn of the time limit this much earlier than asked
STUCK_STARTS = 2  # starts without a step of progress, after which a task that reached its time limit is not queued again


class StopSignals:
    """SLURM's warnings, collected so that they can be checked between steps."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        for signum in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(signum, lambda s, _: self.signals.append(s))
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self) -> bool:
        return bool(self.signals)


class Pack:
    """The runs of an array task, and which of them still have to be trained."""

    def __init__(self, submission: Submission, index: int) -> None:
        self.submission, self.index = submission, index
        self.config: Config = submission.config()
        self.cluster = slurm_of(self.config)
        self.runs_dir = Path(self.config.paths.runs)
        self.runs = submission.runs(index)
        self._claimed_since: dict[str, float] = {}
        self._ended: set[str] = set()  # runs with a result, which stays, so need not be read every two seconds
        self._trains = False
        of_sweep = [s for s in submissions(submission.path.parent) if s.sweep == submission.sweep]
        self._sweep = {run_id for s in of_sweep if s.declared == submission.declared for run_id in s.index_of}
        self.paused = breaker(self.runs_dir, self._sweep)

    @classmethod
    def of_this_task(cls, path: str) -> tuple[Pack, JobStart]:
        """Return the pack of this process's array task, and its start. Exits with code 2 outside a job array."""
        task, index, submission = slurm.current_job(), os.environ.get("SLURM_ARRAY_TASK_ID"), open_submission(Path(path))
        if task is None or index is None or submission is None:
            log.error("%s: not a submission, or this process is not in a job array", path)
            sys.exit(2)
        return cls(submission, int(index)), task

    def todo(self) -> list[RunConfig]:
        """Return the unfinished runs without those that another process has held for long; none if the sweep is paused."""
        if self.paused:
            return []
        long_ago = time.monotonic() - CLAIMED_SECONDS
        return [run for run in self.unfinished() if self._claimed_since.get(run.run_id, math.inf) >= long_ago]

    def unfinished(self) -> list[RunConfig]:
        """Return the runs that have neither ended, nor failed for good, nor been cancelled."""
        cancelled = self.submission.read_cancelled()
        return [run for run in self.runs if run.run_id not in cancelled and self._is_unfinished(run)]

    def _is_unfinished(self, run: RunConfig) -> bool:
        folder = self.folder(run)
        if run.run_id in self._ended or folder.result() is not None:
            self._ended.add(run.run_id)
            return False
        error = folder.error()
        return error is None or causes.classify_traceback(error).retryable

    def plan(self) -> Plan:
        """Return the pack as a Plan, for the view of progress."""
        curves: dict[Curve, list[RunConfig]] = {}
        for run in self.runs:
            curves.setdefault(run.curve, []).append(run)
        return Plan(curves, self.unfinished())

    def folder(self, run: RunConfig) -> RunFolder:
        return RunFolder(self.runs_dir, run.run_id)

    def on_event(self, event: Event) -> None:
        """Remember since when another process has a run, and check after each failure whether the sweep must pause."""
        if event.kind == "claimed":
            self._claimed_since.setdefault(event.run.run_id, time.monotonic())
        elif event.kind == "started":
            self._claimed_since.pop(event.run.run_id, None)
            if not self._trains:
                self._trains = True
                self.write_task(trained_on=this_node())
        elif event.kind == "failed":
            self.paused = breaker(self.runs_dir, self._sweep)

    def progress(self) -> int:
        """Return the steps that are safe on disk, over the pack; starts that add none are not repeated forever."""
        folders = {run: self.folder(run) for run in self.runs}
        return sum(run.train.steps if f.result() is not None else f.newest_checkpoint() for run, f in folders.items())

    def write_task(self, **values: object) -> None:
        self.submission.write_task(self.index, **values)


def this_node() -> str:
    """Return SLURM's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def begin(pack: Pack, task: JobStart) -> None:
    """Record the start and the progress until then. Exits if too many starts in a row saved no step."""
    before, progress = pack.submission.task_record(pack.index), pack.progress()
    starts = 1 if progress > before.get("progress", -1) else before.get("starts_without_progress", 0) + 1
    pack.write_task(**asdict(task), state="running", cause=None, detail="", progress=progress, starts_without_progress=starts)
    if starts > pack.cluster.retries + 1:
        sys.exit(give_up(pack, f"{starts - 1} starts saved no step"))
    done = len(pack.runs) - len(pack.unfinished())
    log.info("job %s, start %d: %s, %d done", task.job, task.restart + 1, pluralize(len(pack.runs), "run"), done)


def finish(pack: Pack, task: JobStart, failed: Mapping[str, str], stopping: StopSignals) -> int:
    """Requeue a task that was stopped with runs left; else record how it ended and submit what the sweep needs next."""
    for run_id, error in failed.items():
        folder = RunFolder(pack.runs_dir, run_id)
        if folder.error() is None and folder.result() is None:
            with suppress(ClaimedError):  # another task resumes it already
                folder.write_error(f"WorkerDied: {error}\n", partial(may_hold, folder, me=task))
    left = pack.unfinished()
    if stopping() and left and not pack.paused:
        return stop(pack, task, stopping.signals)
    if pack.paused and left:
        pack.write_task(state="ended", cause=causes.PAUSED.name, detail=pack.paused)
        log.error("paused: the sweep's first runs all failed in the same way: %s", pack.paused)
        return PAUSED
    pack.write_task(state="ended", cause=None, detail=pack.paused or "")
    lacking = [run for run in pack.runs if pack.folder(run).result() is None]
    errors = {run: error for run in lacking if (error := pack.folder(run).error()) is not None}
    for run in errors:
        log.error("%s: failed, see %s/error.txt", run, pack.folder(run).path, extra={"run": run.run_id})
    if any(causes.classify_traceback(error).retryable for error in errors.values()):
        return TEMPORARY_FAILURE
    if not stopping():
        extend(pack)
    return FAILED if errors else OK


def stop(pack: Pack, task: JobStart, signals: list[int]) -> int:
    """Requeue a task that has saved everything, unless that cannot help, and wait for SLURM to end it; return the exit code."""
    if slurm.is_cancelled(task):
        pack.write_task(state="ended", cause=causes.CANCELLED.name)
        log.info("cancelled, all is saved")
        return FAILED
    cause = why_stopped(task, pack.cluster.signal_seconds)
    record = pack.submission.task_record(pack.index)
    if (
        cause is causes.TIME
        and record.get("starts_without_progress", 0) >= STUCK_STARTS
        and pack.progress() <= record.get("progress", -1)
    ):
        return give_up(pack, f"{STUCK_STARTS} starts of {pack.cluster.time} min saved no step")
    pack.write_task(state="stopped", cause=cause.name, detail=f"signals {signals}")
    log.info("stopped (%s), all is saved; queued again", cause.name)
    slurm.requeue(task.job)
    time.sleep(pack.cluster.signal_seconds + 60)  # exit code 0 now would count as done, another as failed
    return TEMPORARY_FAILURE


def give_back(pack: Pack, task: JobStart, error: Unfit) -> int:
    """End a task that cannot train on its node, so that its runs are trained on another; logged once for all of them.

    Of a team rank 0 alone records it: others that read and write the record meanwhile would undo what it has just written.
    """
    if (rank := int(os.environ.get("SLURM_PROCID", "0"))) > 0:
        log.error("%s, rank %d: %s", this_node(), rank, error)
        return TEMPORARY_FAILURE
    pack.write_task(**asdict(task), state="unfit", cause=causes.LAUNCH.name, detail=f"on {this_node()}: {error}")
    log.error("%s: %s; %s are given back", this_node(), error, pluralize(len(pack.unfinished()), "run"))
    return TEMPORARY_FAILURE


def give_up(pack: Pack, detail: str) -> int:
    """End the task for good, as another start would not help."""
    pack.write_task(state="ended", cause=causes.STUCK.name, detail=detail)
    log.error("stopped for good: %s; %s", detail, causes.STUCK.advice)
    return FAILED


def why_stopped(task: JobStart, signal_seconds: float) -> Cause:
    """Return SLURM's reason for its warning: preemption, unless the time limit is near and it says nothing of preemption."""
    try:
        job = slurm.show_job(task.job)
    except slurm.NoAnswer:
        return causes.PREEMPTED
    end = slurm.clock(job.get("EndTime", ""))
    near = end is not None and end - time.time() < signal_seconds + NEAR_SECONDS
    return causes.TIME if near and not slurm.was_preempted(job, task) else causes.PREEMPTED


def extend(pack: Pack) -> None:
    """Submit, with the same snapshot, what these results call for and what was lost, so that no launcher need stay alive."""
    retries, code = pack.cluster.retries, pack.submission.code
    try:
        sweep, results = Sweep(pack.config, pack.submission.fingerprint), Results(pack.runs_dir)
        submitted = submit(
            pack.config,
            sweep,
            lambda: make_plan(sweep, results.loss, results.seconds),
            lambda s: s.should_resubmit(retries),
            code,
        )
        called_for = f"submitted what these results call for: {describe(submitted)}"
        log.info("%s", called_for if submitted else "nothing more to submit")
    except Exception as error:  # the task's own work is done and must not count as failed
        log.warning("cannot submit more (%s: %s); action=extend does", type(error).__name__, error)
