"""Find the end of every residual branch by forward passes: the module whose output is what the branch adds to the stream."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.scaling.inspect import branches_by_name, is_linear_map, is_table, named_modules, unwrap
from spectral_mup.scaling.trace import likely_inputs

LARGEST = 100_000_000  # parameters of a base that is run
PRECISION = 1e-4  # relative, of a forward pass in float32
PASS_THROUGH = (nn.Dropout, nn.Identity)  # what they put out is what they read
Call = tuple[list[Any], dict[str, Any]]  # what a block was given


class BranchError(ValueError):
    """Why the branches of a model were not found."""


class NotRun(BranchError):
    """A model that cannot be run without knowing what it takes."""


@dataclass(frozen=True)
class Branches:
    """Modules whose outputs are what the branches of blocks add; none, or by their names alone, for the reason in `doubt`."""

    ends: tuple[str, ...] = ()
    doubt: str = ""


def branches_of(
    model: nn.Module, base: nn.Module, residual_blocks: Sequence[str], mates: Mapping[str, str]
) -> dict[str, Branches]:
    """Return {prefix of blocks: their branches in the model}, by forward passes of the base, or by names if it cannot run."""
    names = list(named_modules(model))
    branches = {}
    for prefix in residual_blocks:
        try:
            ends = find_branches(base, (prefix,))
        except NotRun as error:
            by_name = _by_name(names, prefix)
            branches[prefix] = Branches(by_name, f"by their names, as {error}" if by_name else str(error))
        except BranchError as error:
            branches[prefix] = Branches((), str(error))
        else:
            blocks = _blocks(names, prefix)
            branches[prefix] = Branches(tuple(f"{block}.{end}" for block in blocks for end in ends[mates.get(block, block)]))
    return branches


def _by_name(names: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Return the ends that names tell, none unless two in each block do, as experts have others, and none behind a norm."""
    ends, blocks = tuple(branches_by_name(names, prefix)), _blocks(names, prefix)
    normed = any(re.search(r"post_(feedforward|mlp|ffn?)_(layer)?norm", name) for name in names)
    return ends if len(ends) == 2 * len(blocks) and not normed else ()


def _blocks(names: Iterable[str], prefix: str) -> list[str]:
    return [name for name in names if _is_block(name, (prefix,))]


@torch.no_grad()
def find_branches(base: nn.Module, residual_blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return {block: modules in it, from the last, whose outputs are what its branches add to x}, of every block so named.

    The base runs on the CPU with random weights, on token ids or features. From the last module of a block backwards, one is
    the end of a branch if the block's output is an affine function of a factor on its output, and not zero without it; it is
    then held at zero. Once all ends are, the output must be the input, as block(x) = x + Σ branches.
    Raises NotRun where the model cannot be run so, BranchError where a block is not of this form.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = _random_twin(unwrap(base))
        blocks = {name: m for name, m in named_modules(twin).items() if _is_block(name, residual_blocks)}
        calls = _calls(twin, blocks)
        of_kind: dict[str, tuple[str, ...]] = {}
        found = {}
        for name, block in blocks.items():
            kind = f"{block}{[tuple(p.shape) for p in block.parameters()]}"
            if kind not in of_kind:
                try:
                    of_kind[kind] = _ends(name, BlockRun(block, calls[name]))
                except BranchError:
                    raise
                except Exception as error:  # anybody's code, run with factors that it was not written for
                    raise NotRun(f"{name} could not be run again ({_first_line(error)})") from None
            found[name] = of_kind[kind]
        return found


def _is_block(name: str, residual_blocks: Sequence[str]) -> bool:
    return any(name.startswith(prefix) and name.removeprefix(prefix).isdigit() for prefix in residual_blocks)


class BlockRun:
    """A block, run on what it once read with factors on the outputs of its modules; `order`: its modules as they end."""

    def __init__(self, block: nn.Module, call: Call) -> None:
        self.block, self.call = block, call
        self.order: dict[nn.Module, str] = {}
        self._factors: Mapping[nn.Module, float] = {}
        self._names = {module: name for name, module in block.named_modules() if name}
        for module in self._names:
            module.register_forward_hook(self._scale)

    def __call__(self, factors: Mapping[nn.Module, float]) -> Tensor:
        self._factors = factors
        args, named = self.call
        return first_tensor(self.block(*map(_copy, args), **{key: _copy(x) for key, x in named.items()}))

    def _scale(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        if _scalable(output) is None:
            return None
        self.order.setdefault(module, self._names[module])
        factor = self._factors.get(module)
        return None if factor is None else scale_first(output, factor)


def _ends(name: str, run: BlockRun) -> tuple[str, ...]:
    plain = run({})
    x = next((t for t in (*run.call[0], *run.call[1].values()) if isinstance(t, Tensor) and t.shape == plain.shape), None)
    if x is None:
        raise BranchError(f"{name} reads no tensor of the shape of its output")
    zeros: dict[nn.Module, float] = {}
    settled: set[nn.Module] = set()  # in a branch whose end is held at zero, or without effect
    for module in reversed(list(run.order)):
        if module in settled or isinstance(module, PASS_THROUGH):
            continue
        now, without = run(zeros), run(zeros | {module: 0.0})
        if _same(without, now):
            settled |= set(module.modules())
            continue
        half = run(zeros | {module: 0.5})
        if without.any() and _same(2 * half, now + without):
            inner = [m for m in reversed(list(run.order)) if is_linear_map(m) and m in set(module.modules())]
            equal = (m for m in inner if _same(run(zeros | {m: 0.5}), half) and _same(run(zeros | {m: 0.0}), without))
            zeros[next(equal, module)] = 0.0
            settled |= set(module.modules())
    if not zeros or not _same(run(zeros), x):
        raise BranchError(f"{name} is not its input plus the outputs of modules in it")
    return tuple(run.order[module] for module in zeros)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= PRECISION * (a.norm() + b.norm()))


def first_tensor(output: Any) -> Tensor:
    """Return the tensor that a block puts out, or the first of several. Raises BranchError if it puts out none."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else (output,)
    found = next((x for x in values if isinstance(x, Tensor)), None)
    if found is None:
        raise BranchError(f"a block puts out no tensor, but a {type(output).__name__}")
    return found


def scale_first(output: Any, factor: float) -> Any:
    """Return a module's output with its tensor, or the first of several, multiplied: one of numbers, not of indices."""
    at = _scalable(output)
    if at is None:
        return output
    if isinstance(output, Tensor):
        return output * factor
    scaled = [x * factor if i == at else x for i, x in enumerate(output)]
    return output._make(scaled) if hasattr(output, "_make") else type(output)(scaled)


def _scalable(output: Any) -> int | None:
    """Return which of several outputs is the first tensor of numbers, 0 of a tensor; None if there is none."""
    several = output if isinstance(output, tuple | list) else (output,)
    return next((i for i, x in enumerate(several) if isinstance(x, Tensor) and x.is_floating_point()), None)


def _first_line(error: Exception) -> str:
    return [*str(error).strip().splitlines(), type(error).__name__][0]


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _random_twin(model: nn.Module) -> nn.Module:
    """Copy the model to the CPU in float32, with random weights, so that no branch starts at zero, and buffers unchanged."""
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise NotRun(f"a base of {size:.2g} parameters is not run")
    memo: dict[int, Any] = {}
    for p in model.parameters():
        std = 1.0 if p.ndim < 2 else max(p.shape[1:]) ** -0.5
        memo[id(p)] = nn.Parameter(std * torch.randn(p.shape), requires_grad=False)
    for buffer in model.buffers():
        real = _placeholder(buffer) if buffer.is_meta else buffer.detach().cpu().clone()
        memo[id(buffer)] = real.float() if real.is_floating_point() else real
    twin = copy.deepcopy(model, memo).eval()
    if hasattr(twin, "config"):
        twin.config.use_cache = False  # type: ignore[union-attr]  # a block that is run again must not find its own keys
    return twin


def _placeholder(buffer: Tensor) -> Tensor:
    """Return 1 for what may be a factor or a frequency, 0 for what may be an index."""
    make = torch.ones if buffer.is_floating_point() or buffer.dtype == torch.bool else torch.zeros
    return make(buffer.shape, dtype=buffer.dtype)


def _calls(twin: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, Call]:
    """Record what each block is given in a forward pass of the model."""
    calls: dict[str, Call] = {}
    handles = [
        block.register_forward_pre_hook(
            lambda _block, args, named, name=name: calls.setdefault(name, ([*map(_copy, args)], named)) and None,
            with_kwargs=True,
        )
        for name, block in blocks.items()
    ]
    errors = []
    for x in _real(likely_inputs(twin), twin):
        calls.clear()
        try:
            twin(x)
        except Exception as error:  # anybody's code, run on what it may not be written for
            errors.append(_first_line(error))
        if calls.keys() == blocks.keys():
            break
    for handle in handles:
        handle.remove()
    if calls.keys() != blocks.keys():
        why = errors[0] if errors else "it does not reach every block"
        raise NotRun(f"the base could not be run ({why})")
    return calls


def _real(inputs: Iterable[Tensor], model: nn.Module) -> Iterable[Tensor]:
    """Yield values for tensors on the meta device: ids below the length of every table, or random features."""
    entries = min((int(m.weight.shape[0]) for m in model.modules() if is_table(m)), default=2)  # type: ignore[union-attr]
    for x in inputs:
        yield torch.randn(x.shape) if x.is_floating_point() else torch.randint(entries, x.shape)
