"""See from a forward pass on the meta device, which computes nothing, what a module does with its parameters."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SAME = {Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.contiguous, Tensor.clone}
TURNED = {Tensor.t, Tensor.transpose, Tensor.swapaxes, torch.t, torch.transpose}
TURNED |= {Tensor.T.__get__, Tensor.mT.__get__}  # pyright: ignore[reportAttributeAccessIssue]
PRODUCTS = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}
TRIES = 24  # inputs that a module of unknown inputs is run on


def how_used(module: nn.Module) -> dict[str, set[str]]:
    """Return {parameter name: what the forward pass does with it}, as `scale`'s arguments that would say so, or "other".

    Nothing is said of a parameter that is not reached: where the forward pass takes more than one tensor, or fails before.
    """
    if any(hasattr(p, "device_mesh") for p in module.parameters()):
        return {}
    best: dict[str, set[str]] = {}
    try:
        with torch.random.fork_rng(devices=[]):
            twin = _without_memory(module)
            named = dict(twin.named_parameters())
            for x in likely_inputs(twin):
                uses = Uses(named)
                done = _runs(twin, x, uses)
                best = max(best, uses.seen, key=len)
                if done:
                    return uses.seen
    except Exception:  # anybody's code, run on what it was not written for
        return best
    return best


def not_called(module: nn.Module, parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Return those of its parts that a forward pass on the meta device does not call; none where no forward pass can be run."""
    try:
        with torch.random.fork_rng(devices=[]):
            twin, called = _without_memory(module), set()
            for mine, copied in zip(module.modules(), twin.modules(), strict=True):
                copied.register_forward_hook(lambda *_, mine=mine: called.add(mine))
            done = any(_runs(twin, x, Uses({})) for x in likely_inputs(twin))
    except Exception:  # anybody's code, run on what it was not written for
        return []
    return [part for part in parts if done and part not in called]


class Uses(TorchFunctionMode):
    """Mode that collects what is done with parameters while it is open."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}
        self._views = {id(p): (p, name, False) for name, p in named.items()}  # whether it is transposed

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        for i, x in enumerate(given):
            if id(x) in self._views:
                self._note(function, i, given, out)
        return out

    def _note(self, function: Any, i: int, given: list[Any], out: Any) -> None:
        _, name, turned = self._views[id(given[i])]
        if function in SAME:
            self._views[id(out)] = (out, name, turned)
        elif function in TURNED:
            self._views[id(out)] = (out, name, not turned)
        elif function is F.linear and i == 1:
            self._say(name, "linear_in_out" if turned else "linear_out_in")
        elif function in PRODUCTS:
            second = (i == 1) != (function is Tensor.__rmatmul__)
            self._say(name, "linear_in_out" if second != turned else "linear_out_in")
        elif function is F.embedding or function in SUMS or (function is Tensor.__getitem__ and _looks_up(*given)):
            self._say(name, "embeddings")
        elif function is Tensor.__getitem__:
            self._views[id(out)] = (out, name, turned)
        elif isinstance(out, Tensor):
            self._say(name, "other")

    def _say(self, name: str, use: str) -> None:
        self.seen.setdefault(name, set()).add(use)


def _looks_up(table: Tensor, index: Any) -> bool:
    """Return whether rows are taken out of a table by their numbers."""
    return table.ndim == 2 and isinstance(index, Tensor) and index.ndim > 0


def _without_memory(module: nn.Module) -> nn.Module:
    """Copy the module to the meta device; no value is read."""
    memo: dict[int, Any] = {}
    for t in (*module.parameters(), *module.buffers()):
        meta = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(meta, t.requires_grad) if isinstance(t, nn.Parameter) else meta
    return copy.deepcopy(module, memo)


def likely_inputs(module: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that its forward pass may take: token ids, or features as many as a parameter has on a side."""
    ids = torch.zeros((2, 3), device="meta", dtype=torch.long)
    reads_ids = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
    sides = [n for p in module.parameters() if p.ndim > 1 for n in reversed(p.shape)]
    features = [
        torch.empty(shape, device="meta") for n in dict.fromkeys(sides) for shape in ((2, n), (2, 3, n), (2, sides[-1], n))
    ]
    yield from [ids, *features[:TRIES]] if reads_ids else [*features[:TRIES], ids]


def _runs(module: nn.Module, x: Tensor, uses: Uses) -> bool:
    """Return whether the forward pass takes such a tensor; what was seen until it failed stays seen."""
    try:
        with torch.device("meta"), uses:
            module(x)
    except Exception:  # a user's forward pass may raise anything on a tensor that it was not written for
        return False
    return True
