"""See from a forward pass on the meta device, which computes nothing, what a module does with its parameters."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SAME = {Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.contiguous, Tensor.clone}
TURNED = {Tensor.t, Tensor.transpose, Tensor.swapaxes, torch.t, torch.transpose}
TURNED |= {Tensor.T.__get__, Tensor.mT.__get__}  # pyright: ignore[reportAttributeAccessIssue]
RESHAPED = {Tensor.view, Tensor.view_as, Tensor.reshape, Tensor.reshape_as, torch.reshape}
PRODUCTS = {torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__}
PRODUCTS |= {Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}
MULTIPLES = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__}
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
                uses = Uses(named, twin.buffers())
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
            done = any(_runs(twin, x, Uses({}, ())) for x in likely_inputs(twin))
    except Exception:  # anybody's code, run on what it was not written for
        return []
    return [part for part in parts if done and part not in called]


class Weight(NamedTuple):
    """A tensor made of parameters alone, as W + B @ A is; what they are shows where it meets an activation.

    Attributes:
        tensor: Itself.
        leaves: (parameter, whether it is transposed in it), of more than one dimension unless it stands alone.
        plain: False of products, and of multiples by a number, which may depend on the width.
    """

    tensor: Tensor
    leaves: frozenset[tuple[str, bool]]
    plain: bool = True


class Uses(TorchFunctionMode):
    """Mode that collects what is done with parameters while it is open."""

    def __init__(self, named: Mapping[str, Tensor], buffers: Iterable[Tensor]) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}
        self._weights = {id(p): Weight(p, frozenset({(name, False)})) for name, p in named.items()}
        self._constants = {id(x): x for x in buffers}  # known to depend on no input, as noise and states of zeros

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        read = given[:1] if function in SAME else given  # x.type_as(w) does nothing with w
        weights = {i: self._weights[id(x)] for i, x in enumerate(read) if id(x) in self._weights}
        others = [x for x in _tensors(given) if id(x) not in self._weights]
        constant = all(id(x) in self._constants for x in others)
        made = self._made(function, given, list(weights.values()), others, out) if weights else None
        if made:
            self._weights[id(out)] = made
            return out
        for i, weight in weights.items():
            constant &= not self._meets(function, i, given, weight, out)
        for x in _tensors([given[0] if out is None and given else out]):  # None: of what writes into its first argument
            if constant:
                self._constants[id(x)] = x
            else:
                self._constants.pop(id(x), None)
                self._weights.pop(id(x), None)
        return out

    def _made(self, function: Any, given: list[Any], weights: list[Weight], others: list[Tensor], out: Any) -> Weight | None:
        """Return the weight that a function makes of weights; None where it makes something else."""
        first, *more = weights
        leaves = frozenset(leaf for w in weights if not more or w.tensor.ndim > 1 for leaf in w.leaves)
        same = function is Tensor.__getitem__ and not _looks_up(*given)
        if function in SAME or same or (function in RESHAPED and out.shape == first.tensor.shape):
            return first._replace(tensor=out)
        if function in TURNED:
            return Weight(out, frozenset((name, not turned) for name, turned in first.leaves), first.plain)
        if function in SUMS and all(id(x) in self._constants for x in others):
            return Weight(out, leaves, all(w.plain for w in weights))
        product = function in PRODUCTS and all(w.tensor.ndim > 1 for w in weights) and more
        if not others and (product or (function in MULTIPLES and not more)):
            return Weight(out, leaves, plain=False)
        return None

    def _meets(self, function: Any, i: int, given: list[Any], weight: Weight, out: Any) -> bool:
        """Note what is done with a weight; return whether that shows what it is."""
        if (function is F.linear and i == 1) or function in PRODUCTS:
            told = weight.plain or len(weight.leaves) > 1
            second = function is not F.linear and (i == 1) != (function is Tensor.__rmatmul__)
            uses = {turned: "linear_in_out" if second != turned else "linear_out_in" for turned in (False, True)}
            if weight.tensor.ndim < 2 and all(id(x) in self._weights for x in given):  # v @ W: v is what W reads
                return False
        elif function is F.embedding or function in SUMS or function is Tensor.__getitem__:
            told, uses = weight.plain, dict.fromkeys((False, True), "embeddings")
        elif isinstance(out, Tensor):
            told, uses = False, {}
        else:
            return False
        for name, turned in weight.leaves:
            self.seen.setdefault(name, set()).add(uses[turned] if told else "other")
        return told


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists of them."""
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


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
    matrices = [p for p in module.parameters() if p.ndim > 1] or module.parameters()
    sides = [n for p in matrices for n in reversed(p.shape)]
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
