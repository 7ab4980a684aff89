"""Checkpoints of a run: whole tensors in one file a step, whatever number of processes trained and however they shard.

So a run may resume with another number of devices, sharded or not.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.training.trainer import Trainer
from spectral_mup.util.files import write_atomic

KEPT_CHECKPOINTS = 2


def save_checkpoint(folder: RunFolder, trainer: Trainer, auto: dict[str, str]) -> None:
    """Write ckpt/<step>.pt atomically from the main process and keep the last two; every process calls it.

    Raises ClaimedError if the run is no longer ours.
    """
    processes = trainer.processes
    if processes.is_main:
        folder.check_claim()
    state = trainer.state_dict() | {"auto": auto}
    if processes.is_main:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(_path(folder, trainer.step_number), buffer.getvalue())
        for old in sorted(folder.checkpoints.glob("*.pt"))[:-KEPT_CHECKPOINTS]:
            old.unlink()
    processes.broadcast(None)  # no rank continues before it is written


def load_checkpoint(folder: RunFolder, trainer: Trainer, auto: dict[str, str]) -> dict[str, str]:
    """Resume the trainer from the newest checkpoint that the main process can read; what `auto` meant when it was written.

    Without one, the main process's `auto`. Raises RuntimeError where another rank cannot read that checkpoint.
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
    """The newest checkpoint that can be read."""
    states = (_load(path, place) for path in sorted(folder.checkpoints.glob("*.pt"), reverse=True))
    return next((state for state in states if state is not None), None)


def _load(path: Path, place: torch.device) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location=place, weights_only=True)
    except Exception as error:  # a damaged file fails in many ways (zip, pickle, EOF); each means: use the one before
        warnings.warn(f"{path} cannot be read and is skipped ({type(error).__name__}: {error})", stacklevel=2)
        return None
