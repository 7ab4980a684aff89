"""A CUDA graph for the CPU: records the operations of a step without their effect, and replays them on the same tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_SYNCS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Tape(TorchDispatchMode):
    """Like a CUDA graph it keeps Python numbers as they were, and refuses to wait for a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Any]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # tensors that were changed, and what they were
        self._own: set[int] = set()  # addresses of what was made here

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in HOST_SYNCS, f"{func} waits for the device"
        if func._schema.is_mutable:
            for t in (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
                if t.untyped_storage().data_ptr() not in self._own and id(t) not in self.before:
                    self.before[id(t)] = (t, t.clone())
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not func._schema.is_mutable:
            known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            self._own |= {x.untyped_storage().data_ptr() for x in made} - known
        self.operations.append((func, args, kwargs, made))
        return out

    def undo(self) -> None:
        for tensor, value in self.before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(made, again, strict=True):
                if new.data_ptr() != old.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """In place of cuda_graph.capture."""
    tape, generator = Tape(), torch.get_rng_state()
    with tape:
        step()
    with torch.no_grad():
        tape.undo()
    torch.set_rng_state(generator)
    return tape.replay
