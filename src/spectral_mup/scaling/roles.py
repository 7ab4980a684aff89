"""What linear map, table or vector each parameter of a model is: by the class of its module, by what is said, or by its use."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from spectral_mup.scaling.inspect import is_conv1d, is_table, named_modules, named_parameters, own_parameters, owners
from spectral_mup.scaling.trace import how_used
from spectral_mup.theory.growth import GrowthError, ParameterInfo

# Modules of torch whose weights are stored (out, in), recurrent ones and attention too.
STORED_OUT_IN = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
MAPS = ("linear_out_in", "linear_in_out")
KEPT = "parametrizations"  # where torch's parametrize keeps what a weight is made of


@dataclass(frozen=True)
class Layout:
    """What bare parameters are, by names or patterns of names as in "layers.*.experts.w1"; see `scale`."""

    embeddings: Sequence[str] = ()
    linear_out_in: Sequence[str] = ()
    linear_in_out: Sequence[str] = ()

    def of(self, name: str) -> str | None:
        """Return the argument that names the parameter, or None. Raises GrowthError if several do."""
        told = [f.name for f in fields(self) if any(fnmatchcase(name, pattern) for pattern in _names(getattr(self, f.name)))]
        if len(told) > 1:
            raise GrowthError(f"{name}: named in {told[0]}= and in {told[1]}=; leave it in one of them")
        return told[0] if told else None

    def check(self, names: Iterable[str]) -> None:
        """Raise GrowthError on a name that matches none of these parameters."""
        known = list(names)
        for f in fields(self):
            for pattern in _names(getattr(self, f.name)):
                if not any(fnmatchcase(name, pattern) for name in known):
                    raise GrowthError(f"{pattern}: no parameter of this name; check {f.name}=")


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def inspect_parameters(model: Any, layout: Layout = Layout()) -> dict[str, ParameterInfo]:
    """Return {parameter name: ParameterInfo}, whatever device the model is on.

    Linear maps count as (fan_out, fan_in) however they are stored; a convolution's fan_in is in/groups · its kernel's size, a
    stack of matrices has the fans of one. A bare parameter is what `layout` says, else what its module does with it in a
    forward pass without memory (trace.py). Raises GrowthError on a name that the model lacks.
    """
    held, parameters = owners(model), named_parameters(model)
    layout.check(parameters)
    roles = {name: layout.of(name) or _role_by_class(held[id(p)], p) for name, p in parameters.items()}
    roles |= _roles_by_use(model, {name: p for name, p in parameters.items() if roles[name] is None and p.requires_grad})
    return {name: _info(tuple(p.shape), roles[name], held[id(p)], p.requires_grad) for name, p in parameters.items()}


def _info(shape: tuple[int, ...], role: str | None, modules: Sequence[Any], trained: bool) -> ParameterInfo:
    n = math.prod(shape)
    if role == "embeddings":
        return ParameterInfo((1, n), "table", (n, 1))
    if role == "table":
        return ParameterInfo(shape, "table", (shape[1], 1))
    if role == "convolution":
        return ParameterInfo(shape, "map", _fans_of_convolution(modules[0], shape))
    if role in MAPS and len(shape) < 2:  # to one number, as in x @ v
        return ParameterInfo(shape, "map", (1, n))
    if role in MAPS:
        one, other = shape[-2:]
        return ParameterInfo(shape, "map", (one, other) if role == "linear_out_in" else (other, one))
    return ParameterInfo(shape, "unknown", None) if role is None and trained else ParameterInfo(shape, "vector", (n, 1))


def _role_by_class(modules: Sequence[Any], p: Any) -> str | None:
    """Return what the class of a module that holds a parameter says it is; None where none does."""
    module = modules[0]
    own = next(name for name, q in own_parameters(module) if q is p)
    if own.endswith("bias") or isinstance(module, nn.LayerNorm | nn.RMSNorm) or _is_gain_of_weight_norm(module, p):
        return "vector"
    if p.ndim < 2:
        return "vector" if p.ndim < 1 or type(module).__module__.startswith("torch.") else None
    if any(is_table(module) for module in modules):
        return "table"
    if isinstance(module, _ConvNd) and p.ndim > 2:
        return "convolution"
    if is_conv1d(module):
        return "linear_in_out"
    if p.ndim == 2 and isinstance(module, STORED_OUT_IN) and "weight" in own:
        return "linear_out_in"
    if p.ndim == 3 and isinstance(transposed := getattr(module, "is_transposed", None), bool):  # the experts of transformers
        return "linear_in_out" if transposed else "linear_out_in"
    return None


def _is_gain_of_weight_norm(module: Any, p: Any) -> bool:
    """Return whether a parameter is g in the weight g · v/‖v‖ of either of torch's weight_norm."""
    own = dict(module.named_parameters(recurse=False))
    kept = module.parametrizations.values() if is_parametrized(module) else ()
    return any(q is p and name.endswith("_g") and f"{name[:-1]}v" in own for name, q in own.items()) or any(
        isinstance(of_weight[0], _WeightNorm) and of_weight.original0 is p for of_weight in kept
    )


def _roles_by_use(model: Any, unclear: Mapping[str, Any]) -> dict[str, str | None]:
    """Return {bare parameter: its role by what a forward pass of its module does with it, or else one of the model}.

    One of a single dimension is a vector unless it multiplies; what a parametrization keeps of a matrix whose use is not seen
    is taken to be stored as nn.Linear's.
    """
    modules = named_modules(model)
    uses = functools.cache(lambda module: how_used(modules[module]))
    roles: dict[str, str | None] = {}
    for name, p in unclear.items():
        of_weight = re.match(rf"((?:.*?\.)?){KEPT}\.", name)  # is used where its weight is
        holder = of_weight[1].rstrip(".") if of_weight else name.rpartition(".")[0]
        used = uses(holder).get(name.removeprefix(f"{holder}."), set()) or (uses("").get(name, set()) if p.ndim > 1 else set())
        role = next(iter(used)) if len(used) == 1 and used != {"other"} else None
        if p.ndim < 2:
            role = role if role in MAPS else "vector"
        elif p.ndim == 2 and re.search(rf"{KEPT}\.\w+\.original\d*$", name):
            role = role or "linear_out_in"
        roles[name] = role
    return roles


def _fans_of_convolution(module: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the fans of a kernel (out, in/groups, *kernel), or transposed (in, out/groups, *kernel)."""
    return module.out_channels, module.in_channels // module.groups * math.prod(shape[2:])
