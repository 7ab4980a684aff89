"""A model of a family from its config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spectral_mup.config.compose import head_count, head_size, kv_head_count, mlp_hidden
from spectral_mup.config.schema import ModelConfig
from spectral_mup.models import family
from spectral_mup.models.layers import LanguageModel


def build(model: ModelConfig, vocab_size: int, width: int, depth: int) -> LanguageModel:
    """A model of the family at this width and depth, weights not yet set by a rule."""
    own: dict[str, Any] = {"bias": model.bias}
    if model.family == "llama2":
        own = {"kv_heads": max(1, kv_head_count(model, width)), "rope_base": model.rope_base}
    return family(model.family)(
        vocab_size=vocab_size,
        context=model.context,
        width=width,
        depth=depth,
        heads=max(1, head_count(model, width)),
        head_dim=head_size(model, width),
        hidden=mlp_hidden(model, width),
        tied=model.tied,
        dropout=model.dropout,
        **own,
    )


def init_stds(model: ModelConfig, base_width: int) -> dict[str, float | None]:
    """Init std of the base model by kind, None for fan_in^-1/2; a tied table is initialised as the readout it also is."""
    std = dict(model.init_std)
    if model.tied and std.get("embedding") is None:
        std["embedding"] = std["readout"] if std.get("readout") is not None else base_width**-0.5
    return std


def fixed_mlp(model: ModelConfig, base_width: int) -> ModelConfig:
    """The same family with the MLP as wide at every width as it is at the base width."""
    return replace(model, mlp_hidden=mlp_hidden(model, base_width))
