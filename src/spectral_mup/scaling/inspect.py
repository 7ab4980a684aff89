"""Look at an nn.Module: its parameters by name, who holds them, and what linear map each of them is."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd

from spectral_mup.theory.growth import GrowthError, ParameterInfo

# Last linear maps of the residual branches in a block, by the name of the list of blocks: GPT-2, and Llama and its like.
BRANCHES = {"h.": ("attn.c_proj", "mlp.c_proj"), "layers.": ("self_attn.o_proj", "mlp.down_proj")}
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrap(model: Any) -> Any:
    """The model inside torch.compile, DistributedDataParallel and their like."""
    while [name for name, _ in model.named_children()] in (["module"], ["_orig_mod"], ["_fsdp_wrapped_module"]):
        if next(model.parameters(recurse=False), None) is not None:
            break
        model = next(model.children())
    return model


def named_parameters(model: Any) -> dict[str, Any]:
    """Parameters by name, tied ones once, whatever the model or a part of it is wrapped in."""
    return {WRAPPERS.sub("", name): p for name, p in unwrap(model).named_parameters()}


def named_modules(model: Any) -> dict[str, Any]:
    """Modules by name, named as the parameters are."""
    return {WRAPPERS.sub("", f"{name}.").rstrip("."): module for name, module in unwrap(model).named_modules()}


def owners(model: Any) -> dict[int, list[Any]]:
    """{id of a parameter: the modules that hold it}; more than one where it is tied."""
    held: dict[int, list[Any]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            held.setdefault(id(p), []).append(module)
    return held


def inspect_parameters(model: Any, embeddings: Sequence[str] = ()) -> dict[str, ParameterInfo]:
    """{parameter name: ParameterInfo}, whatever device the model is on.

    `embeddings` names bare parameters that are looked up or added like an embedding (positions, class tokens). Linear maps
    count as (fan_out, fan_in) however they are stored; a convolution's fan_in is in/groups · its kernel's size. Raises
    GrowthError on an embedding that the model lacks.
    """
    held, found = owners(model), {}
    parameters = named_parameters(model)
    if missing := [name for name in embeddings if name not in parameters]:
        raise GrowthError(f"{missing[0]}: no parameter of this name to count as an embedding; check embeddings=")
    for name, p in parameters.items():
        modules, shape = held[id(p)], tuple(p.shape)
        if name in embeddings:
            found[name] = ParameterInfo((1, math.prod(shape)), None, True)
        else:
            table = any(isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag) for m in modules)
            found[name] = ParameterInfo(shape, _fans(shape, modules[0]), table)
    return found


def _fans(shape: tuple[int, ...], module: Any) -> tuple[int, int] | None:
    """(fan_out, fan_in) of a weight; None where the number of its dimensions does not say."""
    if len(shape) < 2:
        return None
    if isinstance(module, _ConvNd):  # (out, in/groups, *kernel), or transposed (in, out/groups, *kernel)
        return module.out_channels, module.in_channels // module.groups * math.prod(shape[2:])
    if is_conv1d(module):
        return shape[1], shape[0]
    return (shape[0], shape[1]) if len(shape) == 2 else None


def is_conv1d(module: Any) -> bool:
    """Whether it is the linear map of GPT-2 in transformers, whose weight is stored (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def tied_tables(model: Any) -> list[str]:
    """Names of embedding tables that are the weight of another layer too."""
    held, tables = owners(model), torch.nn.Embedding | torch.nn.EmbeddingBag
    return [
        name
        for name, p in named_parameters(model).items()
        if any(isinstance(m, tables) for m in held[id(p)]) and not all(isinstance(m, tables) for m in held[id(p)])
    ]


@dataclass(frozen=True)
class Attention:
    """Features a head, here and in the base model (None if no module says), and the base's `scaling` by module name."""

    head_size: tuple[float, float] | None = None
    base_scaling: Mapping[str, float] = field(default_factory=dict)


def read_attention_scaling(model: Any, base: Any) -> Attention:
    """Read `head_dim` and `scaling` off the modules that have them, as transformers' and torch's attention do."""
    sizes = [
        next((float(m.head_dim) for _, m in named_modules(x).items() if _is_number(m, "head_dim")), None) for x in (model, base)
    ]
    scaling = {name: m.scaling for name, m in named_modules(base).items() if scales_attention(m)}
    return Attention(None if sizes[0] is None or sizes[1] is None else (sizes[0], sizes[1]), scaling)


def _is_number(module: Any, attribute: str) -> bool:
    return isinstance(getattr(module, attribute, None), int | float)


def scales_attention(module: Any) -> bool:
    """Whether an attention module carries its scale of q·k as `scaling`, as those of transformers do."""
    return _is_number(module, "head_dim") and _is_number(module, "scaling")


def find_blocks(names: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of blocks whose branches have the names that GPT-2 or Llama gave them; none is guessed otherwise."""
    found = []
    for name in names:
        for blocks, branches in BRANCHES.items():
            for branch in branches:
                match = re.fullmatch(rf"((?:.*\.)?{re.escape(blocks)})\d+\.{re.escape(branch)}\.weight", name)
                found += [match[1]] if match else []
    return tuple(dict.fromkeys(found))
