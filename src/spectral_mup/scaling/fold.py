"""Multipliers of the forward pass as part of the weights, so that a model computes the same without our hooks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spectral_mup.errors import ConfigError
from spectral_mup.scaling.forward_multipliers import scale_input, scale_output
from spectral_mup.scaling.inspect import is_linear_map, is_table, named_modules, scales_attention


def folded(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict of a model of transformers with the factors that set_multipliers_ has put on its modules folded in.

    f·(W·x + b) becomes (f·W)·x + f·b, W·(f·x) + b becomes (f·W)·x + b. Of a weight that two modules share only that of the
    hooked one changes. Raises ConfigError where a factor is on something else than a linear map or a table.
    """
    new, fix = dict(state), "leave train.keep out, or choose a rule without that factor"
    for name, module in named_modules(model).items():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for hook in (h for h in hooks if getattr(h, "func", None) in (scale_input, scale_output)):
            if not (is_linear_map(module) or is_table(module)):
                raise ConfigError(f"train.keep=last: no weight carries the factor on {name} ({type(module).__name__}); {fix}")
            for part in ("weight", "bias") if hook.func is scale_output else ("weight",):
                if f"{name}.{part}" in new:
                    new[f"{name}.{part}"] = new[f"{name}.{part}"] * hook.keywords["factor"]
    with torch.device("meta"):
        plain = named_modules(type(model)(model.config))  # type: ignore[call-arg]
    for name, module in named_modules(model).items():
        if scales_attention(module) and module.scaling != plain[name].scaling:
            raise ConfigError(
                f"train.keep=last: the config of transformers cannot say that {name} scales q·k by {module.scaling:.4g}; "
                "give heads of one size, as in model.head_size=64 model.heads=null, or leave train.keep out"
            )
    return new
