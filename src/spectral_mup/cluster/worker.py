"""The worker's side: what trains runs, one after the other, in a process that imported torch once.

This module imports no torch before `work` runs, so that the launcher can name it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from spectral_mup.cluster.liveness import lives
from spectral_mup.cluster.slurm.commands import here
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import ClaimedError, RunFolder

BEAT_SECONDS = 30.0
LAUNCHER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Event:
    """Something the launcher may show: kind is started, step, done, failed, held, died or stopped."""

    kind: str
    point: RunConfig
    payload: dict[str, Any]


def work(pipe: Connection, config: Config, index: int, launcher: int) -> None:
    """Train runs from the pipe until it closes or the process `launcher` is gone."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic, read at its start
    for signum in LAUNCHER_SIGNALS:  # Ctrl-C, and SLURM's signals, which go to every process of a task; it closes the pipe
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LAUNCHER_SIGNALS)
    session = Session.open(config, index)

    def should_stop() -> bool:  # while a run is trained the launcher sends nothing: readable means closed
        return os.getppid() != launcher or pipe.poll()

    def send(event: Event) -> None:
        try:
            pipe.send(event)
        except OSError:
            pass  # the launcher is gone; should_stop sees it

    try:
        stopped = False
        while not stopped:
            event = session.train(pipe.recv(), should_stop, send)
            pipe.send(event)
            stopped = event.kind == "stopped"
    except (EOFError, OSError):
        pass  # closed: nothing more to do
    session.mirror.close()


@dataclass(frozen=True)
class Session:
    """What a worker keeps from RunConfig to RunConfig."""

    config: Config
    corpus: Any
    device: Any
    mirror: Any

    @classmethod
    def open(cls, config: Config, index: int) -> Session:
        """Import torch, take a device, read the corpus."""
        import torch

        from spectral_mup import data
        from spectral_mup.tracking.live import WandbLogger

        torch.set_num_threads(config.cluster.threads)
        device = pick_device(config.cluster.device, index)
        if device.type == "cuda":  # a CPU worker is deterministic as it is
            torch.use_deterministic_algorithms(True, warn_only=True)
        corpus = data.load(config.data.source, config.data.path, config.data.vocab_size)
        return cls(config, corpus, device, WandbLogger(config.wandb.mode, config.wandb.project))

    def train(self, point: RunConfig, should_stop: Callable[[], bool], send: Callable[[Event], None]) -> Event:
        """Claim a run, train it, and say how it ended; whatever goes wrong with it is an event, never an exception."""
        folder = RunFolder(Path(self.config.paths.runs), point.run_id)
        started = time.monotonic()
        try:
            result = self.enter(point, folder)
            if result is None:
                send(Event("started", point, {}))
                result = self.run(point, folder, should_stop, send)
        except ClaimedError as held:
            return Event("held", point, {"why": str(held)})
        except Exception as error:
            try:
                folder.write_error(traceback.format_exc())
            except ClaimedError as held:
                return Event("held", point, {"why": str(held)})
            except OSError:
                pass  # a full disk; the launcher prints the cause
            return Event("failed", point, {"error": f"{type(error).__name__}: {error}"})
        if result is None:
            return Event("stopped", point, {})
        return Event("done", point, result | {"seconds": time.monotonic() - started})

    def enter(self, point: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
        """Claim a run's folder; its result if it has one already. Raises ClaimedError while somebody else trains it."""
        from spectral_mup.data import fingerprint
        from spectral_mup.runs.provenance import provenance

        d, t = self.config.data, self.config.train
        if fingerprint(d.source, d.path, d.vocab_size) != point.data.content:
            raise ValueError("data.path: the text is not the one that was launched with; restore it, or launch anew")
        folder.write_config(point.to_json())
        if (result := folder.result()) is not None:
            return result
        me = here()
        folder.claim(lambda owner: lives(owner, me), asdict(me) if me else None)
        if (result := folder.result()) is not None:  # written while we looked
            return result
        folder.write_provenance(provenance(self.device, t.devices, t.shard))
        return None

    def run(
        self,
        point: RunConfig,
        folder: RunFolder,
        should_stop: Callable[[], bool],
        send: Callable[[Event], None],
        processes: Any = None,
    ) -> dict[str, Any] | None:
        """Train a claimed run, with other processes if they are given; its result, None if stopped before."""
        from spectral_mup.training.distributed import SINGLE_PROCESS
        from spectral_mup.training.run import train_run

        processes = processes or SINGLE_PROCESS
        first: dict[str, int] = {}

        def on_rows(rows: list[dict[str, Any]]) -> None:
            first.setdefault("step", rows[0]["step"])
            self.mirror.log(rows)
            last = {"step": rows[-1]["step"], "steps": point.train.steps, "loss": rows[-1]["loss"]}
            send(Event("step", point, last))

        if processes.is_main:
            self.mirror.start(point.run_id, point.to_json())
        cluster = self.config.cluster
        started = time.monotonic()
        with heartbeat(folder) if processes.is_main else nullcontext():
            result = train_run(
                point, folder, self.corpus, device=self.device, log_every=cluster.log_every,
                checkpoint_seconds=cluster.checkpoint_seconds, should_stop=should_stop, on_rows=on_rows,
                processes=processes, shard=self.config.train.shard,
            )  # fmt: skip
        if result is not None and processes.is_main:
            steps = result["steps"] + 1 - first.get("step", result["steps"] + 1)
            folder.write_timing({"seconds": time.monotonic() - started, "steps": steps, "device": self.device.type})
            self.mirror.finish(result)
        return result


@contextmanager
def heartbeat(folder: RunFolder) -> Iterator[None]:
    """Say every BEAT_SECONDS that the run's holder lives, while a step or a compilation may take long."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                folder.beat()
            except (OSError, ClaimedError):
                pass  # a hint for people; unlike results it is not worth failing a run for

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def pick_device(name: str, index: int) -> Any:
    """torch.device of a worker: `auto` takes a GPU if there is one; worker i takes GPU i modulo their number."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("cluster.device=cuda: torch sees no GPU; use cluster.device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", index % torch.cuda.device_count())
