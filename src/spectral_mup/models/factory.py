"""A model of any width from a function of the user's own."""

import inspect

from torch import nn

from spectral_mup.errors import ConfigError
from spectral_mup.models.configs import FactoryConfig
from spectral_mup.util.registry import lookup


def build(config: FactoryConfig, vocab_size: int | None, width: int, depth: int) -> nn.Module:
    """Build what model.target returns for this size. Raises ConfigError if it cannot be called so, or returns no module."""
    make, args = lookup({}, config.target, "model.target"), dict(config.args or {})
    signature = inspect.signature(make)
    offered = {"depth": depth, "vocab_size": vocab_size, "context": config.context}
    taken = {key: value for key, value in offered.items() if takes(signature, key)} | args
    try:
        signature.bind(width=width, **taken)
    except TypeError as error:
        raise ConfigError(
            f"model.target={config.target}: {error}; it is called with the width, with model.args, "
            f"and with {', '.join(offered)} if it takes them"
        ) from None
    module = make(width=width, **taken)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.target={config.target}: returned {type(module).__name__}, not a torch.nn.Module")
    return module


def takes(signature: inspect.Signature, name: str) -> bool:
    """Return whether a function of this signature takes an argument of this name."""
    return name in signature.parameters or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def check_depths(config: FactoryConfig, depths: set[int]) -> None:
    """Check that the function can tell depths apart. Raises ConfigError."""
    if len(depths) > 1 and not takes(inspect.signature(lookup({}, config.target, "model.target")), "depth"):
        raise ConfigError(
            f"sweep.depth={sorted(depths)}: {config.target} takes no depth; give one, as in def build(width, depth)"
        )
