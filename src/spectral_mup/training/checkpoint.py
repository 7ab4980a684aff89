"""Checkpoints of a run: one file per step, of whole tensors, however many processes trained it.

So a run may resume on another number of devices, sharded or not.
"""

import errno
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.training.trainer import Trainer
from spectral_mup.util.files import write_atomic
from spectral_mup.util.log import log

KEPT_CHECKPOINTS = 2
DAMAGED = ".damaged"  # appended to the name of a checkpoint that was moved aside
FOLDER = 0x10  # attribute of a folder in an archive: torch reads nothing for it and returns uninitialised memory


def save_checkpoint(folder: RunFolder, trainer: Trainer, auto: dict[str, str]) -> None:
    """Write ckpt/<step>.pt atomically from the main process and keep the last two; every process must call it.

    Raises ClaimedError if this process has lost the run.
    """
    processes = trainer.processes
    if processes.is_main:
        folder.check_claim()
    state = trainer.state_dict() | {"auto": auto}
    if processes.is_main:
        buffer, written = io.BytesIO(), _path(folder, trainer.step_number)
        torch.save(state, buffer)
        write_atomic(written, buffer.getvalue())
        others = [path for path in folder.checkpoint_files() if path != written]  # never the one just written
        for old in others[: 1 - KEPT_CHECKPOINTS]:
            old.unlink()
    processes.broadcast(None)  # no rank continues before it is written


def load_checkpoint(folder: RunFolder, trainer: Trainer, auto: dict[str, str]) -> dict[str, str]:
    """Resume the trainer from the newest checkpoint that is whole, if any, and return what `auto` meant when it was written.

    Without a checkpoint, returns `auto`. The main process moves damaged ones aside. One that cannot be read, or does not fit
    in memory, need not be damaged: it stays, and OSError, MemoryError or torch's RuntimeError is raised; RuntimeError also if
    another rank does not see the file.
    """
    processes, parameters = trainer.processes, trainer.model.parameters()
    sharded = any(hasattr(p, "device_mesh") for p in parameters)
    place = torch.device("cpu") if sharded else next(trainer.model.parameters()).device  # whole tensors may not fit the device
    state = _newest(folder, place) if processes.is_main else None
    step = processes.broadcast(None if state is None else state["step"])
    if step is None:
        return processes.broadcast(auto)  # the main process decides: machines may differ
    if not processes.is_main:
        state = _load(_path(folder, step), place)
    if state is None:
        raise RuntimeError(f"{_path(folder, step)}: rank {processes.rank} cannot read it; paths.runs must be on a shared disk")
    trainer.load_state_dict(state)
    return state["auto"]


def _path(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"{step:09d}.pt"


def _newest(folder: RunFolder, place: torch.device) -> dict[str, Any] | None:
    """Return the newest checkpoint that is whole; damaged ones before it are renamed, so that they no longer count."""
    for path in reversed(folder.checkpoint_files()):
        if (state := _load(path, place)) is not None:
            return state
        path.replace(path.with_name(f"{path.name}{DAMAGED}"))
        log.warning("%s is damaged and was moved aside, to %s%s", path, path.name, DAMAGED, extra={"run": folder.run_id})
    return None


def _load(path: Path, place: torch.device) -> dict[str, Any] | None:
    """Read a checkpoint; None if the file is damaged, or is not one of ours."""
    if not _is_whole(path):
        return None
    try:
        state = torch.load(path, map_location=place, weights_only=True)
    except (pickle.UnpicklingError, EOFError):
        return None
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # the reader checks more of the archive's headers
            raise
        return None
    ours = isinstance(state, dict) and "auto" in state and state.get("step") == int(path.stem)
    return state if ours else None


def _is_whole(path: Path) -> bool:
    """Return whether it is a file of torch's: a zip archive whose parts have the checksums written with them."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            as_folder = any(part.external_attr & FOLDER for part in parts)
            return not as_folder and any(p.filename.endswith("/data.pkl") for p in parts) and archive.testzip() is None
    except OSError as error:
        if error.errno != errno.EINVAL:  # as of a damaged offset
            raise
    except MemoryError:
        raise
    except Exception:  # a damaged archive fails in many ways
        pass
    return False
