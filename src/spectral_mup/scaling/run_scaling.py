"""The scaling of a run's model: what its rule decides for it, and what it trains with."""

from dataclasses import replace
from typing import Any

import torch

from spectral_mup.models.layers import LanguageModel
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.scaling.scale import ModelScaling, base_init_std, scale
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Multipliers

REFERENCE_WIDTH_RATIO = 64  # width at which growing dims are told from fixed ones, in base widths; large, as FFNs are rounded


def scale_run(run: RunConfig, model: LanguageModel, vocab_size: int) -> ModelScaling:
    """The scaling of the run's `model` against the sweep's base, with the init stds and multipliers that the config gives."""
    with torch.device("meta"):
        base, wider = (
            run.model.build(vocab_size, width, run.base_depth)
            for width in (run.base_width, REFERENCE_WIDTH_RATIO * run.base_width)
        )
    scaling = scale(
        model,
        base,
        optimizer=run.optimizer,
        rule=run.rule,
        residual_blocks=run.model.residual_blocks,
        wider=wider,  # type: ignore
    )
    stds = run.model.init_stds(run.base_width)
    forward = {name: factor * getattr(scaling.multipliers, name) for name, factor in run.model.multipliers}
    base_std = {}
    for name, growth in scaling.growths.items():
        module = name.rpartition(".")[0]
        own = module in stds.keys() - set(KINDS) and growth.kind in KINDS
        base_std[name] = base_init_std(growth, {growth.kind: stds[module]} if own else stds)
    return replace(scaling, base_std=base_std, multipliers=Multipliers(**forward))


def scale_on_meta(run: RunConfig, vocab_size: int) -> ModelScaling:
    """The same without memory for the model."""
    with torch.device("meta"):
        model = run.model.build(vocab_size, run.width, run.depth)
    return scale_run(run, model, vocab_size)


def hyperparameters(run: RunConfig) -> dict[str, Any]:
    """The base model's lr, λ by kind, and whether λ is independent of the lr, as make_optimizers and explain take them."""
    independent = run.train.weight_decay == "independent"
    return {"lr": 2.0**run.log2_lr, "weight_decay": run.optimizer.weight_decay, "independent": independent}
