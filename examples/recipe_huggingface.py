"""Train a model of transformers by a recipe, with its Trainer.

    recipe = spectral_mup.recipe(build_large, build_base, optimizer="adamw", lr=2**-7, weight_decay=0.1).to_dict()
    trainer(build_large(), recipe, args=TrainingArguments(...), train_dataset=...).train()

or read one of several rules from the results of a sweep: json.load(open("recipe.json"))["rules"]["spectral"]. It must be of
the model's own parameter names. Here no module of spectral_mup is needed. The Trainer's scheduler multiplies each group's lr.
With FSDP the Trainer builds the optimizer itself: override its create_optimizer to return `optimizer(self.model, recipe)`.
"""

import re

import torch
from transformers import PreTrainedModel, Trainer


def optimizer(model: torch.nn.Module, recipe: dict) -> torch.optim.Optimizer:
    """AdamW with one parameter group for each group of the recipe."""
    (algorithm,) = recipe["optimizers"].values()  # several, as Muon and its AdamW, want an optimizer each
    groups = []
    for g in recipe["groups"]:
        found = [p for name, p in model.named_parameters() if re.search(g["pattern"], name)]
        groups.append({"params": found} | {key: g[key] for key in ("lr", "weight_decay", "eps")})
    return torch.optim.AdamW(groups, **algorithm["args"])


def prepare(model: PreTrainedModel, recipe: dict) -> None:
    """Init, attention and logits; for branches other than 1 (a deeper model) see spectral_mup.set_multipliers_."""
    for g in recipe["groups"]:
        for name, p in model.named_parameters():
            if re.search(g["pattern"], name) and g["init_std"] is not None:
                torch.nn.init.normal_(p, std=g["init_std"])
    for module in model.modules():
        if hasattr(module, "scaling") and hasattr(module, "head_dim"):
            module.scaling = recipe["forward"]["attention"]
    if (readout := model.get_output_embeddings()) is not None:
        readout.register_forward_pre_hook(lambda _, inputs: (inputs[0] * recipe["forward"]["logits"], *inputs[1:]))


def trainer(model: PreTrainedModel, recipe: dict, **arguments) -> Trainer:
    """A Trainer of the prepared model; `arguments` are its own."""
    prepare(model, recipe)
    return Trainer(model=model, optimizers=(optimizer(model, recipe), None), **arguments)
