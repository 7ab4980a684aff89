"""The ladder that action=derive climbs: small models of a family on text, told nothing of the optimizer (see directions.py).

The hidden side of the MLP stays as wide as in the base model: so some matrices grow in both dims, some in one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.config.optimizer_spec import OptimizerSpec
from spectral_mup.measure.directions import LadderModel, check_ladder, measure_directions
from spectral_mup.optim.stacked import UsesSampledLabels
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.scaling.apply import init_, scale_all
from spectral_mup.scaling.build import Parametrization, forward_of, growths_of, make_optimizers
from spectral_mup.training.loop import sampled_loss


@dataclass(frozen=True)
class Rung:
    """A model of the ladder, on the meta device, with what the formula says of it but for the unknown size law."""

    width: int
    run: RunConfig
    p: Parametrization


def make_ladder(run: RunConfig, vocab_size: int, widths: Sequence[int]) -> list[Rung]:
    """One Rung a width, the first the base. Raises DeriveError if a tensor that should grow does not."""
    base_width = widths[0]
    model = run.model.model_copy(update={"mlp_hidden": run.model.mlp_width(base_width)})
    blind = replace(
        run, model=model, base_width=base_width, base_depth=run.depth, optimizer=without_size_laws(run.optimizer), log2_lr=0.0
    )
    rungs = []
    for width in widths:
        mine = replace(blind, width=width)
        forward = forward_of(mine)
        growths = growths_of(model, vocab_size, width, base_width, run.depth)
        laws = {kind: algorithm.update for kind, algorithm in mine.optimizer.by_kind.items()}
        rungs.append(Rung(width, mine, Parametrization(growths, scale_all(growths, mine.rule, laws, forward), forward, laws)))
    check_ladder({rung.width: rung.p.growths for rung in rungs})
    return rungs


def without_size_laws(optimizer: OptimizerSpec) -> OptimizerSpec:
    """The optimizer with every size law, lr and decay taken out."""
    by_kind = {kind: replace(a, update_norm={}, lr=1.0, lr_shape={}) for kind, a in optimizer.by_kind.items()}
    return OptimizerSpec(optimizer.name, by_kind)


def measure(
    rungs: Sequence[Rung],
    corpus: data.Corpus,
    *,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    update: float,
    on_run: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> list[dict[str, Any]]:
    """Train every rung on the corpus and return directions.measure_directions' rows."""
    ladder = [
        LadderModel(
            rung.width,
            rung.p,
            partial(_fresh, rung, corpus),
            partial(_optimizers, rung),
            partial(_gradients, corpus, {"batch_size": batch_size, "context": rung.run.model.context}),
        )
        for rung in rungs
    ]
    return measure_directions(ladder, seeds=seeds, steps=steps, update=update, on_run=on_run)


def _fresh(rung: Rung, corpus: data.Corpus, seed: int) -> nn.Module:
    model = rung.run.model.build(corpus.vocab_size, rung.width, rung.run.depth)
    model.set_multipliers(rung.p.forward)
    init_(model, rung.p.scalings, rung.p.growths, rung.run.model.init_stds(rung.run.base_width), seed)
    return model


def _optimizers(rung: Rung, model: nn.Module) -> list[torch.optim.Optimizer]:
    return make_optimizers(model, rung.run, rung.p)


def _gradients(
    corpus: data.Corpus,
    part_of: Mapping[str, int],
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    seed: int,
    step: int,
    loss_scale: float,
) -> Tensor:
    x, y = (torch.from_numpy(a) for a in data.batch(corpus.train, seed=seed, step=step, **part_of))
    for optimizer in optimizers:
        if isinstance(optimizer, UsesSampledLabels) and step % optimizer.hessian_interval == 0:
            draws = torch.from_numpy(data.label_draws(seed=seed, step=step, **part_of))
            (loss_scale * sampled_loss(model(x), draws)).backward()
            optimizer.update_hessian(part_of["batch_size"] * part_of["context"])
            model.zero_grad(set_to_none=True)
    loss = loss_scale * model(x, y)
    loss.backward()
    return loss
