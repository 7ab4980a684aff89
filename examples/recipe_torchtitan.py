"""Train with torchtitan by a recipe: its config of parameter groups, and the init.

    recipe = spectral_mup.recipe(build_large, build_base, optimizer="adamw", lr=2**-7, weight_decay=0.1).to_dict()
    config.optimizer = optimizer_config(recipe)  # in a function of the model's config_registry.py
    init_(model, recipe)                         # after model.init_weights()

The builders make torchtitan's own model, so that the recipe has its parameter names. torchtitan (of August 2026) matches
each name with the first pattern that is found in it, knows Adam, AdamW and a Muon of its own, and refuses patterns without a
parameter, as on a stage of a pipeline. The forward multipliers of recipe["forward"] belong into the model: under the rule
spectral_readout attention's where the head size grows, and the branches' where the depth does.
"""

import re

import torch
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig  # pyright: ignore[reportMissingImports]

WRAPPED = r"\.(?:_checkpoint_wrapped_module\.|_orig_mod\.)*"  # what checkpointing and compilation put into a name


def optimizer_config(recipe: dict) -> OptimizersContainer.Config:
    """One ParamGroupConfig for each group of the recipe."""
    groups = []
    for g in recipe["groups"]:
        algorithm = recipe["optimizers"][g["optimizer"]]
        arguments = algorithm["args"] | {key: g[key] for key in ("lr", "weight_decay", "eps")}
        name = algorithm["target"].rpartition(".")[2]
        groups.append(ParamGroupConfig(pattern=wrapped(g), optimizer_name=name, optimizer_kwargs=arguments))
    return OptimizersContainer.Config(param_groups=groups)


def init_(model: torch.nn.Module, recipe: dict) -> None:
    """Draw every weight with the recipe's std; biases and gains stay as init_weights left them."""
    for g in recipe["groups"]:
        for name, p in model.named_parameters():
            if re.search(wrapped(g), name) and g["init_std"] is not None:
                torch.nn.init.normal_(p, std=g["init_std"])


def wrapped(group: dict) -> str:
    """The group's pattern, for names of wrapped modules too."""
    return group["pattern"].replace(r"\.", WRAPPED)
