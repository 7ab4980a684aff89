"""The scaling of a run's model: what its rule decides for it, and what it trains with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.scaling.base_std import base_init_std
from spectral_mup.scaling.fold import folded
from spectral_mup.scaling.forward_multipliers import TO_DO, apply_multipliers_
from spectral_mup.scaling.inspect import named_parameters
from spectral_mup.scaling.scale import ModelScaling, scale
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Multipliers

REFERENCE_WIDTH_RATIO = 64  # width at which growing dims are told from fixed ones, in base widths; large, as FFNs are rounded


def scale_run(run: RunConfig, model: nn.Module, vocab_size: int | None) -> ModelScaling:
    """Scale the run's `model` against the sweep's base, with the init stds and multipliers that the config gives."""
    with torch.device("meta"):
        wider = run.model.build(vocab_size, REFERENCE_WIDTH_RATIO * run.base_width, run.base_depth)
        base = run.model.build(vocab_size, run.base_width, run.base_depth) if run.model.ours else None
    if base is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # its values are looked at, and must be the same for every run
            base = run.model.build(vocab_size, run.base_width, run.base_depth)
    names = list(named_parameters(model))
    scaling = scale(
        model,
        base,
        optimizer=run.optimizer,
        rule=run.rule,
        residual_blocks=run.model.blocks(names),
        **run.model.bare_parameters(names),
        wider=wider,
    )
    stds = run.model.init_stds(run.base_width)
    forward = {name: factor * getattr(scaling.multipliers, name) for name, factor in run.model.multipliers}
    base_std = {}
    for name, growth in scaling.growths.items():
        module = name.rpartition(".")[0]
        own = module in stds.keys() - set(KINDS) and growth.kind in KINDS
        as_built = run.model.draws_weights and growth.kind not in stds
        std = base_init_std(growth, {growth.kind: stds[module]} if own else stds)
        kept = not run.model.ours and scaling.base_std[name] is None
        base_std[name] = scaling.base_std[name] if as_built or kept else std
    return replace(scaling, base_std=base_std, multipliers=Multipliers(**forward))


def scale_on_meta(run: RunConfig, vocab_size: int | None) -> ModelScaling:
    """Do the same as scale_run without memory for the model."""
    with torch.device("meta"):
        model = run.model.build(vocab_size, run.width, run.depth)
    return scale_run(run, model, vocab_size)


def check_model(runs: Sequence[RunConfig], vocab_size: int | None) -> None:
    """Check, without memory for them, that the models of these runs can be built and scaled as their rules want.

    Raises ConfigError on a multiplier of the forward pass that cannot be set, or with train.keep not be kept, and what the
    model and `scale` raise.
    """
    runs[0].model.check_sizes(vocab_size, runs[0].base_width, {run.depth for run in runs})
    for run in {(run.rule.name, run.width, run.depth): run for run in runs}.values():
        with torch.device("meta"):
            model = run.model.build(vocab_size, run.width, run.depth)
        left = [said for said in apply_multipliers_(model, scale_run(run, model, vocab_size)) if said.startswith(TO_DO)]
        if left:
            raise ConfigError(
                f"model: rule={run.rule.name} asks of the forward pass what cannot be set from outside ({left[0]}); give the "
                "model a method set_multipliers(multipliers), or choose a rule without it"
            )
        if run.train.keep and hasattr(model, "save_pretrained"):
            folded(model, {})


def hyperparameters(run: RunConfig) -> dict[str, Any]:
    """Return the base model's lr, λ by kind, and whether λ is independent, as make_optimizers and explain take them."""
    independent = run.train.weight_decay == "independent"
    return {"lr": 2.0**run.log2_lr, "weight_decay": run.optimizer.weight_decay, "independent": independent}
