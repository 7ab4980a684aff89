"""Put a rule's multipliers into the forward pass of a model that was written without them, by hooks and attributes."""

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from spectral_mup.scaling.branches import Branches, scale_first
from spectral_mup.scaling.inspect import (
    HEADS_UNKNOWN,
    Attention,
    is_linear_map,
    is_table,
    named_modules,
    named_parameters,
    owners,
    scales_attention,
    unwrap,
)
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.scaling.trace import not_called
from spectral_mup.theory.growth import Growth, counterpart
from spectral_mup.theory.rules import Multipliers

TO_DO = "to do: "  # begins what set_multipliers_ has not set and the user must


def multipliers(scaling: ModelScaling) -> Multipliers:
    """Return the numbers to put into your own forward pass.

    Args:
        scaling: What `scale` returned.

    Returns:
        The multipliers of the forward pass; attention is the scale of q·k itself, 1/√head_dim of the base times its multiplier,
        NaN if no module has a head_dim.
    """
    head_size = scaling.attention.head_size
    return replace(
        scaling.multipliers, attention=scaling.multipliers.attention / (head_size[1] if head_size else math.nan) ** 0.5
    )


def set_multipliers_(model: nn.Module, scaling: ModelScaling) -> list[str]:
    """Put the multipliers into the forward pass, by hooks and attributes.

    Attention: the `scaling` of modules that have a head_dim, as in transformers. Logits: the input of every output layer, in
    training and in generation. Branches: the modules whose outputs they add, as forward passes of the base showed. A model
    with a method set_multipliers takes them there. Idempotent. Call it before the first forward pass of a compiled model, and
    again after loading a state_dict into a new model.

    Args:
        model: The module that was scaled.
        scaling: What `scale` returned.

    Returns:
        What was set, and what is left to do.

    Warns:
        UserWarning: Something is left to do.
    """
    said = apply_multipliers_(model, scaling)
    for left in said:
        if left.startswith(TO_DO):
            warnings.warn(f"set_multipliers_: {left}", stacklevel=2)
    return said


def apply_multipliers_(model: nn.Module, scaling: ModelScaling) -> list[str]:
    """Do the same as set_multipliers_ without a warning, for callers that look at what is left."""
    if hasattr(unwrap(model), "set_multipliers"):
        unwrap(model).set_multipliers(multipliers(scaling))
        return [f"set by {type(unwrap(model)).__name__}.set_multipliers"]
    modules, relative = named_modules(model), scaling.multipliers
    for module in modules.values():
        _unhook(module)
    return [
        *_set_attention(modules, relative.attention, scaling.attention, scaling.mates),
        *_set_logits(model, modules, relative.logits, scaling.growths),
        *_set_branches(modules, relative.branch, scaling),
        *_set_embeddings(modules, relative.embedding),
        *_set_tables(modules, scaling.table_factors),
    ]


def _set_attention(
    modules: Mapping[str, nn.Module], relative: float, attention: Attention, mates: Mapping[str, str]
) -> list[str]:
    mine = {name: module for name, module in modules.items() if scales_attention(module)}
    for name, module in mine.items():
        base = attention.base_scaling.get(counterpart(name, mates))
        if base is None:
            raise ValueError(f"{name}.scaling: the base model has no such module; build both of one class")
        module.scaling = base * relative  # type: ignore[assignment]
    if mine:
        return [f"attention: scaling {next(iter(mine.values())).scaling:.4g} in {len(mine)} modules"]
    if attention.unknown:
        return [f"{TO_DO}{HEADS_UNKNOWN}"]
    here, there = attention.head_size or (1.0, 1.0)
    if not math.isclose(relative, (there / here) ** 0.5):
        return [f"{TO_DO}scale q·k by {there**-0.5 * relative:.4g} in place of 1/√head_dim"]
    return []


def _set_logits(model: nn.Module, modules: Mapping[str, nn.Module], factor: float, growths: Mapping[str, Growth]) -> list[str]:
    if factor == 1:
        return []
    held = owners(model)
    names = {id(module): name for name, module in modules.items()}
    mine: dict[str, nn.Module] = {}
    bare = []
    for name, p in named_parameters(model).items():
        tied = growths[name].kind == "embedding" and len({is_table(m) for m in held[id(p)]}) > 1
        if growths[name].kind == "readout" or tied:
            maps = [m for m in held[id(p)] if is_linear_map(m)]
            mine |= {names[id(m)]: m for m in maps}
            bare += [] if maps else [name]
    for module in mine.values():
        module.register_forward_pre_hook(functools.partial(scale_input, factor=factor), with_kwargs=True)
    idle = [names[id(module)] for module in not_called(unwrap(model), [*mine.values()])]
    called = [name for name in mine if name not in idle]
    said = [f"logits × {factor:.4g} at {', '.join(called)}"] if called else []
    said += [f"{TO_DO}multiply the logits by {factor:.4g}: the forward pass does not call {name}" for name in idle]
    said += [f"{TO_DO}multiply what {name} puts out by {factor:.4g}: no module of its own carries it" for name in bare]
    return said or [f"{TO_DO}multiply the logits by {factor:.4g}"]


def _set_branches(modules: Mapping[str, nn.Module], factor: float, scaling: ModelScaling) -> list[str]:
    if factor == 1:
        return []
    said = []
    for prefix in scaling.residual_blocks:
        found = scaling.branches.get(prefix, Branches())
        for name in found.ends:
            modules[name].register_forward_hook(functools.partial(scale_output, factor=factor))
        doubt = f" ({found.doubt})" if found.doubt else ""
        if found.ends:
            said += [f"branches × {factor:.4g} at {len(found.ends)} modules of {prefix}{doubt}"]
        else:
            said += [f"{TO_DO}multiply the output of every residual branch in {prefix} by {factor:.4g}{doubt}"]
    return said


def _set_embeddings(modules: Mapping[str, nn.Module], factor: float) -> list[str]:
    mine = {name: m for name, m in modules.items() if isinstance(m, nn.Embedding | nn.EmbeddingBag)} if factor != 1 else {}
    for module in mine.values():
        module.register_forward_hook(functools.partial(scale_output, factor=factor))
    return [f"embeddings × {factor:.4g} at {', '.join(mine)}"] if mine else []


def _set_tables(modules: Mapping[str, nn.Module], factors: Mapping[str, float]) -> list[str]:
    for name, factor in factors.items():
        modules[name].register_forward_hook(functools.partial(scale_output, factor=factor))
    return [f"{name} × {factor:.4g}, as its own factor grows" for name, factor in factors.items()]


def scale_input(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], *, factor: float) -> tuple[Any, Any]:
    """Return factor · x, as a pre-hook, so that a bias is unchanged; x may be given by its name."""
    if inputs:
        return (inputs[0] * factor, *inputs[1:]), named
    first = next(iter(named))
    return (), named | {first: named[first] * factor}


def scale_output(_module: nn.Module, _inputs: Any, output: Any, *, factor: float) -> Any:
    """Return factor · (W·x + b), as a hook; of several tensors the first is multiplied."""
    return scale_first(output, factor)


def _unhook(module: nn.Module) -> None:
    """Take our hooks out again, those of a copy or of an earlier session too."""
    for hooks, ours in ((module._forward_hooks, scale_output), (module._forward_pre_hooks, scale_input)):
        for key in [key for key, hook in hooks.items() if getattr(hook, "func", None) is ours]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
