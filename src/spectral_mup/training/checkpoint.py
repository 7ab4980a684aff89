"""Checkpoints of a run: whole tensors in one file a step, whatever number of processes trained and however they shard.

So a run may resume with another number of devices, sharded or not.
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
FOLDER = 0x10  # attribute of a part of an archive for which torch reads nothing, into memory that is not cleared


def save_checkpoint(folder: RunFolder, trainer: Trainer, auto: dict[str, str]) -> None:
    """Write ckpt/<step>.pt atomically from the main process and keep the last two; every process calls it.

    Raises ClaimedError if the run is no longer ours.
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
    """Resume the trainer from the newest checkpoint that is whole; what `auto` meant when it was written, `auto` without one.

    The main process moves damaged ones aside. That a file cannot be read, or does not fit the memory, may pass and says nothing
    of it: raises OSError, MemoryError or torch's RuntimeError, and RuntimeError where another rank does not see the file.
    """
    processes, parameters = trainer.processes, trainer.model.parameters()
    sharded = any(hasattr(p, "device_mesh") for p in parameters)
    place = torch.device("cpu") if sharded else next(trainer.model.parameters()).device  # the whole may not fit the device
    state = _newest(folder, place) if processes.is_main else None
    step = processes.broadcast(None if state is None else state["step"])
    if step is None:
        return processes.broadcast(auto)  # what it means may differ from machine to machine
    if not processes.is_main:
        state = _load(_path(folder, step), place)
    if state is None:
        raise RuntimeError(f"{_path(folder, step)}: rank {processes.rank} cannot read it; paths.runs must be on a shared disk")
    trainer.load_state_dict(state)
    return state["auto"]


def _path(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"{step:09d}.pt"


def _newest(folder: RunFolder, place: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that is one; those that are none are renamed, so that they count for nothing."""
    for path in reversed(folder.checkpoint_files()):
        if (state := _load(path, place)) is not None:
            return state
        path.replace(path.with_name(f"{path.name}.damaged"))
        log.warning("%s is damaged and was moved aside, to %s.damaged", path, path.name, extra={"run": folder.run_id})
    return None


def _load(path: Path, place: torch.device) -> dict[str, Any] | None:
    """What was saved; None if the file is not whole, or not of ours."""
    if not _is_whole(path):
        return None
    try:
        state = torch.load(path, map_location=place, weights_only=True)
    except (pickle.UnpicklingError, EOFError):
        return None
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # which checks more of the archive's headers
            raise
        return None
    ours = isinstance(state, dict) and "auto" in state and state.get("step") == int(path.stem)
    return state if ours else None


def _is_whole(path: Path) -> bool:
    """Whether it is a file of torch's, a zip archive whose parts have the checksums that were written with them."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            as_folder = any(part.external_attr & FOLDER for part in parts)
            return not as_folder and any(p.filename.endswith("/data.pkl") for p in parts) and archive.testzip() is None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a damaged offset
            raise
    except MemoryError:
        raise
    except Exception:  # a damaged archive fails in many ways
        pass
    return False
