"""Decoders of Hugging Face transformers as a model family: any type of AutoConfig at any width and depth."""

import inspect
import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch

from spectral_mup.errors import ConfigError
from spectral_mup.models.configs import HuggingFaceConfig
from spectral_mup.util.registry import did_you_mean

# Keys of transformers' configs by what they are; a config has some of them, and each that it has is set.
WIDTH = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
DEPTH = ("num_hidden_layers", "n_layer", "num_layers")
HEADS = ("num_attention_heads", "n_head")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_SIZE = ("head_dim", "query_pre_attn_scalar")  # the second: whose inverse square root scales Gemma's attention
MLP = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
POSITIONS = ("max_position_embeddings", "n_positions", "original_max_position_embeddings")
BARE = {  # bare parameters whose role neither their module nor a forward pass of it shows, as arguments of `scale`
    "embeddings": ("*.A_log",),  # of Mamba: channels by states, which act on a channel each
    "linear_out_in": ("*.input_linear.weight", "*.output_linear.weight"),  # experts of JetMoe
}
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")  # a padding row would stay zero, and ids may be too large


def build(config: HuggingFaceConfig, vocab_size: int | None, width: int, depth: int) -> Any:
    """Build the model of transformers at this size. Raises ConfigError on a type or key that it does not know."""
    theirs = their_config(config, vocab_size, width, depth)
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(theirs)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model.type={config.type}: transformers cannot build it at width {width}: {said}") from error


def their_config(config: HuggingFaceConfig, vocab_size: int | None, width: int, depth: int) -> Any:
    """Return the config of transformers for this size. Raises ConfigError on a type or key that it does not know."""
    cls = _config_class(config.type)
    known = _keys(cls)
    given, grows = dict(config.config or {}), dict(config.grows or {})
    for key in (*given, *grows):
        if key not in known:
            name = f"model.{'config' if key in given else 'grows'}.{key}"
            hint = did_you_mean(key, known) or f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{name}: {cls.__name__} has no such key; {hint}")
    sized = {
        **dict.fromkeys(WIDTH, width),
        **dict.fromkeys(DEPTH, depth),
        **dict.fromkeys(HEADS, config.head_count(width)),
        **dict.fromkeys(KEY_HEADS, config.kv_head_count(width)),
        **dict.fromkeys(HEAD_SIZE, width // config.head_count(width)),
        **dict.fromkeys(MLP, config.mlp_width(width)),
        **dict.fromkeys(POSITIONS, config.context),
        **dict.fromkeys(SPECIAL_TOKENS, None),
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tied,
        "use_cache": False,
    }
    sized |= {key: config.dropout for key in known if re.search("dropout|pdrop", key)}
    values = {key: value for key, value in sized.items() if key in known}
    values |= given | {key: max(1, math.ceil(ratio * width - 1e-9)) for key, ratio in grows.items()}
    return cls(**values)


def blocks(names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of the decoder's blocks: what comes before the first number of a parameter's name."""
    found = (re.match(r"(\D*\.)\d+\.", name) for name in names)
    return tuple(dict.fromkeys(match[1] for match in found if match))


def bare_parameters(names: Iterable[str]) -> dict[str, list[str]]:
    """Return what the bare parameters among these are, as arguments of `scale`."""
    known = list(names)
    return {key: [name for name in known if any(fnmatchcase(name, p) for p in patterns)] for key, patterns in BARE.items()}


def check_sizes(config: HuggingFaceConfig, vocab_size: int | None, width: int) -> None:
    """Check that what a block's matrices read and write grows with the width, or was given to stay.

    A side of a matrix that is as long at `width` as at twice that width is a number of the config that no table above knows.
    Raises ConfigError, which names it and the key.
    """
    configs = [their_config(config, vocab_size, size, 1).to_dict() for size in (width, 2 * width)]
    given = {*(config.config or {}), *POSITIONS, *SPECIAL_TOKENS, *HEAD_SIZE, *DEPTH, "vocab_size"}
    numbers = {key: value for key, value in configs[0].items() if type(value) is int and value == configs[1].get(key)}
    sizes = {value: key for key, value in numbers.items() if key not in given and re.search("size|dim|rank|inner", key)}
    with torch.device("meta"):
        small, large = (dict(build(config, vocab_size, size, 1).named_parameters()) for size in (width, 2 * width))
    for name, p in small.items():
        for n, m in zip(p.shape[-2:], large[name].shape[-2:], strict=True):
            if p.ndim > 1 and n == m and n in sizes:
                key = sizes[n]
                raise ConfigError(
                    f"model.type={config.type}: {name} has {n} features at every width, as {key}={n}; let them grow, as in "
                    f"'model.grows={{{key}: {n / width:g}}}', or say that they stay, as in 'model.config={{{key}: {n}}}'"
                )


def _config_class(name: str) -> Any:
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    except ImportError:
        raise ConfigError("model=huggingface: needs transformers; install it, as in pip install transformers") from None
    decoders = {cls.model_type for cls in MODEL_FOR_CAUSAL_LM_MAPPING}
    if name not in decoders:
        hint = did_you_mean(name, decoders) or "as in llama, qwen3, gpt2; "
        raise ConfigError(f"model.type={name}: transformers knows no decoder of this type; {hint}see its AutoModelForCausalLM")
    return CONFIG_MAPPING[name]


def _keys(cls: Any) -> set[str]:
    """Return the keys that a config class takes, under its own names."""
    mapped = getattr(cls, "attribute_map", {})
    return (set(inspect.signature(cls).parameters) | set(cls().to_dict())) - set(mapped)
