"""Train with Megatron-LM by a recipe: overrides of its optimizer's parameter groups, and the init.

    recipe = spectral_mup.recipe(build_large, build_base, optimizer="adamw", lr=2**-7, weight_decay=0.1).to_dict()
    for chunk in model_chunks: init_(chunk, recipe)  # before the optimizer copies the weights
    get_megatron_optimizer(config, model_chunks, config_overrides=config_overrides(recipe, min_lr=0.1))

The builders make Megatron's own GPTModel, so that the recipe has its parameter names. The overrides, those of Megatron core
of August 2026, take the place of get_standard_config_overrides and --use-mup. With weight decay that is constant
(--weight-decay-incr-style) and Adam, whose betas are config.adam_beta1 and 2. Attention's multiplier is config.softmax_scale.
With tensor parallelism draw the init inside get_cuda_rng_tracker().fork(), so that each rank has weights of its own.
"""

import re

import torch
from megatron.core.optimizer import ParamKey, ParamWithNamePredicate  # pyright: ignore[reportMissingImports]


def config_overrides(recipe: dict, min_lr: float) -> dict:
    """{ParamKey: peak and last lr, λ and ε} for each group of the recipe; `min_lr` as a fraction of the peak."""
    overrides = {}
    for g in recipe["groups"]:
        own = ParamWithNamePredicate(g["name"], lambda _, name, g=g: matches(g, name))
        values = {"max_lr": g["lr"], "min_lr": min_lr * g["lr"], "eps": g["eps"]}
        overrides[ParamKey(with_name_predicate=own)] = values | dict.fromkeys(("start_wd", "end_wd"), g["weight_decay"])
    return overrides


def init_(model: torch.nn.Module, recipe: dict) -> None:
    """Draw every weight with the recipe's std; biases and gains stay as built."""
    for g in recipe["groups"]:
        for name, p in model.named_parameters():
            if matches(g, name) and g["init_std"] is not None:
                torch.nn.init.normal_(p, std=g["init_std"])


def matches(group: dict, name: str) -> bool:
    """Whether a parameter is of the group, inside Float16Module and DistributedDataParallel too."""
    return bool(re.search(group["pattern"], re.sub(r"^(module\.)+", "", name)))
