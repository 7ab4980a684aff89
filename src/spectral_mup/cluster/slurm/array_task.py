"""One task of a job array: train its runs from the snapshot, checkpoint when SLURM sends a warning, record why it stopped.

It runs through enter.py as `array_task JOBS/<n>`. Where train.devices > 1, srun starts it in several processes, which train
each run together; rank 0 claims, chooses and records. A process that raises writes why to the run's error.txt and ends; srun
then ends the others, and the batch script requeues the task.
"""

import os
import socket
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from spectral_mup.cluster.durations import Durations
from spectral_mup.cluster.local import run_local
from spectral_mup.cluster.placement import Machine
from spectral_mup.cluster.progress import Event, Progress
from spectral_mup.cluster.slurm.pack import OK, Pack, StopSignals, begin, finish, give_back
from spectral_mup.cluster.slurm_commands import JobStart
from spectral_mup.cluster.team import Unfit, abandon, free_port
from spectral_mup.cluster.worker import Worker, release_memory
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Sweep, result_reader
from spectral_mup.search.plan import make_plan
from spectral_mup.util.files import write_atomic
from spectral_mup.util.gpus import Gpu, visible_gpus
from spectral_mup.util.log import configure_logging, log, log_run

START_SECONDS = 300.0  # for all processes to have started


def main(path: str) -> int:
    """Train the pack of this array task of the submission at `path`; return an exit code of pack.py."""
    configure_logging()
    stopping = StopSignals()
    pack, task = Pack.of_this_task(path)
    try:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            return train_together(pack, stopping, task)
        begin(pack, task)
        failed = train_apart(pack, stopping)
    except Unfit as error:
        return give_back(pack, task, error)
    return finish(pack, task, failed, stopping)


def train_apart(pack: Pack, stopping: StopSignals) -> dict[str, str]:
    """Train several runs at once, each in a worker of its own; return {run id: error} of those that failed."""
    machine = Machine.here(pack.config, int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
    _check_gpus(pack.cluster, machine.gpus)
    if machine.gpus:
        machine.memory.learn(make_plan(Sweep(pack.config, pack.submission.fingerprint), result_reader(pack.runs_dir)).runs)
    placement = machine.place(pack.config, pack.runs)
    log.info("%s", placement)
    progress = Progress(log_run, Durations("cuda" if machine.gpus else "cpu"))
    progress.look(pack.plan(), workers := min(placement.workers, len(pack.runs)))

    def on_event(event: Event) -> None:
        if event.kind == "unfit":
            unfit[event.payload["traceback"]] = None
        pack.on_event(event)
        progress.on_event(event)

    def todo() -> list[RunConfig]:
        progress.look(pack.plan(), workers)
        return pack.todo()

    never = len(pack.runs) + 1  # as the breaker counts the first failures of the whole sweep
    patience = pack.cluster.signal_seconds / 2
    unfit: dict[str, None] = {}  # tracebacks of workers that could not begin, each once
    try:
        return run_local(pack.config, todo, on_event, stopping, machine, max_first_failures=never, patience=patience)
    finally:
        for text in unfit:
            log.error("%s", text)


def _check_gpus(c: SlurmConfig, gpus: Sequence[Gpu]) -> None:
    """Raise Unfit if a task does not see the GPUs that it was to get; another node may have them."""
    if c.gpus and c.device != "cpu" and not gpus:
        raise Unfit(f"cluster.gpus={c.gpus}: nvidia-smi lists none on {socket.gethostname()} for this task")


def train_together(pack: Pack, stopping: StopSignals, task: JobStart) -> int:
    """Train the pack's runs one after the other, each in all processes; return the process's exit code."""
    rank, size, local_rank = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    if rank == 0:
        begin(pack, task)
    gpus = [] if pack.cluster.device == "cpu" else visible_gpus()
    _check_gpus(pack.cluster, gpus)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank % len(gpus)].id if gpus else ""
    try:
        worker = Worker.start(pack.config)
    except Exception as error:
        log.error("%s", traceback.format_exc())
        raise Unfit(f"{type(error).__name__}: {error}") from None
    from spectral_mup.training.distributed import init_process_group

    host, port = main_address(pack, task, rank)
    with init_process_group(rank, size, host, port, worker.device.type) as processes:
        _train_runs(pack, worker, processes, stopping)
    if rank > 0:
        return OK
    worker.tracker.close()
    return finish(pack, task, {}, stopping)


def _train_runs(pack: Pack, worker: Worker, processes: Any, stopping: StopSignals) -> None:
    progress = Progress(log_run, Durations(worker.device.type))
    progress.look(pack.plan(), 1)
    while not processes.any(stopping()):
        claimed = _claim_next(pack, worker, stopping) if processes.is_main else None
        run_id = processes.broadcast(claimed and claimed.run_id)
        if run_id is None:
            return
        run = next(r for r in pack.runs if r.run_id == run_id)
        folder = claimed or pack.folder(run)
        folder.nonce = processes.broadcast(folder.nonce)  # the claim is the team's
        started = time.monotonic()
        try:
            result = worker.train(run, folder, stopping, lambda event: None, processes)
        except Exception as error:
            abandon(folder, processes.rank, error)  # srun ends the others
        release_memory(worker.device)
        if processes.is_main and result is not None:
            progress.on_event(Event("done", run, result | {"seconds": time.monotonic() - started}))
            progress.look(pack.plan(), 1)


def _claim_next(pack: Pack, worker: Worker, stopping: StopSignals) -> RunFolder | None:
    """Claim the next run to train that no other process has, None without one or once stopped; called by rank 0 alone."""
    failed: set[str] = set()  # not to be tried again at once, also where that could not be written
    while not stopping() and (todo := [run for run in pack.todo() if run.run_id not in failed]):
        for run in todo:
            folder = pack.folder(run)
            event = worker.begin(run, folder)
            pack.on_event(event)
            if event.kind == "started":
                return folder
            if event.kind == "failed":
                failed.add(run.run_id)
            elif event.kind == "claimed":
                log_run(event.payload["why"], run.run_id)
        time.sleep(1)
    return None


def main_address(pack: Pack, task: JobStart, rank: int) -> tuple[str, int]:
    """Return where rank 0 of this start listens; it writes that to a file, as no fixed port is sure to be free everywhere."""
    path = pack.submission.path / "tasks" / f"{pack.index}.{task.restart}.address"
    if rank == 0:
        write_atomic(path, f"{_host()} {free_port()}\n".encode())
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has not written its address within {START_SECONDS:g} s: {path}")
        list(path.parent.iterdir())  # makes a network disk refresh its cache
        time.sleep(0.1)
    host, port = path.read_text().split()
    return host, int(port)


def _host() -> str:
    """Return a name of this node that the others can resolve."""
    for name in filter(None, (os.environ.get("SLURMD_NODENAME"), socket.gethostname())):
        with suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    return "127.0.0.1"
