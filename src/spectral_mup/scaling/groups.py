"""From a scaling to torch's parameter groups and optimizers."""

import math
import numbers
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from spectral_mup.config.optimizer_spec import Algorithm
from spectral_mup.errors import ConfigError
from spectral_mup.optim.schedules import ScheduleWatch
from spectral_mup.optim.stacked import StackedOptimizer
from spectral_mup.scaling.inspect import is_vector, named_parameters
from spectral_mup.scaling.matrices import Parts, Split, acts_on_matrices, find_parts, stacked_parameters
from spectral_mup.scaling.scale import ModelScaling, kinds_known
from spectral_mup.theory.growth import KINDS, Growth, monomial
from spectral_mup.theory.rules import Scaling

Group = dict[str, Any]


def param_groups(
    model: nn.Module,
    scaling: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
    algorithm: str | None = None,
    split: Mapping[str, Split] = MappingProxyType({}),
    heads: Mapping[str, int] = MappingProxyType({}),
) -> list[Group]:
    """Return groups for one torch optimizer: the base model's lr, λ and ε times each tensor's multipliers.

    Muon, Shampoo and SOAP train a convolution as one matrix (out, rest), and bare experts (experts, out, in) one by one.

    A group keeps its peak lr in `base_lr`: a schedule must multiply it. OneCycleLR, CyclicLR and SWALR give all groups one lr
    unless they are given a list, as in max_lr=[g["lr"] for g in optimizer.param_groups], and those with an eta_min or min_lr
    end at that (optim/schedules.py); optimizers that make_optimizers builds, and ours, warn of it.

    Args:
        model: The module that was scaled.
        scaling: What `scale` returned.
        lr: As tuned on the base; where an optimizer leaves some kinds to a partner (Muon to AdamW), in units of the first, the
            partner's share is declared in conf/optimizer.
        weight_decay: λ of the base, coupled to the lr as in torch; a number, which gains and biases do not get, or {kind:
            number} for every kind.
        eps: ε of the base; default: as conf/optimizer declares.
        independent: Whether λ is the shrink per step at the peak of the schedule, whatever the lr (arXiv 1711.05101).
        algorithm: Which tensors, where the optimizer is several ("muon", "adamw"); `make_optimizers` does all at once.
        split: {name or pattern: parts} of weights that are several matrices along their output dimension, for Muon, Shampoo and
            SOAP: a number of equal parts, {"*.qkv.weight": 3}, or sizes, which grew as the whole did. Each trains as if it were
            a parameter of its own, decay apart, which is that of the first.
        heads: {name or pattern: features per head}: the same, of as many rows in the base; where heads grow, and not their
            number, give that as split=.

    Returns:
        Groups of parameters as torch's optimizers take them; frozen parameters are in none.

    Raises:
        ValueError: Groups of several algorithms would be one list, a number is negative or not finite, or weight_decay misses a
            kind.
    """
    groups = _groups(model, scaling, base_values(scaling, lr, weight_decay, eps), independent, split, heads)
    if algorithm is not None and algorithm not in groups:
        raise ValueError(f"algorithm={algorithm!r}: it trains no tensor here; known: {', '.join(groups)}")
    if algorithm is None and len(groups) > 1:
        raise ValueError(
            f"optimizer {scaling.optimizer.name} is several, {', '.join(groups)}: use make_optimizers(model, scaling, "
            f"lr=...), or a list for each, as in param_groups(..., algorithm={next(iter(groups))!r})"
        )
    return groups[algorithm] if algorithm else [group for of_algorithm in groups.values() for group in of_algorithm]


def make_optimizers(
    model: nn.Module,
    scaling: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
    split: Mapping[str, Split] = MappingProxyType({}),
    heads: Mapping[str, int] = MappingProxyType({}),
) -> list[torch.optim.Optimizer]:
    """Build one torch optimizer per algorithm, of the class and with the arguments that conf/optimizer declares.

    They warn where a schedule overwrites the ratios of their groups.

    Args:
        model: The module that was scaled.
        scaling: What `scale` returned.
        lr: As for `param_groups`, as are the following.
        weight_decay: λ of the base.
        eps: ε of the base.
        independent: Whether λ is the shrink per step.
        split: Weights that are several matrices.
        heads: Weights that are one matrix per head.

    Returns:
        The optimizers, in the order in which conf/optimizer lists their algorithms.

    Raises:
        ConfigError: Of an algorithm only the scaling is known, not its class, or that builds no optimizer.
        ValueError: As for `param_groups`.
    """
    optimizers = []
    groups = _groups(model, scaling, base_values(scaling, lr, weight_decay, eps), independent, split, heads)
    for name, algorithm in scaling.optimizer.algorithms.items():
        if name in groups:
            optimizers.append(_build(algorithm, groups[name]))
    return optimizers


def _build(algorithm: Algorithm, groups: list[Group]) -> torch.optim.Optimizer:
    make = algorithm.load()
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in algorithm.args.items()}
    said = f"optimizer.algorithms.{algorithm.name}.target={algorithm.target}"
    said = said if isinstance(algorithm.target, str) else f"optimizer={make!r}"
    try:
        optimizer = make(groups, lr=1.0, **args)
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from error
    except TypeError as error:
        given = ", ".join(["groups", "lr=1.0", *(f"{key}={value!r}" for key, value in args.items())])
        raise ConfigError(f"{said}: cannot be called with ({given}) ({error}); give a torch optimizer's class") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"{said}: builds {type(optimizer).__name__}, not a torch.optim.Optimizer; give a torch optimizer's class"
        )
    if not isinstance(optimizer, StackedOptimizer):  # those watch by themselves
        optimizer.register_step_pre_hook(ScheduleWatch())
    return optimizer


def check_shapes(model: nn.Module, scaling: ModelScaling) -> dict[str, nn.Parameter]:
    """Return the parameters by name. Raises ValueError unless they are those that `scale` saw."""
    _check_type("model", model, nn.Module, "give the module that was scaled")
    _check_type("scaling", scaling, ModelScaling, "give what scale(model, base) returns")
    parameters = named_parameters(model)
    for name, p in parameters.items():
        shape = scaling.shapes.get(name)
        if shape != tuple(p.shape):
            raise ValueError(
                f"{name}: of shape {tuple(p.shape)}, but this scaling is for {shape or 'no such parameter'}; "
                "call scale(model, base) on this model"
            )
    return parameters


def base_values(
    scaling: ModelScaling, lr: float, weight_decay: float | Mapping[str, float], eps: float | None
) -> dict[str, dict[str, Any]]:
    """Return {parameter name: {lr, weight_decay, spared, eps} in the base model}.

    A λ that is one number is for weights: vectors get 0, `spared` marks them, and are groups of their own whatever the number.
    Raises ValueError on a λ that misses a kind, and on a value that is not a number of at least 0.
    """
    _check_type("scaling", scaling, ModelScaling, "give what scale(model, base) returns")
    check_number("lr", lr)
    if eps is not None:
        check_number("eps", eps)
    for kind, value in weight_decay.items() if isinstance(weight_decay, Mapping) else [("", weight_decay)]:
        check_number(f"weight_decay of {kind}" if kind else "weight_decay", value)
    by_kind = isinstance(weight_decay, Mapping)
    decay = weight_decay if isinstance(weight_decay, Mapping) else dict.fromkeys(KINDS, weight_decay)
    if set(decay) != set(KINDS):
        raise ValueError(f"weight_decay={dict(decay)}: give a number, or one for each of {', '.join(KINDS)}")
    if len(set(decay.values())) > 1 and not kinds_known(scaling.growths):
        raise ValueError(
            "weight_decay: differs by kind, but no dim grows from base to model, so kinds are unknown; "
            "give a third instance, as in scale(model, base, wider=build(2 * width))"
        )
    values = {}
    for name, growth in scaling.growths.items():
        algorithm = scaling.optimizer.algorithms[scaling.algorithm[name]]
        spared = not by_kind and _is_vector(growth, scaling.shapes[name])
        values[name] = {
            "lr": lr * algorithm.lr * _lr_of_shape(algorithm, growth),
            "weight_decay": 0.0 if spared else decay[growth.trained_as],
            "spared": spared,
            "eps": algorithm.eps if eps is None else eps,
        }
    return values


def _check_type(argument: str, value: Any, wanted: type, fix: str) -> None:
    if not isinstance(value, wanted):
        raise ValueError(f"{argument}: {fix}, not {type(value).__name__}")


def check_number(argument: str, value: Any) -> None:
    """Raise ValueError unless the value of an argument is a finite number of at least 0."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument}={value!r}: give a number, at least 0")


def _is_vector(growth: Growth, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a gain or bias; one that does not grow is by its dimensions."""
    return growth.kind == "vector" or (growth.kind == "fixed" and is_vector(shape, growth))


def _groups(
    model: nn.Module,
    scaling: ModelScaling,
    base: Mapping[str, Mapping[str, Any]],
    independent: bool,
    split: Mapping[str, Split],
    heads: Mapping[str, int],
) -> dict[str, list[Group]]:
    """Return {algorithm: groups}, one group per distinct (lr, weight decay, ε, matrices), in the order of the parameters.

    `base_lr` is the peak lr, `eps_scale` the multiplier that the ε of the group carries.
    """
    parameters = check_shapes(model, scaling)
    algorithms = {name: scaling.optimizer.algorithms[scaling.algorithm[name]] for name in parameters}
    on_matrices = [name for name, p in parameters.items() if p.ndim > 1 and acts_on_matrices(algorithms[name])]
    stacked, parts = stacked_parameters(model), find_parts(model, scaling.growths, on_matrices, split, heads)
    groups: dict[str, dict[tuple, Group]] = {}
    for name, p in parameters.items():
        if not p.requires_grad:
            continue
        s, own = scaling[name], base[name]
        options: dict[str, Any] = {"stacked": stacked[name]} if name in stacked and name in on_matrices else {}
        if name in parts:
            s, options = _of_parts(scaling, name, algorithms[name], parts[name], options)
        peak = own["lr"] * s.lr
        if independent and peak == 0 and own["weight_decay"] > 0:
            raise ValueError(
                f"lr=0: {name} cannot shrink by an independent weight_decay={own['weight_decay']:g} at lr 0; give lr above 0, "
                "or independent=False"
            )
        decay = own["weight_decay"] / (peak or 1.0) if independent else own["weight_decay"] * s.weight_decay
        values = {"lr": peak, "base_lr": peak, "weight_decay": decay}
        if own["eps"] is not None:
            values |= {"eps": own["eps"] * s.eps, "eps_scale": s.eps}
        values |= options
        of_algorithm = groups.setdefault(scaling.algorithm[name], {})
        group = of_algorithm.setdefault((own["spared"], *values.items()), {"params": [], "names": []} | values)
        group["params"].append(p)
        group["names"].append(name)
    return {algorithm: list(by_value.values()) for algorithm, by_value in groups.items()}


def _of_parts(
    scaling: ModelScaling, name: str, algorithm: Algorithm, parts: Parts, options: dict[str, Any]
) -> tuple[Scaling, dict[str, Any]]:
    """Return the scaling of the first of a tensor's parts, in units of the whole's base lr, and the options of its group."""
    whole = scaling.growths[name]
    s, of_whole = scaling[name], _scaling(scaling, whole, algorithm)
    of_parts = [_scaling(scaling, part, algorithm) for part in parts.growths]
    lrs = [
        x.lr / of_whole.lr * _lr_of_shape(algorithm, part) / _lr_of_shape(algorithm, whole)
        for x, part in zip(of_parts, parts.growths, strict=True)
    ]
    first = of_parts[0]
    options = options | {"split": parts.split, "split_dim": parts.dim}
    if any(not math.isclose(lr, lrs[0]) for lr in lrs):
        options["split_lr"] = tuple(lr / lrs[0] for lr in lrs)
    own = Scaling(
        init_std=s.init_std,
        lr=s.lr * lrs[0],
        weight_decay=s.weight_decay * first.weight_decay / of_whole.weight_decay,
        eps=s.eps * first.eps / of_whole.eps,
    )
    return own, options


def _scaling(scaling: ModelScaling, growth: Growth, algorithm: Algorithm) -> Scaling:
    """Return the scaling of a tensor that grew so, but for the depth, which is the same for a tensor and its parts."""
    return scaling.rule.scale(growth, algorithm.update, scaling.multipliers)


def _lr_of_shape(algorithm: Algorithm, growth: Growth) -> float:
    """Return what multiplies the base lr of a tensor of this shape in the base model."""
    return monomial(algorithm.lr_shape, {"fan_out": growth.base_shape[0], "fan_in": growth.base_shape[1]})
