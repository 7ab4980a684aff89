"""This machine as a cluster: resident workers that import torch once and train many runs each.

The launcher hands runs to workers over pipes; what it must not lose is in the run folders. A worker that dies is replaced and
its run given out again; workers whose launcher died stop by themselves. Folders are claimed, so two launchers share the work.
With train.devices a worker is a team of processes, which ends when one of them does. The number of workers follows what the
runs at hand need of a GPU (placement.py), and shrinks where they ran out of memory.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from spectral_mup.cluster.failure_causes import DEVICE_MEMORY, classify_traceback
from spectral_mup.cluster.placement import Machine, Placement
from spectral_mup.cluster.progress import Event
from spectral_mup.cluster.team import Unfit
from spectral_mup.cluster.worker import Worker
from spectral_mup.cluster.worker_process import POLL_SECONDS, WorkerProcess
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder

MAX_DEATHS = 3  # a run that killed this many workers is given up
MAX_UNFIT = 3  # if this many workers in a row cannot begin, this machine cannot train
MAX_FIRST_FAILURES = 3  # if this many runs fail before any is done, the rest is not started
LIST_SECONDS = 2.0  # between two checks for runs that another launcher finished
CLAIMED_RETRY_SECONDS = 2.0


def run_local(
    config: Config,
    todo: Callable[[], list[RunConfig]],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
    machine: Machine | None = None,
    max_first_failures: int = MAX_FIRST_FAILURES,
    patience: float | None = None,
) -> dict[str, str]:
    """Train what `todo` lists, calling it again whenever a run ends, until it lists nothing; return {run_id: error}.

    `stop` is polled; once true, workers checkpoint at their next step and the call returns. With `patience` (s), a worker that
    takes longer is killed: its run resumes from an earlier checkpoint. `machine` is what to train with, by default all of this
    one. Raises Unfit if no worker can begin here.
    """
    pool = WorkerPool(config, machine or Machine.here(config), on_event)
    listed, listed_at = [], -math.inf
    try:
        while not stop():
            if time.monotonic() - listed_at > LIST_SECONDS:
                listed, listed_at = todo(), time.monotonic()
            waiting = [run for run in listed if run.run_id not in pool.failed and run.run_id not in pool.busy]
            if not waiting and not pool.busy or not pool.finished and len(pool.failed) >= max_first_failures:
                break
            pool.dispatch(waiting)
            if pool.collect():
                listed_at = -math.inf
            if len(pool.unfit) >= MAX_UNFIT:
                raise Unfit(f"no worker can begin on {socket.gethostname()}: {pool.unfit[-1]}")
    finally:
        pool.close(patience if stop() else None)
    return pool.failed


def run_here(
    config: Config,
    todo: Callable[[], list[RunConfig]],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
    machine: Machine | None = None,
) -> dict[str, str]:
    """Train as run_local does, but one run at a time in this process, which alone has functions that a notebook defines."""
    import torch

    from spectral_mup.training.distributed import SINGLE_PROCESS

    threads = torch.get_num_threads()
    worker, failed, done = Worker.start(config), {}, False
    claimed_until: dict[str, float] = {}
    try:
        while waiting := [] if stop() else [run for run in todo() if run.run_id not in failed]:
            ready = _ready(waiting, claimed_until)
            if not ready:
                time.sleep(CLAIMED_RETRY_SECONDS)
                continue
            event = worker.execute(ready[0], stop, on_event, SINGLE_PROCESS)
            on_event(event)
            done |= event.kind == "done"
            if event.kind == "failed":
                failed[event.run.run_id] = event.payload["error"]
            elif event.kind == "claimed":
                claimed_until[event.run.run_id] = time.monotonic() + CLAIMED_RETRY_SECONDS
            if not done and len(failed) >= MAX_FIRST_FAILURES:
                break
    finally:
        worker.tracker.close()
        torch.set_num_threads(threads)
    return failed


def _ready(runs: Sequence[RunConfig], claimed_until: Mapping[str, float]) -> list[RunConfig]:
    """Return the runs without those that another process had when they were last tried, not long ago."""
    now = time.monotonic()
    return [run for run in runs if claimed_until.get(run.run_id, 0) <= now]


class WorkerPool:
    """Workers, the runs they train, and the runs that ended: `finished` counts results, `failed` is {run_id: error}."""

    def __init__(self, config: Config, machine: Machine, on_event: Callable[[Event], None]) -> None:
        self.config, self.machine, self.on_event = config, machine, on_event
        self.finished = 0
        self.failed: dict[str, str] = {}
        self.unfit: list[str] = []  # why workers could not begin, since the last one that could
        self._workers: list[WorkerProcess] = []
        self._deaths: Counter[str] = Counter()
        self._at_most: dict[tuple[int, int, int], int] = {}  # by shape: runs that a GPU takes, once more have failed
        self._claimed_until: dict[str, float] = {}

    @property
    def busy(self) -> set[str]:
        """Ids of the runs that workers have."""
        return {worker.run.run_id for worker in self._workers if worker.run}

    def dispatch(self, runs: Sequence[RunConfig]) -> None:
        """Give these runs to idle workers, then to new ones, as far as there is room; end idle workers that have none."""
        ready = _ready(runs, self._claimed_until)
        if not ready:
            return
        placement = self._place([*ready, *(w.run for w in self._workers if w.run)])
        for worker in [w for w in self._workers if w.run is None]:
            if worker.index >= placement.workers:  # it would hold memory that the others need
                self._workers.remove(worker)
                worker.close()
                worker.end(None)
            elif ready and self._has_room(worker.gpus, placement):
                self._give(worker, ready.pop(0))
        for index in sorted(set(range(placement.workers)) - {w.index for w in self._workers}):
            if ready and self._has_room(gpus := placement.gpus_of(index), placement):
                self._workers.append(WorkerProcess(self.config, index, gpus))
                self._give(self._workers[-1], ready.pop(0))

    def _place(self, runs: Sequence[RunConfig]) -> Placement:
        shapes = {run.shape for run in runs}
        return self.machine.place(self.config, runs, min((n for s, n in self._at_most.items() if s in shapes), default=None))

    def _busy_on(self, gpus: Sequence[str]) -> list[WorkerProcess]:
        return [w for w in self._workers if w.run is not None and not set(gpus).isdisjoint(w.gpus)]

    def _has_room(self, gpus: Sequence[str], placement: Placement) -> bool:
        return len(self._busy_on(gpus)) < placement.per_gpu

    def _give(self, worker: WorkerProcess, run: RunConfig) -> None:
        worker.give(run)
        together = self._busy_on(worker.gpus)
        for one in together:
            one.most_beside = max(one.most_beside, len(together) - 1)

    def collect(self) -> bool:
        """Wait a moment for events and pass them on; return whether a run ended, so that others may be wanted now."""
        ended = False
        handles = {handle: worker for worker in self._workers for handle in worker.handles}
        for worker in {handles[handle] for handle in wait(handles, timeout=POLL_SECONDS)}:
            for event in worker.receive():
                if event.kind == "done":
                    self.finished += 1
                    if self.machine.gpus:
                        self.machine.memory.learn([event.run])
                elif event.kind == "failed" and self._crowded_out(worker, event):
                    event = Event("died", event.run, {"why": "no GPU memory left beside the others", "retried": True})
                elif event.kind == "failed":
                    self.failed[event.run.run_id] = event.payload["error"]
                    if len(worker.pipes) > 1:  # the rank that failed is about to end, and the others cannot go on without it
                        worker.end(time.monotonic())
                elif event.kind == "claimed":
                    self._claimed_until[event.run.run_id] = time.monotonic() + CLAIMED_RETRY_SECONDS
                elif event.kind == "unfit":
                    worker.unfit = event.payload["error"]
                elif event.kind == "started":
                    self.unfit.clear()
                ended |= event.kind in ("done", "failed", "died")
                self.on_event(event)
            if (exit_code := worker.exit_code) is not None:
                self._workers.remove(worker)
                worker.end(time.monotonic())
                if worker.run is not None and worker.begun:
                    self.on_death(worker.run, exit_code)
                    ended = True
                elif worker.run is not None:  # it had not claimed the run yet
                    self.unfit.append(worker.unfit or f"a process ended with exit code {exit_code} while it began")
        return ended

    def _crowded_out(self, worker: WorkerProcess, event: Event) -> bool:
        """Return whether a run ran out of memory on a GPU that it shared; then it runs again, and fewer will share one."""
        beside, shape = worker.most_beside, event.run.shape
        if not (self.machine.gpus and beside and classify_traceback(event.payload["error"]) is DEVICE_MEMORY):
            return False
        self._at_most[shape] = min(beside, self._at_most.get(shape, beside))
        RunFolder(Path(self.config.paths.runs), event.run.run_id).archive_error()
        return True

    def on_death(self, run: RunConfig, exit_code: int | None) -> None:
        """Count the death of a worker in this run, which fails after MAX_DEATHS of them; until then `todo` lists it again."""
        self._deaths[run.run_id] += 1
        retried = self._deaths[run.run_id] < MAX_DEATHS
        self.on_event(Event("died", run, {"why": f"its worker died (exit code {exit_code})", "retried": retried}))
        if not retried:
            self.failed[run.run_id] = f"its worker died {MAX_DEATHS} times, last with exit code {exit_code}"
            self.on_event(Event("failed", run, {"error": self.failed[run.run_id]}))

    def close(self, patience: float | None) -> None:
        """Ask all workers to checkpoint at their next step and end; kill them after `patience` (s; None: never)."""
        for worker in self._workers:
            worker.close()
        deadline = None if patience is None else time.monotonic() + patience
        for worker in self._workers:
            worker.end(deadline)
