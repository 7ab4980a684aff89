"""This machine as a cluster: resident workers that import torch once and train many runs each.

The launcher hands runs to workers over pipes; what it must not lose is in the run folders. A worker that dies is replaced and
its run given out again; workers whose launcher died stop by themselves. Folders are claimed, so two launchers share the work.
"""

import math
import multiprocessing as mp
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from spectral_mup.cluster.progress import ENDS, Event
from spectral_mup.cluster.worker import LAUNCHER_SIGNALS, work
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.system import cores

MAX_DEATHS = 3  # a run that killed this many workers is given up
MAX_FIRST_FAILURES = 3  # if this many runs fail before any is done, the rest is not started
LIST_SECONDS = 2.0  # between two checks for runs that another launcher finished
CLAIMED_RETRY_SECONDS = 2.0
POLL_SECONDS = 0.5

# glibc gives big activation buffers back to the kernel and faults them in again, 3 to 28 % of a step; must precede start.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


def run_local(
    config: Config,
    todo: Callable[[], list[RunConfig]],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
    max_first_failures: int = MAX_FIRST_FAILURES,
    patience: float | None = None,
) -> dict[str, str]:
    """Train what `todo` lists, asking it again whenever a run ends, until it lists nothing. Returns {run_id: error}.

    `stop` is polled; once true, workers checkpoint at their next step and the call returns. With `patience` (s), a worker that
    takes longer is killed: its run resumes from an earlier checkpoint.
    """
    pool = WorkerPool(config, on_event)
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
    finally:
        pool.close(patience if stop() else None)
    return pool.failed


def worker_count(config: Config) -> int:
    """cluster.workers, or as many as the cores this process may use allow."""
    return config.cluster.workers or max(1, cores() // config.cluster.threads)


class WorkerPool:
    """Workers, the runs they train, and the runs that ended: `finished` counts results, `failed` is {run_id: error}."""

    def __init__(self, config: Config, on_event: Callable[[Event], None]) -> None:
        self.config, self.on_event = config, on_event
        self.size = worker_count(config)
        self.finished = 0
        self.failed: dict[str, str] = {}
        self._workers: list[_WorkerProcess] = []
        self._deaths: Counter[str] = Counter()
        self._claimed_until: dict[str, float] = {}

    @property
    def busy(self) -> set[str]:
        """Ids of the runs that workers have."""
        return {worker.run.run_id for worker in self._workers if worker.run}

    def dispatch(self, runs: Sequence[RunConfig]) -> None:
        """Give these runs to idle workers, then to new ones, as far as there are places."""
        now = time.monotonic()
        ready = [run for run in runs if self._claimed_until.get(run.run_id, 0) <= now]
        for worker in [w for w in self._workers if w.run is None]:
            if ready:
                worker.give(ready.pop(0))
        while ready and len(self._workers) < self.size:
            free = min(set(range(self.size)) - {w.index for w in self._workers})
            self._workers.append(_WorkerProcess(self.config, free))
            self._workers[-1].give(ready.pop(0))

    def collect(self) -> bool:
        """Wait a moment for events and pass them on. Returns whether a run ended, so that others may be wanted now."""
        ended = False
        handles: dict[Any, _WorkerProcess] = {handle: w for w in self._workers for handle in (w.pipe, w.process.sentinel)}
        for worker in {handles[handle] for handle in wait(handles, timeout=POLL_SECONDS)}:
            for event in worker.receive():
                if event.kind == "done":
                    self.finished += 1
                elif event.kind == "failed":
                    self.failed[event.run.run_id] = event.payload["error"]
                elif event.kind == "claimed":
                    self._claimed_until[event.run.run_id] = time.monotonic() + CLAIMED_RETRY_SECONDS
                ended |= event.kind in ("done", "failed")
                self.on_event(event)
            if not worker.process.is_alive():
                self._workers.remove(worker)
                if worker.run is not None:
                    self.on_death(worker.run, worker.process.exitcode)
        return ended

    def on_death(self, run: RunConfig, exit_code: int | None) -> None:
        """Count the death of a worker in this run; the last that it may cause fails it, else the next `todo` lists it again."""
        self._deaths[run.run_id] += 1
        retried = self._deaths[run.run_id] < MAX_DEATHS
        self.on_event(Event("died", run, {"exitcode": exit_code, "retried": retried}))
        if not retried:
            self.failed[run.run_id] = f"its worker died {MAX_DEATHS} times, last with exit code {exit_code}"
            self.on_event(Event("failed", run, {"error": self.failed[run.run_id]}))

    def close(self, patience: float | None) -> None:
        """Ask all workers to checkpoint at their next step and end; after `patience` (s; None: any time) kill them."""
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + (patience or 0)
        for worker in self._workers:
            worker.process.join(None if patience is None else max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


class _WorkerProcess:
    """A worker as the launcher sees it."""

    def __init__(self, config: Config, index: int) -> None:
        context = mp.get_context("spawn")
        self.index = index
        self.run: RunConfig | None = None
        self.pipe, worker_end = context.Pipe()
        added = {k: v for k, v in MALLOC.items() if k not in os.environ}
        os.environ.update(added)
        resource_tracker.ensure_running()  # now, since its start unblocks SIGINT
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, LAUNCHER_SIGNALS)  # inherited: a starting worker outlives a Ctrl-C too
        try:
            self.process = context.Process(target=work, args=(worker_end, config, index, os.getpid()), daemon=True)
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for key in added:
                del os.environ[key]
        worker_end.close()

    def give(self, run: RunConfig) -> None:
        self.run = run
        with suppress(OSError):  # it died while idle; its sentinel says so and the run is given out again
            self.pipe.send(run)

    def receive(self) -> Iterable[Event]:
        """Events that wait in the pipe."""
        try:
            while self.pipe.poll():
                event: Event = self.pipe.recv()
                if event.kind in ENDS:
                    self.run = None
                yield event
        except (EOFError, OSError):
            self.process.join(1)
