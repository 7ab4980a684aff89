"""Any model of anybody's, scaled against a small one of the same architecture: init, parameter groups, forward multipliers.

    scalings = scale(model, base, optimizer="adamw")
    init_(model, scalings)
    optimizer = torch.optim.AdamW(param_groups(model, scalings, lr=...))     # lr as tuned on the base

At the base's own size every multiplier is exactly 1, and training is the ordinary one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from spectral_mup.optim.stacked import shard_like
from spectral_mup.scaling import apply
from spectral_mup.scaling import forward_multipliers as forward_pass
from spectral_mup.scaling.scale import ModelScaling, kinds_known, scale
from spectral_mup.scaling.table import one_rule, tensor_row
from spectral_mup.theory.growth import KINDS, named_parameters, owners
from spectral_mup.theory.rules import Multipliers

__all__ = ["ModelScaling", "explain", "init_", "make_optimizers", "multipliers", "param_groups", "scale", "set_multipliers_"]


def init_(
    model: nn.Module, scalings: ModelScaling, *, std: float | Mapping[str, float | None] | None = None, seed: int | None = None
) -> None:
    """Draw every weight from a normal with the base's std times Scaling.init_std. Twice is as good as once.

    std   of the base model: a number, or {kind: number, or None for fan_in^-1/2}; by default as measured in `base`, or on the
          meta device config.initializer_range, or fan_in^-1/2 (1 for embeddings)
    seed  default: that of torch.manual_seed

    Biases, gains, constants and frozen parameters stay as built; a padding_idx row is 0. A draw depends on the seed, the
    tensor's name and shape alone, so it is the same on every device and however the tensor is sharded.
    """
    seed, held = torch.initial_seed() if seed is None else seed, owners(model)
    for name, p in _known(model, scalings).items():
        growth, base = scalings.growths[name], scalings.base_std[name]
        if isinstance(std, Mapping):
            base = apply.base_std(growth, std)
        elif std is not None:
            base = None if len(scalings.shapes[name]) < 2 else std
        if base is None or not p.requires_grad:
            continue
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        draw = torch.randn(p.shape, generator=generator).mul_(base * scalings[name].init_std)
        for module in held[id(p)]:
            if getattr(module, "padding_idx", None) is not None:
                draw[module.padding_idx] = 0.0
        with torch.no_grad():
            p.copy_(shard_like(draw.to(p.device, p.dtype), p))


def param_groups(
    model: nn.Module,
    scalings: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
    algorithm: str | None = None,
) -> list[dict[str, Any]]:
    """Groups for one torch optimizer: the base model's lr, λ and ε times each tensor's multipliers.

    lr            as tuned on the base; where an optimizer leaves some kinds to a partner (Muon to AdamW), in units of the
                  first, the partner's share is declared in conf/optimizer
    weight_decay  λ of the base, coupled to the lr as in torch; a number, or {kind: number} for every kind
    eps           of the base; default: as conf/optimizer declares
    independent   λ is the shrink per step at the peak of the schedule, whatever the lr (arXiv 1711.05101)
    algorithm     which tensors, where the optimizer is several ("muon", "adamw"); `make_optimizers` does all at once

    A group keeps its peak lr in `base_lr`: a schedule must multiply it. Frozen parameters are in no group.
    Raises ValueError where groups of several algorithms would be one list.
    """
    groups = _groups(model, scalings, lr, weight_decay, eps, independent)
    if algorithm is not None and algorithm not in groups:
        raise ValueError(f"algorithm={algorithm!r}: it trains no tensor here; known: {', '.join(groups)}")
    if algorithm is None and len(groups) > 1:
        raise ValueError(
            f"optimizer {scalings.optimizer.name} is several, {', '.join(groups)}: use make_optimizers(model, scalings, "
            f"lr=...), or a list for each, as in param_groups(..., algorithm={next(iter(groups))!r})"
        )
    return groups[algorithm] if algorithm else [group for mine in groups.values() for group in mine]


def make_optimizers(
    model: nn.Module,
    scalings: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
) -> list[torch.optim.Optimizer]:
    """One torch optimizer per algorithm, of the class and with the arguments that conf/optimizer declares; see param_groups."""
    groups = _groups(model, scalings, lr, weight_decay, eps, independent)
    algorithms = scalings.optimizer.algorithms
    for name in groups:
        if algorithms[name].target is None:
            raise ValueError(
                f"optimizer {name}: only its law is known, not its class; build it from param_groups(model, scalings, ...)"
            )
    return apply.make_optimizers(algorithms, groups)


def explain(
    scalings: ModelScaling,
    *,
    lr: float = 1.0,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
) -> str:
    """A table: each tensor's kind, growth, init std, lr, λ, ε and multiplier, and the numbers of the forward pass."""
    base = _base_values(scalings, lr, weight_decay, eps)
    rows = []
    for name, scaling in scalings.items():
        values = {key: of[name] for key, of in base.items()} | {"init_std": scalings.base_std[name]}
        shape, growth, algorithm = scalings.shapes[name], scalings.growths[name], scalings.algorithm[name]
        rows.append(tensor_row(name, shape, growth, scaling, values, algorithm, scalings.multipliers, independent))
    if not rows:
        return "no parameters"
    rule = scalings.rule
    text = one_rule(f"{rule.name}, {scalings.optimizer.name}", rule.source, rows, asdict(multipliers(scalings)))
    return "\n".join([text, *(f"note: {note}" for note in scalings.notes)])


def multipliers(scalings: ModelScaling) -> Multipliers:
    """The numbers to put into one's own forward pass: attention is the scale of q·k itself, NaN if no module has a head_dim."""
    return forward_pass.absolute(scalings.multipliers, scalings.attention)


def set_multipliers_(model: nn.Module, scalings: ModelScaling) -> list[str]:
    """Put the multipliers into the forward pass, by hooks and attributes; says what was set and what is left to do.

    Attention: the `scaling` of modules that have a head_dim, as in transformers. Logits: the input of every output layer, in
    training and in generation. Branches: the last linear map of those of GPT-2 and Llama. Twice is as good as once.
    Call it before the first forward pass of a compiled model, and again after loading a state_dict into a new model.
    """
    return forward_pass.set_multipliers_(
        model, scalings.multipliers, scalings.growths, scalings.attention, scalings.residual_blocks
    )


def _known(model: nn.Module, scalings: ModelScaling) -> dict[str, nn.Parameter]:
    """Parameters by name. Raises ValueError unless they are those that `scale` saw."""
    found = named_parameters(model)
    for name, p in found.items():
        shape = scalings.shapes.get(name)
        if shape != tuple(p.shape):
            raise ValueError(
                f"{name}: of shape {tuple(p.shape)}, but these scalings are for {shape or 'no such parameter'}; "
                "call scale(model, base) on this model"
            )
    return found


def _base_values(
    scalings: ModelScaling, lr: float, weight_decay: float | Mapping[str, float], eps: float | None
) -> dict[str, dict[str, Any]]:
    """{lr, weight_decay, eps: {name: value in the base model}}."""
    decay = weight_decay if isinstance(weight_decay, Mapping) else {kind: weight_decay for kind in KINDS}
    missing = [kind for kind in KINDS if kind not in decay]
    if missing or set(decay) - set(KINDS):
        raise ValueError(f"weight_decay={dict(decay)}: give a number, or one for each of {', '.join(KINDS)}")
    if len(set(decay.values())) > 1 and not kinds_known(scalings.growths):
        raise ValueError(
            "weight_decay: differs by kind, but no dim grows from base to model, so kinds are unknown; "
            "tell by a third instance, as in scale(model, base, wider=build(2 * width))"
        )
    values: dict[str, dict[str, Any]] = {"lr": {}, "weight_decay": {}, "eps": {}}
    for name, growth in scalings.growths.items():
        algorithm = scalings.optimizer.algorithms[scalings.algorithm[name]]
        values["lr"][name] = apply.base_lr(lr, growth, algorithm)
        values["weight_decay"][name] = apply.for_kind(growth, decay)
        values["eps"][name] = algorithm.eps if eps is None else eps
    return values


def _groups(
    model: nn.Module,
    scalings: ModelScaling,
    lr: float,
    weight_decay: float | Mapping[str, float],
    eps: float | None,
    independent: bool,
) -> dict[str, list[dict[str, Any]]]:
    _known(model, scalings)
    base = _base_values(scalings, lr, weight_decay, eps)
    return apply.param_groups(model, scalings, **base, owner=scalings.algorithm, independent=independent)
