"""One process of a task whose processes train each run together (train.devices > 1), as srun started it.

Rank 0 leads: it claims, chooses, records. A process that raises says why in the run's error.txt and ends; srun then ends the
others, and the batch script queues the task again.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from typing import Any

from spectral_mup.cluster.progress import Progress
from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.array_task import FAILED, OK, TEMPORARY_FAILURE, Pack, StopSignals, begin, finish
from spectral_mup.cluster.slurm.commands import ArrayTaskId
from spectral_mup.cluster.worker import Event, Session
from spectral_mup.runs.run_folder import ClaimedError, RunFolder

MEET_SECONDS = 300.0  # for all processes to have started


def train_together(pack: Pack, stopping: StopSignals, me: ArrayTaskId) -> int:
    """Train the pack's runs one after the other; the process's exit code."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank, size, local = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    if rank == 0:
        begin(pack, me)
    session = Session.open(pack.config, local)
    from spectral_mup.training.distributed import init_process_group

    host, port = meet(pack, me, rank)
    with init_process_group(rank, size, host, port, session.device.type) as processes:
        code = _points(pack, session, processes, stopping)
    if rank == 0:
        session.mirror.close()
        return finish(pack, me, {}, stopping)
    return code


def _points(pack: Pack, session: Session, processes: Any, stopping: StopSignals) -> int:
    progress = Progress(pack.plan(), 1, 0) if processes.is_main else None
    while not processes.any(stopping()):
        folder = _next(pack, session) if processes.is_main else None
        chosen = processes.broadcast(folder and folder.run_id)
        if chosen is None:
            return OK
        point = next(p for p in pack.points if p.run_id == chosen)
        folder = folder or RunFolder(pack.runs, chosen)
        started = time.monotonic()
        try:
            result = session.run(point, folder, stopping, lambda event: None, processes)
        except BaseException as error:
            _say_why(folder, processes.rank, error)
            sys.stdout.flush()
            # At once, without a word to peers that may be gone; srun ends the others.
            os._exit(TEMPORARY_FAILURE if causes.classify_traceback(traceback.format_exc()).again else FAILED)
        if progress is not None and result is not None:
            progress.plan = pack.plan()
            progress.on_event(Event("done", point, result | {"seconds": time.monotonic() - started}))
    return OK


def _next(pack: Pack, session: Session) -> RunFolder | None:
    """Claim the next RunConfig that is to do and that nobody else holds. Only the leader asks."""
    while todo := pack.todo():
        for point in todo:
            folder = RunFolder(pack.runs, point.run_id)
            try:
                if session.enter(point, folder) is None:
                    return folder
            except ClaimedError as held:
                print(held, flush=True)
                pack.note_held(point)
            except Exception:
                folder.write_error(traceback.format_exc())
                pack.check_breaker()
        time.sleep(1)
    return None


def _say_why(folder: RunFolder, rank: int, error: BaseException) -> None:
    """Leave the traceback with the run, unless another process has left a truer one than that its peer is gone."""
    text = f"rank {rank} on {socket.gethostname()}:\n{traceback.format_exc()}"
    print(text, file=sys.stderr, flush=True)
    if isinstance(error, ClaimedError):
        return
    before = folder.error()
    if before is None or causes.classify_traceback(before).again:
        try:
            folder.write_error(text)
        except (OSError, ClaimedError):
            pass  # a full disk, or no longer our run; the log has it


def meet(pack: Pack, me: ArrayTaskId, rank: int) -> tuple[str, int]:
    """Where rank 0 of this start listens: it says so in a file, as no port is sure to be free everywhere."""
    path = pack.submission.path / "tasks" / f"{pack.index}.{me.restart}.meet"
    if rank == 0:
        with socket.socket() as s:
            s.bind(("", 0))
            port = s.getsockname()[1]
        temporary = path.with_suffix(".new")
        temporary.write_text(f"{_address()} {port}\n")
        temporary.replace(path)
    deadline = time.monotonic() + MEET_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has not said within {MEET_SECONDS:g} s where to meet: {path}")
        list(path.parent.iterdir())  # makes a network disk look anew
        time.sleep(0.1)
    host, port = path.read_text().split()
    return host, int(port)


def _address() -> str:
    """A name of this node that the others can resolve."""
    for name in (os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()):
        try:
            socket.getaddrinfo(name, None)
            if name:
                return name
        except OSError:
            pass
    return "127.0.0.1"
