"""From a run's science config to what is trained: model, scalings, optimizers. Here theory, models and optim meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_mup.models.configs import FamilyConfig
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.scaling import apply
from spectral_mup.scaling.apply import base_lr, base_std, for_kind, init_, param_groups, scale_all
from spectral_mup.scaling.table import tensor_row
from spectral_mup.theory.growth import KINDS, Growth, measure_growth
from spectral_mup.theory.rules import Multipliers, Scaling, UpdateScaling

REFERENCE_WIDTH_RATIO = (
    64  # width that tells which dims grow, in base widths; large, as FFNs are rounded and heads may be fixed
)


@dataclass(frozen=True)
class Parametrization:
    """All that a rule decided for one model: growths and scalings by parameter name, and the numbers in its forward pass."""

    growths: dict[str, Growth]
    scalings: dict[str, Scaling]
    forward: Multipliers
    laws: dict[str, UpdateScaling]


def growths_of(model: FamilyConfig, vocab_size: int, width: int, base_width: int, depth: int) -> dict[str, Growth]:
    """{parameter name: Growth} of a model of the family against its base, from shapes alone."""
    with torch.device("meta"):
        mine, base, wider = (model.build(vocab_size, w, depth) for w in (width, base_width, REFERENCE_WIDTH_RATIO * base_width))
    return measure_growth(mine, base, wider, model.residual_blocks)


def parametrize(run: RunConfig, vocab_size: int) -> tuple[nn.Module, Parametrization]:
    """Model on the meta device, and what its rule says of it, from shapes alone."""
    config, width, depth = run.model, run.width, run.depth
    forward = forward_of(run)
    with torch.device("meta"):
        model = config.build(vocab_size, width, depth)
    model.set_multipliers(forward)
    growths = growths_of(config, vocab_size, width, run.base_width, depth)
    laws = {kind: run.optimizer.by_kind[kind].update for kind in KINDS}
    scalings = scale_all(growths, run.rule, laws, forward, depth / run.base_depth)
    return model, Parametrization(growths, scalings, forward, laws)


def forward_of(run: RunConfig) -> Multipliers:
    """The numbers that a run's rule puts into its forward pass."""
    config, width, base_width = run.model, run.width, run.base_width
    m_depth = run.depth / run.base_depth
    return run.rule.forward(width / base_width, m_depth, config.head_dim(width), config.head_dim(base_width))


def init_model(model: nn.Module, run: RunConfig, p: Parametrization, device: torch.device) -> nn.Module:
    """The model on a device, initialised by its rule from the run's seed."""
    real = run.model.build(model.token.num_embeddings, run.width, run.depth)  # type: ignore[union-attr]
    real.set_multipliers(p.forward)
    init_(real, p.scalings, p.growths, run.model.init_stds(run.base_width), run.seed)
    return real.to(device)


@dataclass(frozen=True)
class TensorPlan:
    """What one tensor trains with, base values times multipliers."""

    algorithm: str
    lr: float
    weight_decay: float
    eps: float | None


def base_values(run: RunConfig, p: Parametrization) -> dict[str, TensorPlan]:
    """{parameter: algorithm and the base model's lr, weight decay and ε}, before any Scaling."""
    plans = {}
    for name, growth in p.growths.items():
        role = "vector" if growth.kind == "fixed" else growth.kind
        algorithm = run.optimizer.by_kind[role]
        lr = base_lr(2.0**run.log2_lr, growth, algorithm)
        plans[name] = TensorPlan(algorithm.name, lr, run.optimizer.weight_decay[role], algorithm.eps)
    return plans


def make_optimizers(model: nn.Module, run: RunConfig, p: Parametrization) -> list[torch.optim.Optimizer]:
    """One optimizer per algorithm in use, each with merged parameter groups; group['base_lr'] is the peak lr."""
    plans = base_values(run, p)
    groups = param_groups(
        model,
        p.scalings,
        lr={n: plan.lr for n, plan in plans.items()},
        weight_decay={n: plan.weight_decay for n, plan in plans.items()},
        eps={n: plan.eps for n, plan in plans.items()},
        owner={n: plan.algorithm for n, plan in plans.items()},
        independent=run.train.weight_decay == "independent",
    )
    return apply.make_optimizers(run.optimizer.algorithms, groups)


def explain(run: RunConfig, vocab_size: int) -> list[dict[str, Any]]:
    """One row a tensor: what it is, how it grew, and the numbers it will train with under the run's rule."""
    model, p = parametrize(run, vocab_size)
    plans = base_values(run, p)
    std = run.model.init_stds(run.base_width)
    independent = run.train.weight_decay == "independent"  # then no rule acts on λ, see param_groups
    rows = []
    for name, parameter in model.named_parameters():
        growth, scaling, plan = p.growths[name], p.scalings[name], plans[name]
        values = {"lr": plan.lr, "weight_decay": plan.weight_decay, "eps": plan.eps, "init_std": base_std(growth, std)}
        optimizer = for_kind(growth, p.laws).name
        rows.append(tensor_row(name, parameter.shape, growth, scaling, values, optimizer, p.forward, independent))
    return rows
