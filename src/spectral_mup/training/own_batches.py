"""Batches from a function of the user's own as the task of a run: for models that are no language models."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spectral_mup import data
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.training.distributed import ProcessGroup
from spectral_mup.training.task import Task
from spectral_mup.training.trainer import Batch, own_loss


def own_task(run: RunConfig, own: data.OwnBatches, device: torch.device, processes: ProcessGroup) -> Task:
    """Make the task of a run from a function of the user's own.

    Micro-batch k of step s is make(seed, s·n + k), n micro-batches a step; validation is make(None, i), i from 0. The model
    returns its loss from a batch (see `own_loss`). Raises ConfigError on a batch that is neither a table nor a tuple.
    """
    t, n = run.train, processes.size * run.train.accumulate
    size = t.batch_size // n
    sized = {"batch_size": size} if "batch_size" in inspect.signature(own.make).parameters else {}

    def batch(seed: int | None, index: int) -> Batch:
        made = own.make(seed, index, **sized)
        if not isinstance(made, Mapping | tuple | list):
            raise ConfigError(f"data.target={own.name}: must return a dict or a tuple, not {type(made).__name__}")
        return _moved(made, device)

    def validation() -> Iterator[tuple[Batch, int]]:
        for index in range(max(1, t.eval_sequences // size)):
            yield batch(None, index), 1

    parts = range(processes.rank * t.accumulate, (processes.rank + 1) * t.accumulate)
    return Task(
        batches=lambda step: [batch(run.seed, step * n + part) for part in parts],
        loss=own_loss,
        sampled_loss=None,
        validation=validation,
        probe_batch=lambda model: lambda: own_loss(model, batch(None, 0)),
        static_text=None,
        about=lambda steps: {"tokens": None, "epochs": None, "corpus": {"name": own.name, "sha256": own.sha256}},
    )


def _moved(value: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return tuple(_moved(inner, device) for inner in value) if isinstance(value, tuple | list) else value
