"""Checkpoints of a run: whole tensors in one file a step, whatever number of processes trained and however they shard.

So a run may go on with another number of devices, sharded or not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.optim.stacked import StackedOptimizer, shard_like, whole
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.training.distributed import ProcessGroup
from spectral_mup.util.files import write_atomic

KEPT_CHECKPOINTS = 2


def save_checkpoint(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    auto: Mapping[str, str],
    processes: ProcessGroup,
) -> None:
    """Every rank calls it, and the leader writes ckpt/<step>.pt atomically and keeps the last two.

    Raises ClaimedError if the run is no longer ours.
    """
    if processes.is_main:
        folder.check_claim()
    state = {
        "step": step,
        "auto": dict(auto),
        "model": _gathered(model.state_dict(), processes.is_main),
        "optimizers": [_gathered(o.state_dict(), processes.is_main) for o in optimizers],
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    if processes.is_main:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(_path(folder, step), buffer.getvalue())
        for old in sorted(folder.checkpoints.glob("*.pt"))[:-KEPT_CHECKPOINTS]:
            old.unlink()
    processes.broadcast(None)  # no rank goes on before it is written


def load_checkpoint(
    folder: RunFolder,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    auto: dict[str, str],
    device: torch.device,
    processes: ProcessGroup,
) -> tuple[int, dict[str, str]]:
    """Load the newest checkpoint that the leader can read; its step (0 if there is none) and what `auto` meant so far.

    Restores torch's generators where one process trains alone. Raises RuntimeError where another rank cannot read it.
    """
    like = model.state_dict()
    place = torch.device("cpu") if any(map(_is_sharded, like.values())) else device  # the whole may not fit the device
    state = _newest(folder, place) if processes.is_main else None
    step = processes.broadcast(None if state is None else state["step"])
    if step is None:
        return 0, processes.broadcast(auto)  # what it means may differ from machine to machine
    if not processes.is_main:
        state = _load(_path(folder, step), place)
    if state is None:
        raise RuntimeError(f"{_path(folder, step)}: rank {processes.rank} cannot read it; paths.runs must be on a shared disk")
    model.load_state_dict({name: shard_like(w.to(device), like[name]) for name, w in state["model"].items()})
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        if not isinstance(optimizer, StackedOptimizer):  # those keep the whole state on every rank
            _shard_state(saved, optimizer, device)
        optimizer.load_state_dict(saved)
    if processes.size == 1:
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
    return step, state["auto"]


def _gathered(value: Any, keep: bool) -> Any:
    """A state_dict with each DTensor whole, in main memory: all ranks gather, but only who is to `keep` it does."""
    if isinstance(value, Mapping):
        return {key: _gathered(v, keep) for key, v in value.items()}
    if isinstance(value, list):
        return [_gathered(v, keep) for v in value]
    if _is_sharded(value):
        full = whole(value)
        return full.cpu() if keep else None
    return value


def _shard_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Cut what an optimizer's saved state holds entry by entry as the parameters are."""
    for mine, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for p, index in zip(mine["params"], theirs["params"], strict=True):
            state = saved["state"].get(index, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[name] = shard_like(value.to(device), p)


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "device_mesh")


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
