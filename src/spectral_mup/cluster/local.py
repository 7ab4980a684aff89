"""This machine as a cluster: resident workers that import torch once and train many runs each.

The launcher hands runs to workers over pipes and keeps no truth of its own. A worker that dies is replaced and its run
given out again; workers whose launcher died stop by themselves; run folders are claimed, so two launchers share the work.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from spectral_mup.cluster.worker import LAUNCHER_SIGNALS, Event, work
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig

MAX_DEATHS = 3  # a run that killed so many workers is given up
LIST_SECONDS = 2.0  # between two looks for runs that another launcher finished
HELD_RETRY_SECONDS = 2.0
POLL_SECONDS = 0.5

# glibc gives big activation buffers back to the kernel and faults them in again, 3 to 28 % of a step; must precede start.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


def run_local(
    config: Config,
    todo: Callable[[], list[RunConfig]],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
    give_up_after: int = MAX_DEATHS,
    patience: float | None = None,
) -> dict[str, str]:
    """Train what `todo` lists, asking it again whenever a run ends, until it lists nothing. Returns {run_id: error}.

    `stop` is polled; once true, workers checkpoint at their next step and the call returns. With `patience` (s), a worker that
    takes longer is killed: its run goes on from an earlier checkpoint. If the first `give_up_after` runs all fail, so would
    the rest, which are not begun.
    """
    pool: list[_Worker] = []
    failed: dict[str, str] = {}
    deaths: dict[str, int] = {}
    held_until: dict[str, float] = {}
    finished = 0
    listed: list[RunConfig] = []
    listed_at = -math.inf
    workers = worker_count(config)
    try:
        while not stop():
            busy = {w.point.run_id for w in pool if w.point}
            if time.monotonic() - listed_at > LIST_SECONDS:
                listed, listed_at = todo(), time.monotonic()
            waiting = [p for p in listed if p.run_id not in failed and p.run_id not in busy]
            ready = [p for p in waiting if held_until.get(p.run_id, 0) <= time.monotonic()]
            if not waiting and not busy:
                break
            if not finished and len(failed) >= give_up_after:
                break
            for worker in [w for w in pool if w.point is None]:
                if ready:
                    worker.give(ready.pop(0))
            while ready and len(pool) < workers:
                pool.append(_Worker(config, min(set(range(workers)) - {w.index for w in pool})))
                pool[-1].give(ready.pop(0))
            for worker in _readable(pool):
                for event in worker.receive():
                    if event.kind in ("done", "failed"):
                        listed_at = -math.inf
                        finished += event.kind == "done"
                    if event.kind == "failed":
                        failed[event.point.run_id] = event.payload["error"]
                    elif event.kind == "held":
                        held_until[event.point.run_id] = time.monotonic() + HELD_RETRY_SECONDS
                    on_event(event)
                if not worker.process.is_alive():
                    pool.remove(worker)
                    if worker.point is not None:
                        point = worker.point
                        deaths[point.run_id] = deaths.get(point.run_id, 0) + 1
                        code = worker.process.exitcode
                        again = deaths[point.run_id] < MAX_DEATHS
                        on_event(Event("died", point, {"exitcode": code, "again": again}))
                        if not again:
                            failed[point.run_id] = f"its worker died {MAX_DEATHS} times, last with exit code {code}"
                            on_event(Event("failed", point, {"error": failed[point.run_id]}))
    finally:
        for worker in pool:
            worker.close()
        end = math.inf if patience is None or not stop() else time.monotonic() + patience
        for worker in pool:
            worker.end(end)
    return failed


def worker_count(config: Config) -> int:
    """cluster.workers, or as many as the cores this process may use allow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    return config.cluster.workers or max(1, cores // config.cluster.threads)


class _Worker:
    """A worker process as the launcher sees it."""

    def __init__(self, config: Config, index: int) -> None:
        context = mp.get_context("spawn")
        self.index = index
        self.pipe, theirs = context.Pipe()
        kept = {k: os.environ.get(k) for k in MALLOC}
        os.environ.update({k: v for k, v in MALLOC.items() if kept[k] is None})
        resource_tracker.ensure_running()  # now, since its start unblocks SIGINT
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, LAUNCHER_SIGNALS)  # inherited: a starting worker outlives a Ctrl-C too
        try:
            self.process = context.Process(target=work, args=(theirs, config, index, os.getpid()), daemon=True)
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for key, value in kept.items():
                if value is None:
                    del os.environ[key]
        theirs.close()
        self.point: RunConfig | None = None

    def give(self, point: RunConfig) -> None:
        self.point = point
        try:
            self.pipe.send(point)
        except OSError:
            pass  # it died while idle; its sentinel says so and the run is given out again

    def receive(self) -> Iterable[Event]:
        """Events that are waiting in the pipe."""
        try:
            while self.pipe.poll():
                event: Event = self.pipe.recv()
                if event.kind in ("done", "failed", "held", "stopped"):
                    self.point = None
                yield event
        except (EOFError, OSError):
            self.process.join(1)

    def close(self) -> None:
        """Closing the pipe asks the worker to checkpoint at its next step and go."""
        self.pipe.close()

    def end(self, latest: float) -> None:
        """Wait for its end, and make one at the time `latest` (of time.monotonic)."""
        self.process.join(None if latest == math.inf else max(0.0, latest - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _readable(pool: list[_Worker]) -> list[_Worker]:
    if not pool:
        time.sleep(POLL_SECONDS)
    ready = set(wait([x for w in pool for x in (w.pipe, w.process.sentinel)], timeout=POLL_SECONDS))
    return [w for w in pool if w.pipe in ready or w.process.sentinel in ready]
