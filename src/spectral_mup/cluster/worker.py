"""The worker's side: a process that imports torch once, when `work` begins, and trains runs one after the other.

With train.devices a worker is a team of such processes. Each is given the same runs; rank 0 claims, records and reports.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from spectral_mup import data
from spectral_mup.cluster.liveness import may_hold
from spectral_mup.cluster.progress import Event
from spectral_mup.cluster.slurm_commands import current_job
from spectral_mup.cluster.team import FAILED, abandon, free_port
from spectral_mup.config.schema import Config
from spectral_mup.runs.provenance import provenance
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.tracking.live import WandbLogger, describe
from spectral_mup.util.log import configure_logging

Send = Callable[[Event], None]
HEARTBEAT_SECONDS = 30.0
BROKEN_DEVICE = re.compile(r"CUDA error(?!: out of memory)|cannot be captured as a CUDA graph")  # no later run can use the GPU
WORKER = "spectral_mup worker"  # name of its process: other children of a launch are the user's
LAUNCHER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def work(pipe: Connection, config: Config, launcher: int, rank: int = 0, team: Sequence[Connection] = ()) -> None:
    """Train runs from the pipe until it closes or the process `launcher` is gone.

    On the pipes `team` rank 0 sends the port where it listens, one pipe to each other rank, which is given that one alone.
    """
    for signum in LAUNCHER_SIGNALS:  # Ctrl-C's and SLURM's reach every process; the launcher closes the pipe
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LAUNCHER_SIGNALS)
    configure_logging()
    try:
        worker = Worker.start(config)
    except Exception as error:  # before any run is claimed, so not the fault of the one that waits
        with suppress(EOFError, OSError):
            why = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            pipe.send(Event("unfit", pipe.recv(), why))
        sys.exit(FAILED)

    def should_stop() -> bool:  # while a run is trained the launcher sends nothing: readable means closed
        return os.getppid() != launcher or pipe.poll()

    def send(event: Event) -> None:
        with suppress(OSError):  # the launcher is gone; should_stop sees it
            pipe.send(event)

    from spectral_mup.training.distributed import init_process_group

    with suppress(EOFError, OSError):  # closed: nothing more to do
        port = team[0].recv() if rank else free_port()
        for other in team if rank == 0 else ():
            other.send(port)
        with init_process_group(rank, config.train.devices, "127.0.0.1", port, worker.device.type) as processes:
            stopped = False
            while not stopped:
                event = worker.execute(pipe.recv(), should_stop, send, processes)
                broken = event.kind == "failed" and bool(BROKEN_DEVICE.search(event.payload["error"]))
                if not broken:
                    release_memory(worker.device)  # before the launcher fills the GPU
                if processes.is_main:
                    pipe.send(event)
                stopped = broken or event.kind == "stopped"
    worker.tracker.close()


@dataclass(frozen=True)
class Worker:
    """What a process keeps from one run to the next."""

    config: Config
    corpus: data.Corpus | data.OwnBatches
    device: Any
    tracker: WandbLogger

    @classmethod
    def start(cls, config: Config) -> Worker:
        """Import torch, take the GPU that is visible, else the CPU, read the corpus."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic, read at its start
        import torch

        torch.set_num_threads(config.cluster.threads)
        device = pick_device(config.cluster.device)
        if device.type == "cuda":  # a CPU worker is deterministic already
            torch.use_deterministic_algorithms(True, warn_only=True)  # where such kernels exist; attention's backward has none
            # filling each new tensor costs a kernel, and only serves to find bugs
            setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
        corpus = data.load_data(*config.data.place)
        return cls(config, corpus, device, WandbLogger(config.wandb.mode, config.wandb.project))

    def execute(self, run: RunConfig, should_stop: Callable[[], bool], send: Send, processes: Any) -> Event:
        """Claim a run, train it, and return how it ended; whatever goes wrong with it is an event, never an exception.

        In a team only the main process knows how it ended, and an exception while training ends the process.
        """
        folder = RunFolder(Path(self.config.paths.runs), run.run_id)
        started = time.monotonic()
        begun = self.begin(run, folder) if processes.is_main else Event("claimed", run)
        if processes.broadcast(begun.kind) != "started":
            return begun
        folder.nonce = processes.broadcast(folder.nonce)  # the claim is the team's
        if processes.is_main:
            send(begun)
        try:
            result = self.train(run, folder, should_stop, send, processes)
        except Exception as error:
            if processes.size > 1:
                abandon(folder, processes.rank, error, lambda message: send(Event("failed", run, {"error": message})))
            return _failure(run, folder, error)
        if result is None:
            return Event("stopped", run)
        return Event("done", run, result | {"seconds": time.monotonic() - started})

    def begin(self, run: RunConfig, folder: RunFolder) -> Event:
        """Claim a run; return `started`, or how it has ended already, or `failed`. Never raises."""
        try:
            result = self.claim(run, folder)
        except Exception as error:
            return _failure(run, folder, error)
        return Event("started", run) if result is None else Event("done", run, result | {"seconds": 0.0, "trained": 0})

    def claim(self, run: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
        """Claim a run's folder; return its result if it has one already. Raises ClaimedError while another process has it."""
        d, t = self.config.data, self.config.train
        if data.fingerprint(*d.place) != run.data.content:
            raise ValueError(
                "data: the text, or the code of data.target, has changed since the launch; restore it, or launch again"
            )
        folder.write_config(run.to_json())
        if folder.result() is None:
            job = current_job()
            folder.claim(partial(may_hold, folder, me=job), asdict(job) if job else None)
            if folder.result() is None:  # else written in the meantime
                folder.write("provenance.json", provenance(run, self.device, t.devices, t.shard))
        return folder.result()

    def train(
        self, run: RunConfig, folder: RunFolder, should_stop: Callable[[], bool], send: Send, processes: Any
    ) -> dict[str, Any] | None:
        """Train a claimed run with these processes, maybe only this one; return its result, None if stopped early.

        `trained` in it are the steps taken now, fewer than `steps` where the run was resumed.
        """
        from spectral_mup.training.run import train_run

        first: dict[str, int] = {}

        def on_rows(rows: list[dict[str, Any]]) -> None:
            first.setdefault("step", rows[0]["step"])
            self.tracker.log(rows)
            send(Event("step", run, {"step": rows[-1]["step"], "steps": run.train.steps, "loss": rows[-1]["loss"]}))

        if processes.is_main:
            self.tracker.start(run.run_id, describe(run, self.config.sweep.name))
        cluster = self.config.cluster
        started = time.monotonic()
        with heartbeat(folder) if processes.is_main else nullcontext():
            result = train_run(
                run, folder, self.corpus, device=self.device, log_every=cluster.log_every,
                checkpoint_seconds=cluster.checkpoint_seconds, should_stop=should_stop, on_rows=on_rows,
                processes=processes, shard=self.config.train.shard,
            )  # fmt: skip
        if result is not None and processes.is_main:
            steps = result["steps"] + 1 - first.get("step", result["steps"] + 1)
            timing = {"seconds": time.monotonic() - started, "steps": steps, "device": self.device.type}
            folder.write("timing.json", timing | {"devices": processes.size, "memory": peak_memory(self.device)})
            self.tracker.finish(result)
            return result | {"trained": steps}
        return result


def _failure(run: RunConfig, folder: RunFolder, error: Exception) -> Event:
    """Write the traceback of the exception being handled to the run's error.txt; return the event, `failed` or `claimed`."""
    if isinstance(error, ClaimedError):
        return Event("claimed", run, {"why": str(error)})
    try:
        folder.write_error(traceback.format_exc(), partial(may_hold, folder, me=current_job()))
    except ClaimedError as claimed:
        return Event("claimed", run, {"why": str(claimed)})
    except OSError:
        pass  # a full disk; the launcher shows the cause
    return Event("failed", run, {"error": f"{type(error).__name__}: {error}"})


@contextmanager
def heartbeat(folder: RunFolder) -> Iterator[None]:
    """Record every HEARTBEAT_SECONDS that the run's owner is alive, as a step or a compilation may take long."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, ClaimedError):  # the next one makes up for it; unlike a result, not worth failing a run for
                folder.write_heartbeat()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def pick_device(name: str) -> Any:
    """Return the torch.device of a worker: `auto` takes a GPU if it sees one; the launcher lets it see its own alone."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("cluster.device=cuda: torch sees no GPU; use cluster.device=auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0)


def release_memory(device: Any) -> None:
    """Give back what torch keeps of a GPU after a run, and measure the next run's peak from zero."""
    if device.type == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: Any) -> dict[str, int] | None:
    """Return the peak GPU memory of this process, in bytes: of its tensors, and of all that torch's allocator held."""
    if device.type != "cuda":
        return None
    import torch

    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
