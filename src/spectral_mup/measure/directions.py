"""Measure how the spectral norm of an optimizer's direction grows with width, without being told.

The direction U is what the lr multiplies: U = −ΔW/lr. Models of a ladder of widths train for some steps. Each step is rescaled
per tensor, so that its effective update has the norm update·‖W‖₂ of the base model, times √(m_out/m_in): every width then
trains as the spectral condition asks, whatever the law is, and no lr need be known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.optim.linalg import spectral_norms
from spectral_mup.scaling.apply import for_kind
from spectral_mup.scaling.build import Parametrization
from spectral_mup.theory.growth import Growth, named_parameters

FIRST_LR = 2.0**-10  # of the first step, before any direction is known; it only decides how well the step is rounded
LOSS_SCALE = 16.0


class DeriveError(ValueError):
    """An optimizer or a ladder that cannot be measured; the message says why and what to change."""


@dataclass(frozen=True)
class LadderModel:
    """One width of a ladder: what the formula says of it but for the unknown size law, and how to train it.

    fresh       seed to an initialised model
    optimizers  model to its optimizers, weight decay 0
    gradients   (model, optimizers, seed, step, loss_scale) to the loss of a step, times loss_scale, its gradients in p.grad
    """

    width: int
    p: Parametrization
    fresh: Callable[[int], nn.Module]
    optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]]
    gradients: Callable[[nn.Module, list[torch.optim.Optimizer], int, int, float], Tensor]


def check_ladder(growths: Mapping[int, Mapping[str, Growth]]) -> None:
    """Every dim that a kind says grows must have grown from each width to the next. Raises DeriveError naming the tensor."""
    widths = sorted(growths)
    if len(widths) < 3 or len(set(widths)) < len(growths):
        raise DeriveError(f"widths {widths}: a slope needs three widths or more, as in [64, 128, 256]")
    grew = False
    for name, first in growths[widths[0]].items():
        for small, large in zip(widths, widths[1:], strict=False):
            a, b = growths[small][name], growths[large][name]
            should = {"embedding": (True, False), "vector": (True, False), "readout": (False, True)}.get(
                first.kind, (None, None)
            )
            for side, must, old, new in zip(("fan_out", "fan_in"), should, a.shape, b.shape, strict=True):
                if must and new <= old:
                    raise DeriveError(
                        f"{name}: its {side} should grow with width but is {old} at width {small} and {new} at width {large}; "
                        "nothing can be learned from such a ladder"
                    )
            if first.kind == "hidden":
                if a.shape == b.shape:
                    raise DeriveError(
                        f"{name}: a growing matrix has shape {a.shape} at width {small} and at width {large} alike"
                    )
                grew = True
    if not grew:
        raise DeriveError("no hidden matrix of this model grows with width: there is nothing to derive")


def measure_directions(
    ladder: Sequence[LadderModel],
    *,
    seeds: Sequence[int],
    steps: int,
    update: float,
    on_run: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> list[dict[str, Any]]:
    """Rows {width, seed, loss_scale, step, tensor, kind, label, algorithm, ratios, direction, lr}, one a step and tensor.

    direction is ‖U‖₂, lr what makes the wanted update of it; label says how the tensor grows, as 'hidden (m, m)'; ratios are
    the quantities that size laws are written in. One more run at the base width, its loss × 16, tells whether U follows the
    size of the gradient. on_run sees (widths done, their sum, seconds so far).
    """
    labels = {name: _label(growth) for name, growth in ladder[-1].p.growths.items()}
    runs = [(run, seed, 1.0) for seed in seeds for run in ladder] + [(ladder[0], seeds[0], LOSS_SCALE)]
    total, base_norms, rows, start = sum(r.width for r, *_ in runs), {}, [], time.monotonic()
    done = 0
    for run, seed, loss_scale in runs:
        if seed not in base_norms:  # the base comes first
            base_norms[seed] = _weight_norms(ladder[0].fresh(seed))
        wanted = {name: update * norm * _target(run, name) for name, norm in base_norms[seed].items()}
        rows += [row | {"label": labels[row["tensor"]]} for row in _train(run, seed, steps, wanted, loss_scale)]
        done += run.width
        on_run(done, total, time.monotonic() - start)
    return rows


def _label(growth: Growth) -> str:
    """'readout (1, m)': kind, and which of (fan_out, fan_in) grow."""
    return f"{growth.kind} ({', '.join('m' if m != 1 else '1' for m in (growth.m_out, growth.m_in))})"


@torch.no_grad()
def _weight_norms(model: nn.Module) -> dict[str, float]:
    """‖W‖₂ by name; a vector as if its entries were 1, a zero matrix as if they had std fan_in^-1/2."""
    norms = {}
    for name, p in named_parameters(model).items():
        norm = spectral_norms([_matrix(p.detach())])[0] if p.ndim > 1 else 0.0
        norms[name] = norm or (p.numel() ** 0.5 if p.ndim < 2 else 1.0)
    return norms


def _target(run: LadderModel, name: str) -> float:
    """Growth of ‖ΔW‖₂ that the spectral condition asks of the parameter: √(m_out/m_in)/c."""
    growth = run.p.growths[name]
    return (growth.m_out / growth.m_in) ** 0.5 / _multiplier(run, growth)


def _multiplier(run: LadderModel, growth: Growth) -> float:
    return {"readout": run.p.forward.logits, "embedding": run.p.forward.embedding}.get(growth.kind, 1.0)


def _train(run: LadderModel, seed: int, steps: int, wanted: Mapping[str, float], loss_scale: float) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    model = run.fresh(seed)
    optimizers = run.optimizers(model)
    parameters = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    names = {id(p): name for name, p in parameters.items()}
    groups = [(group, [names[id(p)] for p in group["params"]]) for o in optimizers for group in o.param_groups]
    for group, _ in groups:
        group["lr"] = FIRST_LR
    rows = []
    for step in range(steps):
        loss = run.gradients(model, optimizers, seed, step, loss_scale)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        for optimizer in optimizers:
            try:
                optimizer.step()
            except Exception as error:
                raise DeriveError(
                    f"{type(optimizer).__name__}.step() failed on an ordinary gradient ({type(error).__name__}: {error}); "
                    "only optimizers that step on p.grad alone can be derived"
                ) from error
            optimizer.zero_grad(set_to_none=True)
        directions = _rescale(parameters, before, groups, wanted)
        if not all(d < float("inf") for d in directions.values()) or not bool(loss.isfinite()):
            raise DeriveError(f"width {run.width}, step {step + 1}: the loss or an update is not finite; lower update")
        for name, norm in directions.items():
            growth = run.p.growths[name]
            if growth.kind == "fixed":
                continue
            c = _multiplier(run, growth)
            ratios = growth.ratios() | {"c": c, "a": 1.0, "s": run.p.scalings[name].init_std}
            row = {"width": run.width, "seed": seed, "loss_scale": loss_scale, "step": step + 1, "tensor": name}
            row |= {"kind": growth.kind, "algorithm": for_kind(growth, run.p.laws).name, "ratios": ratios}
            rows.append(row | {"direction": norm, "lr": wanted[name] / norm})
    return rows


@torch.no_grad()
def _rescale(
    parameters: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
    groups: Sequence[tuple[dict[str, Any], list[str]]],
    wanted: Mapping[str, float],
) -> dict[str, float]:
    """Give every update its wanted norm, set the lrs to what would have done so, and return ‖U‖₂ by name."""
    updates = {name: p.detach() - before[name] for name, p in parameters.items()}
    norms = spectral_norms([_matrix(u) for u in updates.values()])
    moved = {name: norm for name, norm in zip(updates, norms, strict=True) if norm > 0}
    directions = {}
    for group, names in groups:
        mine = [name for name in names if name in moved]
        for name in mine:
            directions[name] = moved[name] / group["lr"]
            parameters[name].copy_(before[name] + updates[name] * (wanted[name] / moved[name]))
        if mine:
            ratios = torch.tensor([wanted[name] / directions[name] for name in mine], dtype=torch.float64)
            group["lr"] = float(ratios.log().mean().exp())
    return directions


def _matrix(t: Tensor) -> Tensor:
    return t.flatten(1) if t.ndim > 1 else t[:, None]
