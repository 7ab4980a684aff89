"""How the tensors of a base model start: the std of those that are drawn, and which stay as they are built."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from spectral_mup.optim.stacks import full_tensor
from spectral_mup.scaling.inspect import is_vector, named_parameters, owners
from spectral_mup.theory.growth import Growth, counterpart, in_first_block

SIGMAS = 5  # standard errors by which a sample may be off
FEW = 16  # values that say nothing of their std
PAIRS = 100  # fewer say nothing of a correlation
SEEN = 2**16  # values that are looked at for repetitions
DISTINCT = 256  # values of which half must differ in a sample, in any precision


@torch.no_grad()
def measure_base_std(
    base: nn.Module, growths: Mapping[str, Growth], tied: Sequence[str], blocks: Sequence[str], mates: Mapping[str, str]
) -> dict[str, float | None]:
    """Measure the init std of the base model's tensors: of their values, or on the meta device what config or fan_in says.

    None where a tensor stays as built: gains, constants, and values that are no independent sample of mean zero.
    """
    found, held = named_parameters(base), owners(base)
    declared = getattr(getattr(base, "config", None), "initializer_range", None)
    stds: dict[str, float | None] = {}
    for name, growth in growths.items():
        p = found[counterpart(name, mates)]
        if is_vector(p.shape, growth):
            stds[name] = _drawn_bias_std(p, held[id(p)][0])
        elif growth.kind == "vector":
            stds[name] = None
        elif not p.is_meta:
            stds[name] = sample_std(p)
        elif declared is not None:
            stds[name] = declared
        else:  # a tied table starts as the readout that it also is
            stds[name] = growth.base_shape[0] ** -0.5 if name in tied else growth.base_shape[1] ** -0.5
    return _pooled(stds, growths, blocks)


def sample_std(p: Any) -> float | None:
    """Return the std of values that look like an independent sample of mean zero, 0 where all are zero; None of any others.

    Within five standard errors: the mean, and the correlation of neighbours along each axis. Values that repeat, as in an
    identity or in equal rows, are not one either.
    """
    x = full_tensor(p.detach())
    x = (torch.view_as_real(x) if x.is_complex() else x).double().cpu()
    if not x.any():
        return 0.0
    std, n = float(x.std(correction=0)), x.numel()
    if len(x.flatten()[:SEEN].unique()) < min(n, DISTINCT) / 2 or abs(float(x.mean())) > SIGMAS * std / n**0.5:
        return None
    for axis in range(x.ndim):
        length = x.shape[axis] - 1
        pairs = (x.narrow(axis, 0, length) * x.narrow(axis, 1, length)).flatten() / std**2
        if len(pairs) >= PAIRS and abs(float(pairs.mean())) > SIGMAS / len(pairs) ** 0.5:
            return None
    return std


def _drawn_bias_std(p: Any, module: Any) -> float | None:
    """Return the std of a bias that torch's linear maps drew, uniform within ±fan_in^-1/2; None of others, or on meta."""
    if p is not getattr(module, "bias", None) or not isinstance(module, nn.Linear | _ConvNd) or p.is_meta:
        return None
    bound = math.prod(module.weight.shape[1:]) ** -0.5
    x = full_tensor(p.detach()).double()
    std, rms = bound / 3**0.5, float(x.square().mean().sqrt())
    constant = not x.any() or (len(x) > 1 and len(x.unique()) == 1)
    as_torch = bool((x.abs() <= bound).all()) and (len(x) < FEW or abs(rms - std) < std / 2)
    return std if as_torch and not constant else None


def base_init_std(growth: Growth, stds: Mapping[str, float | None]) -> float | None:
    """Return the init std in the base model by kind: stds[kind], or fan_in^-1/2 where that is None; None: it stays as built."""
    if growth.kind not in stds or growth.kind == "vector":
        return None
    fixed = stds[growth.kind]
    return growth.base_shape[1] ** -0.5 if fixed is None else fixed


def _pooled(stds: Mapping[str, float | None], growths: Mapping[str, Growth], blocks: Sequence[str]) -> dict[str, float | None]:
    """Give the stds of one tensor over the blocks as one number, where they agree within the error of a sample."""
    same_draw: dict[str, list[str]] = {}
    for name, std in stds.items():
        if std is not None:
            same_draw.setdefault(in_first_block(name, blocks), []).append(name)
    pooled = dict(stds)
    for names in same_draw.values():
        measured = [stds[name] or 0.0 for name in names]
        mean = (sum(s**2 for s in measured) / len(measured)) ** 0.5
        size = min(math.prod(growths[name].base_shape) for name in names)
        if all(abs(s - mean) <= SIGMAS * mean / (2 * size) ** 0.5 for s in measured):
            pooled |= dict.fromkeys(names, mean)
    return pooled
