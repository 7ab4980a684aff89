"""The size law of any optimizer, measured on models of one's own, in the form that `scale` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec
from spectral_mup.measure.check_features import Batch, loss_of
from spectral_mup.measure.directions import LadderModel, check_ladder, measure_directions
from spectral_mup.measure.size_law_fit import SizeLaw, size_laws
from spectral_mup.scaling.api import init_, make_optimizers, scale, set_multipliers_
from spectral_mup.scaling.build import Parametrization
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.theory.growth import KINDS


@dataclass(frozen=True)
class Derived(OptimizerSpec):
    """An optimizer by what was measured of it: `scale`, `make_optimizers` and `check_features` take it as they take a name."""

    measured: SizeLaw = field(kw_only=True, repr=False)

    @property
    def text(self) -> str:
        """Slope and interval of each kind of tensor, the law nearest to them, what was rejected, and whether it can be told."""
        from spectral_mup.measure.size_law_report import format_size_laws

        return format_size_laws([self.measured])

    def __str__(self) -> str:
        return self.text


def derive(
    optimizer: Callable[..., torch.optim.Optimizer],
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    *,
    batch: Callable[[int, int], Batch],
    loss: Callable[[Any, Any], Tensor] = loss_of,
    residual_blocks: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    steps: int = 12,
    seeds: Sequence[int] = (0, 1),
    update: float = 0.05,
) -> Derived:
    """Measure how the spectral norm of an optimizer's direction grows with width, told nothing of the optimizer.

    optimizer  its class, or any function of (groups, lr=...), as functools.partial(torch.optim.SGD, momentum=0.9)
    build      a fresh model of a width; the first of `widths` (three or more, better four) is the base
    batch      (seed, step) to a dict or tuple for the model
    update     size of every step, as a share of the weight's norm in the base

    Every update is rescaled to what the spectral condition asks (arXiv 2310.17813, directions.py), so no lr need be known.
    Slopes are of the steps from 8 on. Nothing is known of ε: give `eps` to param_groups where it is not tiny.
    Raises DeriveError on a ladder from which nothing can be learned and on optimizers that need more than gradients.
    """
    name = getattr(optimizer, "__name__", getattr(getattr(optimizer, "func", None), "__name__", type(optimizer).__name__))
    blind = OptimizerSpec(name, dict.fromkeys(KINDS, Algorithm(name, optimizer)))

    def trainee(width: int) -> LadderModel:
        scalings = scale(
            build(width), base, optimizer=blind, rule="spectral", residual_blocks=residual_blocks,
            embeddings=embeddings, wider=wider,
        )  # fmt: skip
        p = Parametrization(
            dict(scalings.growths), dict(scalings), scalings.multipliers, {kind: a.update for kind, a in blind.by_kind.items()}
        )
        return LadderModel(width, p, partial(_fresh, build, width, scalings), partial(_optimizers, scalings), gradients)

    def gradients(model: nn.Module, _: Any, seed: int, step: int, loss_scale: float) -> Tensor:
        value = loss_scale * loss(model, batch(seed, step))
        value.backward()
        return value

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        base, wider = build(min(widths)), build(max(widths))
        ladder = [trainee(width) for width in sorted(widths)]
        check_ladder({run.width: run.p.growths for run in ladder})
        (found,) = size_laws(measure_directions(ladder, seeds=seeds, steps=steps, update=update))
    of_kind = {str(role): found.exponents.get(role, found.exponents["hidden"]) for role in KINDS}
    return Derived(name, {kind: Algorithm(name, optimizer, size) for kind, size in of_kind.items()}, measured=found)


def _fresh(build: Callable[[int], nn.Module], width: int, scalings: ModelScaling, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build(width)
    set_multipliers_(model, scalings)
    init_(model, scalings, seed=seed)
    return model


def _optimizers(scalings: ModelScaling, model: nn.Module) -> list[torch.optim.Optimizer]:
    return make_optimizers(model, scalings, lr=1.0)
