"""Stacks of parameters, and how their state lies in memory: stacked for the optimizer, shown per parameter as views.

Sharded parameters (DTensors) are gathered: a stack has them whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_mup.optim.matrices import MatrixView

Group = dict[str, Any]  # one of torch's param_groups
State = dict[str, Tensor]  # of a stack, every tensor with the leading axis n

# On a CPU, a parameter with this many entries is a stack of its own: copying it costs more than the calls that stacking saves.
LARGE = 2**16


class Stack(NamedTuple):
    """Parameters of one group, shape, dtype, device and age, all with gradients; tensors have the leading axis n = len(params).

    Weight, gradient and state of 16-bit parameters are float32: in their own dtype an average that moves by 1 − β
    per step would stand still. Weight and gradient may lie in the parameters' own memory: only read them.
    """

    group: Group
    params: list[Tensor]
    weight: Tensor
    gradient: Tensor
    state: State
    step: int  # steps that these parameters took so far
    view: MatrixView | None = None  # how they are read as matrices; None: each is taken whole

    def parts(self) -> "Iterator[tuple[str, Stack]]":
        """Yield its matrices, one stack per size of them, with the suffix of their state's names; itself if they are plain."""
        if self.view is None:
            yield "", self
            return
        gradients = self.view.take(self.gradient)
        for suffix, weight in self.view.take(self.weight).items():
            names = [name for name in self.state if name.endswith(suffix)]
            state = {name.removesuffix(suffix): self.state[name] for name in names}
            yield suffix, Stack(self.group, self.params, weight, gradients[suffix], state, self.step)


def same_kind(group: Group, state: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield (steps taken so far, parameters) of a group: those with gradients, together where they can be stacked."""
    kinds: dict[tuple[Any, ...], list[Tensor]] = {}
    for p in group["params"]:
        if p.grad is not None:
            alone = id(p) if p.device.type == "cpu" and p.numel() >= LARGE else 0
            sharded = (p.device_mesh, p.placements) if hasattr(p, "device_mesh") else None
            age = state[p].get("step", 0)
            kinds.setdefault((age, p.shape, p.dtype, p.device, sharded, alone), []).append(p)
    for (age, *_), params in kinds.items():
        yield age, params


def stack_of(group: Group, params: list[Tensor], step: int, view: MatrixView | None) -> Stack:
    """Stack parameters of one kind, with empty state."""
    dtype = stack_dtype(params[0])
    weight = _stack([full_tensor(p.detach()).to(dtype) for p in params])
    gradient = _stack([full_tensor(p.grad).to(dtype) for p in params])  # type: ignore[arg-type]
    return Stack(group, params, weight, gradient, {}, step, view)


def share_state(fresh: State, stack: Stack, state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Put views of a stack's fresh state into `state`, per parameter; values already there by the same name are kept."""
    for name, tensor in fresh.items():
        of_params = tensor if stack.view is None else tensor.unflatten(0, (len(stack.params), -1))
        for p, own in zip(stack.params, of_params.unbind(0), strict=True):
            if name in state[p]:
                own.copy_(state[p][name])
            state[p][name] = own


def by_parameter(values: list[Tensor], n: int) -> list[float]:
    """Average over the matrices of each of n parameters; `values` are (n · matrices,), one tensor per size of matrix."""
    return torch.cat([x.unflatten(0, (n, -1)) for x in values], 1).double().mean(1).tolist()


def named(group: Group) -> Iterator[tuple[str, Tensor]]:
    """Yield names and parameters of a group: its names if it has any (ours, or from torch's named_parameters)."""
    names = group.get("names") or group.get("param_names") or []
    for i, p in enumerate(group["params"]):
        yield names[i] if i < len(names) else f"parameter {i} of its group", p


def stack_dtype(p: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's state and direction: its own, but at least float32."""
    return torch.float32 if p.dtype.itemsize < 4 else p.dtype


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack to (n, *shape), without a copy if n is 1."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def full_tensor(t: Tensor) -> Tensor:
    """Return a tensor itself, or a DTensor with all its shards gathered."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t  # type: ignore[attr-defined]


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Return a tensor itself, or sharded as the DTensor `like` is; every process has it whole, so nothing is sent."""
    if not hasattr(like, "device_mesh"):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    copies = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(mesh, like.placements)  # type: ignore[attr-defined]
