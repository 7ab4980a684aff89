"""Put scalings on a model: init and parameter groups."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_mup.config.optimizer_spec import Algorithm
from spectral_mup.theory.growth import Growth, monomial, named_parameters
from spectral_mup.theory.rules import Multipliers, Rule, Scaling, UpdateScaling


def scale_all(
    growths: Mapping[str, Growth], rule: Rule, laws: Mapping[str, UpdateScaling], forward: Multipliers, m_depth: float = 1.0
) -> dict[str, Scaling]:
    """{parameter name: Scaling}; `laws` gives the optimizer of each kind of tensor (`fixed` follows `vector`)."""
    return {name: rule.scale(g, for_kind(g, laws), forward, m_depth) for name, g in growths.items()}


def for_kind(growth: Growth, laws: Mapping[str, Any]) -> Any:
    """Whatever `laws` holds for this kind of tensor; nobody names an optimizer for `fixed`, which follows `vector`."""
    return laws["vector" if growth.kind == "fixed" else growth.kind]


def base_std(growth: Growth, std: Mapping[str, float | None]) -> float | None:
    """Init std in the base model: std[kind], or fan_in^-1/2 where that is None. Vectors have none: they stay as built."""
    if growth.kind == "vector" or growth.kind not in std:
        return None
    fixed = std[growth.kind]
    return growth.base_shape[1] ** -0.5 if fixed is None else fixed


def base_lr(lr: float, growth: Growth, algorithm: Algorithm) -> float:
    """lr of the tensor in the base model: that of the optimizer, times its algorithm's share and powers of the base shape."""
    fan_out, fan_in = growth.base_shape
    return lr * algorithm.lr * monomial(algorithm.lr_shape, {"fan_out": fan_out, "fan_in": fan_in})


@torch.no_grad()
def init_(
    model: nn.Module,
    scalings: Mapping[str, Scaling],
    growths: Mapping[str, Growth],
    std: Mapping[str, float | None],
    seed: int,
) -> None:
    """Normal init with std base_std · Scaling.init_std, drawn on the CPU in the order of the parameters.

    The draw depends on `seed` and shapes alone, never on the device. Biases and gains keep what their modules set (0 and 1).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        base = base_std(growths[name], std)
        if base is not None:
            draw = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            p.copy_(draw.mul_(base * scalings[name].init_std))


def param_groups(
    model: nn.Module,
    scalings: Mapping[str, Scaling],
    *,
    lr: Mapping[str, float],
    weight_decay: Mapping[str, float],
    eps: Mapping[str, float | None],
    owner: Mapping[str, str],
    independent: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """{optimizer: groups}, one group per distinct (lr, weight decay, ε), in the order of the parameters.

    lr, weight_decay, eps and owner give each parameter's base values and optimizer by name. A group keeps its peak lr in
    `base_lr`, so a schedule multiplies and never overwrites, and the multiplier that its ε carries in `eps_scale`. With
    `independent`, λ is the shrink per step at the peak of the schedule (W ← (1 − λ·schedule)·W, arXiv 1711.05101),
    whatever the lr.
    """
    groups: dict[str, dict[tuple, dict[str, Any]]] = {}
    for name, p in named_parameters(model).items():
        if not p.requires_grad:
            continue
        s, base_eps = scalings[name], eps[name]
        peak = lr[name] * s.lr
        decay = weight_decay[name] / peak if independent else weight_decay[name] * s.weight_decay
        values = {"lr": peak, "base_lr": peak, "weight_decay": decay}
        if base_eps is not None:
            values |= {"eps": base_eps * s.eps, "eps_scale": s.eps}
        mine = groups.setdefault(owner[name], {})
        group = mine.setdefault(tuple(values.values()), {"params": [], "names": []} | values)
        group["params"].append(p)
        group["names"].append(name)
    return {optimizer: list(by_value.values()) for optimizer, by_value in groups.items()}


def make_optimizers(
    algorithms: Mapping[str, Algorithm], groups: Mapping[str, list[dict[str, Any]]]
) -> list[torch.optim.Optimizer]:
    """One torch optimizer per algorithm that has groups: its `target`, a class or where it is found, with its `args`."""
    optimizers = []
    for name, algorithm in algorithms.items():
        if name in groups:
            args = {k: tuple(v) if isinstance(v, list) else v for k, v in algorithm.args.items()}
            target = algorithm.target
            make = pkgutil.resolve_name(target) if isinstance(target, str) else target
            assert make is not None
            optimizers.append(make(groups[name], lr=1.0, **args))
    return optimizers
