"""Measure how the spectral norm of an optimizer's direction grows with width, without being told.

The direction U is what the lr multiplies: U = −ΔW/lr. Models of a ladder of widths train for some steps. Each step is rescaled
per tensor, so that its effective update has the norm update·‖W‖₂ of the base model, times √(m_out/m_in): every width then
trains as the spectral condition asks, whatever the law is, and no lr need be known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.optim.linalg import spectral_norms
from spectral_mup.scaling.inspect import named_parameters
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.theory.growth import Growth
from spectral_mup.training.trainer import Trainer

FIRST_LR = 2.0**-10  # of the first step, before any direction is known; it only decides how well the step is rounded
LOSS_SCALE = 16.0
INIT_SCALE = 8.0  # at 2 what Adam does elsewhere in training looks like half a power of the weights


class DeriveError(ValueError):
    """An optimizer or a ladder that cannot be measured; the message says why and what to change."""


@dataclass(frozen=True)
class LadderModel:
    """One width of a ladder, its scaling but for the unknown size law, and how to train it.

    `trainer`: (seed, loss_scale) to the Trainer of a freshly initialised model, weight decay 0, its loss times loss_scale.
    """

    width: int
    scaling: ModelScaling
    trainer: Callable[[int, float], Trainer]


def check_ladder(growths: Mapping[int, Mapping[str, Growth]]) -> None:
    """Check that every dim that a kind says grows has grown from each width to the next.

    Raises DeriveError naming the tensor.
    """
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
                        f"{name}: a growing matrix has shape {a.shape} both at width {small} and at width {large}"
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
    """Train the ladder and return one row per step and tensor.

    Its columns are width, seed, loss_scale, init_scale, step, tensor, kind, label, algorithm, ratios, direction, lr. direction
    is ‖U‖₂, lr what makes the wanted update of it; label says how the tensor grows, as 'hidden (m, m)'; ratios are the
    quantities that size laws are written in.

    Two more runs at the base width, one with its loss × 16 and one with all but its vectors × 8, show whether U follows the
    size of the gradient and that of the weight: a ladder has one init, under which laws can agree that differ under another.
    The last has no rows of what it did not scale, nor any where it is not finite.

    on_run sees (widths done, their sum, seconds so far). Raises DeriveError.
    """
    check_ladder({model.width: model.scaling.growths for model in ladder})
    labels = {name: _label(growth) for name, growth in ladder[-1].scaling.growths.items()}
    runs = [(model, seed, 1.0, 1.0) for seed in seeds for model in ladder]
    runs += [(ladder[0], seeds[0], LOSS_SCALE, 1.0), (ladder[0], seeds[0], 1.0, INIT_SCALE)]
    total, base_norms, rows, start = sum(model.width for model, *_ in runs), {}, [], time.monotonic()
    done = 0
    for model, seed, loss_scale, init_scale in runs:
        if seed not in base_norms:  # the base comes first
            base_norms[seed] = _weight_norms(ladder[0].trainer(seed, 1.0).model, ladder[0].scaling.growths)
        wanted = {name: update * norm * _target(model.scaling, name) for name, norm in base_norms[seed].items()}
        rows += [row | {"label": labels[row["tensor"]]} for row in _train(model, seed, steps, wanted, loss_scale, init_scale)]
        done += model.width
        on_run(done, total, time.monotonic() - start)
    return rows


def _label(growth: Growth) -> str:
    """Return 'readout (1, m)': kind, and which of (fan_out, fan_in) grow."""
    return f"{growth.kind} ({', '.join('m' if m != 1 else '1' for m in (growth.m_out, growth.m_in))})"


@torch.no_grad()
def _weight_norms(model: nn.Module, growths: Mapping[str, Growth]) -> dict[str, float]:
    """Return ‖W‖₂ by name; a vector as if its entries were 1, a zero matrix as if it had norm 1."""
    found = named_parameters(model)
    norms = norms_by_name({name: p.detach() for name, p in found.items()}, growths)
    return {name: p.numel() ** 0.5 if p.ndim < 2 else norms[name] or 1.0 for name, p in found.items()}


def _target(scaling: ModelScaling, name: str) -> float:
    """Return the growth of ‖ΔW‖₂ that the spectral condition asks of the parameter: √(m_out/m_in)/c."""
    growth = scaling.growths[name]
    return (growth.m_out / growth.m_in) ** 0.5 / scaling.multipliers.of(growth)


def _train(
    model: LadderModel, seed: int, steps: int, wanted: Mapping[str, float], loss_scale: float, init_scale: float
) -> list[dict[str, Any]]:
    trainer, scaling = model.trainer(seed, loss_scale), model.scaling
    named = named_parameters(trainer.model)
    scaled = [name for name, p in named.items() if p.ndim > 1 and bool(p.any())] if init_scale != 1 else []
    with torch.no_grad():
        for name in scaled:
            named[name].mul_(init_scale)
    rescaled = RescaledUpdates(trainer, wanted, scaling.growths)
    rows = []
    for step in range(1, steps + 1):
        loss = trainer.step(rescaled)
        directions = rescaled.directions
        finite = bool(loss.isfinite()) and all(d < float("inf") for d in directions.values())
        if not finite and init_scale != 1:
            return []
        if not finite:
            raise DeriveError(f"width {model.width}, step {step}: the loss or an update is not finite; lower update")
        for name, norm in directions.items():
            growth = scaling.growths[name]
            if growth.kind == "fixed" or init_scale != 1 and name not in scaled:
                continue
            ratios = growth.ratios() | {"c": scaling.multipliers.of(growth), "a": 1.0, "s": scaling[name].init_std}
            row = {"width": model.width, "seed": seed, "loss_scale": loss_scale, "init_scale": init_scale, "step": step}
            row |= {"tensor": name, "kind": growth.kind, "algorithm": scaling.algorithm[name], "ratios": ratios}
            rows.append(row | {"direction": norm, "lr": wanted[name] / norm})
    return rows


class RescaledUpdates(AbstractContextManager["RescaledUpdates"]):
    """Context of the optimizers' part of a step that gives every update its wanted norm.

    It sets the lrs to what would have done so, and keeps ‖U‖₂ by name in `directions`.
    """

    def __init__(self, trainer: Trainer, wanted: Mapping[str, float], growths: Mapping[str, Growth]) -> None:
        self.trainer, self.wanted, self.growths = trainer, wanted, growths
        self.parameters = {name: p for name, p in named_parameters(trainer.model).items() if p.requires_grad}
        self.directions: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}
        names = {p: name for name, p in self.parameters.items()}
        self._groups = [(g, [names[p] for p in g["params"]]) for o in trainer.optimizers for g in o.param_groups]
        for group, _ in self._groups:
            group["base_lr"] = FIRST_LR

    def __enter__(self) -> RescaledUpdates:
        self._before = {name: p.detach().clone() for name, p in self.parameters.items()}
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            names = ", ".join(type(optimizer).__name__ for optimizer in self.trainer.optimizers)
            raise DeriveError(
                f"{names}.step() failed on an ordinary gradient ({type(error).__name__}: {error}); "
                "only optimizers that step on gradients alone can be derived"
            ) from error
        if error is None:
            self._rescale()

    @torch.no_grad()
    def _rescale(self) -> None:
        updates = {name: p.detach() - self._before[name] for name, p in self.parameters.items()}
        moved = {name: norm for name, norm in norms_by_name(updates, self.growths).items() if norm > 0}
        self.directions = {}
        for group, names in self._groups:
            in_group = [name for name in names if name in moved]
            for name in in_group:
                self.directions[name] = moved[name] / group["lr"]
                self.parameters[name].copy_(self._before[name] + updates[name] * (self.wanted[name] / moved[name]))
            if in_group:
                ratios = torch.tensor([self.wanted[n] / self.directions[n] for n in in_group], dtype=torch.float64)
                group["base_lr"] = float(ratios.log().mean().exp())


def norms_by_name(tensors: Mapping[str, Tensor], growths: Mapping[str, Growth]) -> dict[str, float]:
    """Return ‖·‖₂ by name; of a stack of matrices (experts) the largest."""
    matrices = {name: _matrices(t, growths[name]) for name, t in tensors.items()}
    norms = iter(spectral_norms([m for of_one in matrices.values() for m in of_one]))
    return {name: max(next(norms) for _ in of_one) for name, of_one in matrices.items()}


def _matrices(t: Tensor, growth: Growth) -> Tensor:
    """Return (matrices, out, in): one, (out, rest), unless the last two dimensions are the linear map."""
    if t.ndim < 2:
        return t.reshape(1, -1, 1)
    stacked = t.ndim > 2 and sorted(t.shape[-2:]) == sorted(growth.shape)
    return t.flatten(0, -3) if stacked else t.flatten(1)[None]
