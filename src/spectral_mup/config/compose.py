"""The one gate from a command line to a checked config: Hydra composes, schema.py types, validate.py checks.

A mistake is one line that names key and fix. Nothing in this module imports torch.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spectral_mup.config.credentials import refuse_credentials, refuse_in_overrides
from spectral_mup.config.parse import key_of, keys, typed, unknown_key, variants
from spectral_mup.config.presets import GROUPS, unknown_preset
from spectral_mup.config.schema import Config
from spectral_mup.config.validate import check
from spectral_mup.errors import ConfigError

__all__ = ["ConfigError", "check", "load_config", "typed"]


def load_config(overrides: list[str]) -> Config:
    """Compose the presets with the overrides of a command line and check the result. Raises ConfigError."""
    refuse_in_overrides(overrides)
    composed, loaded = _compose(overrides)
    refuse_credentials(OmegaConf.to_container(composed))
    try:
        config = typed(_plain(composed))
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{error}{_where(str(error), loaded, overrides)}") from None
    return config


def _compose(overrides: list[str]) -> tuple[Any, list[tuple[str, str, dict[str, Any]]]]:
    from hydra.errors import HydraException

    from spectral_mup.config.hydra_source import compose_presets

    try:
        return compose_presets(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from None


def _plain(composed: Any) -> Any:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{missing[0]}: a value is missing; give one, as in {missing[0]}=VALUE")
    try:
        return OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:  # an interpolation
        raise ConfigError(str(error).splitlines()[0]) from None


def _explain(error: Exception, overrides: list[str]) -> str:
    """One line about what Hydra refuses."""
    from hydra.errors import OverrideParseException

    text = str(error)
    preset = re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", text)
    if preset and preset[1] in GROUPS:
        return str(unknown_preset(preset[1], preset[2]))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if f"Could not override '{key}'" in text or f"Key '{key.rsplit('.')[-1]}' is not in struct" in text:
            return _not_in_config(key)
    if isinstance(error, OverrideParseException):
        first = " ".join(text.partition("See https")[0].split())
        return f"cannot read the command line: {first}; quote lists, as in 'sweep.width=[64,128]'"
    return " ".join(text.split())


def _not_in_config(key: str) -> str:
    """Why a key cannot be set: no config has it, another family or scheduler has it, or the chosen file leaves it out."""
    group = key.partition(".")[0]
    classes = variants(group)
    owners = [name for name, cls in classes.items() if key in keys(cls, group)]
    if key == "cluster.extra":
        return f"{key}: prefix with + to add to it, as in '+cluster.extra={{name: value}}', with cluster=slurm or a site's file"
    if owners and len(owners) < len(classes):
        return f"{key}: only with {group}={' or '.join(owners)}{', or a site of it' if group == 'cluster' else ''}"
    known = [*keys(Config), *(k for cls in classes.values() for k in keys(cls, group))]
    if key in known:
        return f"{key}: the chosen file of conf/{group} leaves it out; give it there, or here as +{key}=VALUE"
    return unknown_key(key, known)


def _where(message: str, loaded: list[tuple[str, str, dict[str, Any]]], overrides: list[str]) -> str:
    """(in FILE) if the key that an error is about was set by a preset and not by the command line."""
    key = key_of(message)
    given = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if any(f"{key}.".startswith(f"{k}.") for k in given if k not in GROUPS):
        return ""
    wanted = key.rpartition(".")[0] if ": a value is missing" in message else key
    for file, place, content in reversed(loaded):
        if _holds({place: content} if place else content, wanted):
            return f" (in {file})"
    return ""


def _holds(node: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True
