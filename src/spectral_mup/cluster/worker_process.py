"""A worker as its launcher sees it: the processes, what they are started with, what they report, how they end."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from spectral_mup.cluster.progress import ENDS, Event
from spectral_mup.cluster.worker import LAUNCHER_SIGNALS, WORKER, work
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig

POLL_SECONDS = 0.5

# glibc gives big activation buffers back to the kernel and faults them in again, 3 to 28 % of a step; must precede start.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**26)}


class WorkerProcess:
    """A worker as the launcher sees it: one process for each of `gpus`, which sees that GPU alone ('': the CPU)."""

    def __init__(self, config: Config, index: int, gpus: list[str]) -> None:
        context = mp.get_context("spawn")
        self.index, self.gpus = index, gpus
        self.run: RunConfig | None = None
        self.begun, self.unfit = False, ""  # whether it has started a run, and why it cannot
        self.most_beside = 0  # other runs that were on its GPUs with this one
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        team = [context.Pipe(duplex=False) for _ in gpus[1:]]  # from rank 0 to each other
        for rank, gpu in enumerate(gpus):
            pipe, worker_end = context.Pipe()
            ends = [team[rank - 1][0]] if rank else [sender for _, sender in team]
            self.pipes.append(pipe)
            args = (worker_end, config, os.getpid(), rank, ends)
            self.processes.append(context.Process(target=work, args=args, name=WORKER, daemon=True))
            with _start_conditions(gpu):
                self.processes[-1].start()
            worker_end.close()
        for end in itertools.chain(*team):
            end.close()

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when there is something to receive, or a process has ended."""
        return [*self.pipes, *(process.sentinel for process in self.processes)]

    @property
    def exit_code(self) -> int | None:
        """Exit code of a process that ended, of a killed one first, as others only lost it; None while all live."""
        return min((process.exitcode for process in self.processes if process.exitcode is not None), default=None)

    def give(self, run: RunConfig) -> None:
        self.run, self.most_beside = run, 0
        for pipe in self.pipes:
            with suppress(OSError):  # it died while idle; its sentinel says so and the run is given out again
                pipe.send(run)

    def receive(self) -> Iterable[Event]:
        """Yield the events that wait in the pipes; of several that end a run, as when all ranks fail, the first."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            try:
                while pipe.poll():
                    event: Event = pipe.recv()
                    self.begun |= event.kind != "unfit"
                    if event.kind in ENDS:
                        if self.run is None:
                            continue
                        self.run = None
                    yield event
            except (EOFError, OSError):
                process.join(1)

    def close(self) -> None:
        """Ask it to checkpoint at its next step and end."""
        for pipe in self.pipes:
            pipe.close()

    def end(self, deadline: float | None) -> None:
        """Wait until all its processes have ended; kill those left at the deadline (s on the monotonic clock; None: never).

        Once one has failed the others are killed without waiting, as they may wait for it.
        """
        for process in self.processes:
            while process.is_alive() and not any(p.exitcode for p in self.processes):
                if deadline is not None and time.monotonic() > deadline:
                    break
                process.join(POLL_SECONDS)
            process.kill()
            process.join()


@contextmanager
def _start_conditions(gpu: str) -> Iterator[None]:
    """Set what a process started inside inherits: the one GPU that it sees, malloc's settings, the launcher's signals blocked.

    With these blocked a worker that is starting outlives a Ctrl-C too.
    """
    changed = {key: value for key, value in MALLOC.items() if key not in os.environ} | {"CUDA_VISIBLE_DEVICES": gpu}
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    resource_tracker.ensure_running()  # now, since its start unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, LAUNCHER_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
