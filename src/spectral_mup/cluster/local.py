"""This machine as a cluster: resident workers that import torch once and train many Points each.

The launcher hands Points to workers over pipes and keeps no truth of its own. A worker that dies is replaced and its Point
given out again; workers whose launcher died stop by themselves; run folders are claimed, so two launchers share the work.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from spectral_mup.record import HeldError, RunFolder
from spectral_mup.schema import Config
from spectral_mup.sweep import Point

MAX_DEATHS = 3  # a Point that killed so many workers is given up, and a sweep whose first so many Points failed
LIST_SECONDS = 2.0  # between two looks for Points that another launcher finished
HELD_RETRY_SECONDS = 2.0
POLL_SECONDS = 0.5

# glibc gives big activation buffers back to the kernel and faults them in again, 3 to 28 % of a step; must precede start.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


@dataclass(frozen=True)
class Event:
    """Something the launcher may show: kind is started, step, done, failed, held, died or stopped."""

    kind: str
    point: Point
    payload: dict[str, Any]


def run_local(
    config: Config,
    todo: Callable[[], list[Point]],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Train what `todo` lists, asking it again whenever a Point ends, until it lists nothing. Returns {run_id: error}.

    `stop` is polled; once true, workers checkpoint at their next step and the call returns.
    """
    pool: list[_Worker] = []
    failed: dict[str, str] = {}
    deaths: dict[str, int] = {}
    held_until: dict[str, float] = {}
    finished = 0
    listed: list[Point] = []
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
            if not finished and len(failed) >= MAX_DEATHS:
                break  # the first runs all failed: so would the rest
            for worker in [w for w in pool if w.point is None]:
                if ready:
                    worker.give(ready.pop(0))
            while ready and len(pool) < workers:
                pool.append(_Worker(config, len(pool)))
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
                        on_event(Event("died", point, {"exitcode": code}))
                        if deaths[point.run_id] >= MAX_DEATHS:
                            failed[point.run_id] = f"its worker died {MAX_DEATHS} times, last with exit code {code}"
                            on_event(Event("failed", point, {"error": failed[point.run_id]}))
    finally:
        for worker in pool:
            worker.close()
        for worker in pool:
            worker.process.join()
    return failed


def worker_count(config: Config) -> int:
    """cluster.workers, or as many as the cores this process may use allow."""
    return config.cluster.workers or max(1, len(os.sched_getaffinity(0)) // config.cluster.threads)


class _Worker:
    """A worker process as the launcher sees it."""

    def __init__(self, config: Config, index: int) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        kept = {k: os.environ.get(k) for k in MALLOC}
        os.environ.update({k: v for k, v in MALLOC.items() if kept[k] is None})
        resource_tracker.ensure_running()  # now, since its start unblocks SIGINT
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: a starting worker outlives a Ctrl-C too
        try:
            self.process = context.Process(target=work, args=(theirs, config, index, os.getpid()), daemon=True)
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for key, value in kept.items():
                if value is None:
                    del os.environ[key]
        theirs.close()
        self.point: Point | None = None

    def give(self, point: Point) -> None:
        self.point = point
        try:
            self.pipe.send(point)
        except OSError:
            pass  # it died while idle; its sentinel says so and the Point is given out again

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


def _readable(pool: list[_Worker]) -> list[_Worker]:
    if not pool:
        time.sleep(POLL_SECONDS)
    ready = set(wait([x for w in pool for x in (w.pipe, w.process.sentinel)], timeout=POLL_SECONDS))
    return [w for w in pool if w.pipe in ready or w.process.sentinel in ready]


# --- in the worker ----------------------------------------------------------------------------------------------------


def work(pipe: Connection, config: Config, index: int, launcher: int) -> None:
    """Train Points from the pipe until it closes. Runs in its own process; the only place here that imports torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's, which closes the pipe
    import torch

    from spectral_mup import data
    from spectral_mup.mirror import Mirror
    from spectral_mup.train import train

    torch.set_num_threads(config.cluster.threads)
    device = pick_device(config.cluster.device, index)
    corpus = data.load(config.data.source, config.data.path, config.data.vocab_size)
    mirror = Mirror(config.wandb.mode, config.wandb.project)

    def should_stop() -> bool:  # while a Point is trained the launcher sends nothing: readable means closed
        return os.getppid() != launcher or pipe.poll()

    try:
        while True:
            event = _train_one(pipe.recv(), config, corpus, device, should_stop, mirror, train, pipe)
            pipe.send(event)
            if event.kind == "stopped":
                break
    except (EOFError, OSError):
        pass  # closed: nothing more to do
    mirror.close()


def _train_one(
    point: Point, config: Config, corpus: Any, device: Any, should_stop: Any, mirror: Any, train: Any, pipe: Connection
) -> Event:
    from spectral_mup.provenance import provenance

    folder = RunFolder(Path(config.paths.runs), point.run_id)
    started = time.monotonic()

    def on_rows(rows: list[dict[str, Any]]) -> None:
        mirror.log(rows)
        payload = {"step": rows[-1]["step"], "steps": point.science["train"]["steps"], "loss": rows[-1]["loss"]}
        try:
            pipe.send(Event("step", point, payload))
        except OSError:
            pass  # the launcher is gone; should_stop sees it

    try:
        folder.write_config(point.science)
        folder.claim()
        result = folder.result()
        if result is None:
            pipe.send(Event("started", point, {}))
            folder.write_provenance(provenance(device))
            mirror.start(point.run_id, dict(point.science))
            result = train(
                point.science, folder, corpus, device=device, log_every=config.cluster.log_every,
                checkpoint_seconds=config.cluster.checkpoint_seconds, should_stop=should_stop, on_rows=on_rows,
            )  # fmt: skip
            if result is None:
                return Event("stopped", point, {})
            mirror.finish(result)
        return Event("done", point, result | {"seconds": time.monotonic() - started})
    except HeldError as held:
        return Event("held", point, {"why": str(held)})
    except BrokenPipeError:
        raise
    except Exception as error:
        try:
            folder.write_error(traceback.format_exc())
        except OSError:
            pass  # a full disk; the launcher prints the cause
        return Event("failed", point, {"error": f"{type(error).__name__}: {error}"})


def pick_device(name: str, index: int) -> Any:
    """torch.device of a worker: `auto` takes a GPU if there is one; worker i takes GPU i modulo their number."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("cluster.device=cuda: torch sees no GPU; use cluster.device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", index % torch.cuda.device_count())
