"""Look at an nn.Module: its parameters by name, who holds them, its attention and its blocks."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from spectral_mup.theory.growth import Growth

# Last linear maps of the residual branches in a block, by the name of the list of blocks: GPT-2, and Llama and its like.
BRANCHES = {"h.": ("attn.c_proj", "mlp.c_proj"), "layers.": ("self_attn.o_proj", "mlp.down_proj")}
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrap(model: Any) -> Any:
    """Return the model inside torch.compile, DistributedDataParallel and their like."""
    while [name for name, _ in model.named_children()] in (["module"], ["_orig_mod"], ["_fsdp_wrapped_module"]):
        if next(model.parameters(recurse=False), None) is not None:
            break
        model = next(model.children())
    return model


def named_parameters(model: Any) -> dict[str, Any]:
    """Return parameters by name, tied ones once, whatever the model or a part of it is wrapped in."""
    return {WRAPPERS.sub("", name): p for name, p in unwrap(model).named_parameters()}


def parameter_names(model: Any) -> list[str]:
    """Return the names of parameters, of a tied one all: blocks may share theirs."""
    return [WRAPPERS.sub("", name) for name, _ in unwrap(model).named_parameters(remove_duplicate=False)]


def named_modules(model: Any) -> dict[str, Any]:
    """Return modules by name, named as the parameters are."""
    return {WRAPPERS.sub("", f"{name}.").rstrip("."): module for name, module in unwrap(model).named_modules()}


def owners(model: Any) -> dict[int, list[Any]]:
    """Return {id of a parameter: the modules that hold it}; more than one where it is tied.

    What torch's parametrize keeps of a weight is held by the module whose weight it is.
    """
    held: dict[int, list[Any]] = {}
    for module in model.modules():
        for _, p in own_parameters(module):
            held.setdefault(id(p), []).append(module)
    return held


def own_parameters(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module's own parameters by name, and by a weight's name what a parametrization keeps of it."""
    if isinstance(module, ParametrizationList):
        return
    yield from module.named_parameters(recurse=False)
    for name, kept in module.parametrizations.items() if is_parametrized(module) else ():
        yield from ((name, p) for p in kept.parameters(recurse=False))


def table_factors(model: Any) -> dict[str, float]:
    """Return {embedding module with a forward pass of its own: what it multiplies its rows by}, where that can be seen."""
    found = {}
    for name, module in named_modules(model).items():
        if is_table(module) and type(module).forward not in (torch.nn.Embedding.forward, torch.nn.EmbeddingBag.forward):
            factor = _table_factor(module)
            found |= {name: factor} if factor else {}
    return found


@torch.no_grad()
def _table_factor(module: Any) -> float | None:
    """Return what the module makes of rows of 1; where its buffers have no values, what Gemma's says it is."""
    memo: dict[int, Any] = {id(p): torch.nn.Parameter(torch.ones(()).expand(p.shape)) for p in module.parameters()}
    if any(buffer.is_meta for buffer in module.buffers()):
        return next(
            (float(x) for key in ("scalar_embed_scale", "scale") if _is_number(module, key) and (x := getattr(module, key))),
            None,
        )
    memo |= {id(buffer): buffer.detach().cpu().clone() for buffer in module.buffers()}
    try:
        out = copy.deepcopy(module, memo).forward(torch.ones((1, 1), dtype=torch.long))
    except Exception:  # anybody's code, run on what it may not be written for
        return None
    return float(out.float().mean()) if isinstance(out, torch.Tensor) and bool((out == out.flatten()[0]).all()) else None


def is_table(module: Any) -> bool:
    """Return whether the module is an embedding table."""
    return isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)


def is_linear_map(module: Any) -> bool:
    """Return whether the module is a linear map and nothing else, so that a factor on its input is one on the map's."""
    return isinstance(module, torch.nn.Linear | _ConvNd) or is_conv1d(module)


def is_conv1d(module: Any) -> bool:
    """Return whether the module is the linear map of GPT-2 in transformers, whose weight is stored (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_vector(shape: Sequence[int], growth: Growth) -> bool:
    """Return whether a tensor of this shape is of one dimension and no map to one number, which is (1, n)."""
    return len(shape) < 2 and growth.base_shape[1] == 1


def tied_tables(model: Any) -> list[str]:
    """Return the names of embedding tables that are the weight of another layer too."""
    held = owners(model)
    return [name for name, p in named_parameters(model).items() if len({is_table(m) for m in held[id(p)]}) > 1]


HEADS_UNKNOWN = "no module has a head_dim; if heads grow, scale q·k by the base's √head_dim over head_dim"
HEAD_SIZE = ("head_dim", "head_size", "attention_head_size", "d_head", "dim_head")
HEADS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads")
WIDTH = ("embed_dim", "n_embd", "hidden_size", "d_model", "dim")


@dataclass(frozen=True)
class Attention:
    """Features per head, here and in the base (None if no module says), and the base's `scaling` by module name.

    `unknown`: there seems to be attention, but no module says how large its heads are.
    """

    head_size: tuple[float, float] | None = None
    base_scaling: Mapping[str, float] = field(default_factory=dict)
    unknown: bool = False


def read_attention_scaling(model: Any, base: Any) -> Attention:
    """Read head size and `scaling` off the modules that have them, as transformers' and torch's attention do."""
    here, there = (next(filter(None, map(_head_size, named_modules(x).values())), None) for x in (model, base))
    scaling = {name: m.scaling for name, m in named_modules(base).items() if scales_attention(m)}
    sizes = None if here is None or there is None else (here, there)
    seems = any(re.search("att|query|qkv|q_proj", name.lower()) for name in named_parameters(model))
    return Attention(sizes, scaling, seems and sizes is None)


def _head_size(module: Any) -> float | None:
    """Return the features per head, as the module says or as its width over its heads; None where it does not."""
    said = next((float(getattr(module, key)) for key in HEAD_SIZE if _is_number(module, key)), None)
    if said is not None:
        return said
    heads, width = (
        next((float(getattr(module, key)) for key in keys if _is_number(module, key)), None) for keys in (HEADS, WIDTH)
    )
    return width / heads if heads and width else None


def _is_number(module: Any, attribute: str) -> bool:
    return isinstance(getattr(module, attribute, None), int | float)


def scales_attention(module: Any) -> bool:
    """Return whether an attention module carries its scale of q·k as `scaling`, as those of transformers do."""
    return _is_number(module, "head_dim") and _is_number(module, "scaling")


def find_blocks(names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of blocks whose branches have the names that GPT-2 or Llama gave them; none is guessed otherwise."""
    found = []
    for name in names:
        for blocks, branches in BRANCHES.items():
            for branch in branches:
                match = re.fullmatch(rf"((?:.*\.)?{re.escape(blocks)})\d+\.{re.escape(branch)}\.weight", name)
                found += [match[1]] if match else []
    return tuple(dict.fromkeys(found))


def branches_by_name(names: Iterable[str], prefix: str) -> list[str]:
    """Return the last linear maps of the branches of such blocks, where they have these names."""
    branches = next((last for blocks, last in BRANCHES.items() if f".{prefix}".endswith(f".{blocks}")), ())
    inside = [rf"{re.escape(prefix)}\d+\.{re.escape(branch)}" for branch in branches]
    return [name for name in names if any(re.fullmatch(pattern, name) for pattern in inside)]
