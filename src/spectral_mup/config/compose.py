"""The only way from a command line to a checked config: Hydra composes, schema.py types, validate.py checks.

Every mistake is reported in one line that names the key and the fix. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spectral_mup.config.credentials import refuse_credentials, refuse_in_overrides
from spectral_mup.config.deciding import decides, resumed
from spectral_mup.config.overrides import check_overrides, known_keys, unknown
from spectral_mup.config.parse import key_of, keys, refuse_missing, typed, variants, walk
from spectral_mup.config.presets import GROUPS, files_of, load_yaml, options, read_preset, shown
from spectral_mup.config.schema import Config
from spectral_mup.config.validate import check
from spectral_mup.errors import ConfigError
from spectral_mup.util.registry import nearest
from spectral_mup.util.system import package_root


def load_config(overrides: list[str], recorded: Mapping[str, Any] | None = None) -> Config:
    """Compose the presets with the overrides of a command line and check the result. Raises ConfigError.

    `recorded` is the config of a sweep that is resumed; all that decides its runs and its verdict is taken from there.
    """
    refuse_in_overrides(overrides)
    overrides = [re.sub(r"^figures=(?=[\[\w])", "figures.only=", override) for override in overrides]  # a shorthand
    check_overrides(overrides)
    source, given = PresetSource(), [key_of(override) for override in overrides]
    try:
        with initialize_config_dir(str(package_root() / "conf"), version_base="1.3"):
            GlobalHydra.instance().config_loader().get_sources().insert(0, source)  # before the package's own folder
            composed = compose("config", overrides=overrides)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{', '.join(overrides)}: the defaults of a file lead back to itself; take it out of them") from None
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:  # the last two: lists of defaults
        raise ConfigError(_explain(error, given)) from None
    plain = OmegaConf.to_container(composed)
    refuse_credentials(plain)
    try:
        refuse_missing(plain)
        plain: Any = OmegaConf.to_container(composed, resolve=True)
        config = typed(resumed(recorded, plain) if recorded else plain)
        check(config)
    except OmegaConfBaseException as error:
        message = _of_interpolation(error)
        raise ConfigError(f"{message}{_where(message, source, given)}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}{_where(str(error), source, given, bool(recorded))}") from None
    return config


class PresetSource(ConfigSource):
    """Presets of all project folders, placed at the root of the config; the `defaults` of a sweep are left to Hydra."""

    def __init__(self) -> None:
        super().__init__("spectral-mup", "spectral-mup://")
        self.loaded: list[tuple[str, dict[str, Any]]] = []  # (file, what it sets), in the order of reading

    def __deepcopy__(self, memo: Any) -> PresetSource:
        return self  # Hydra reads from copies of its sources; all must fill one `loaded`

    @staticmethod
    def scheme() -> str:
        return "spectral-mup"

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        file = files_of(group, name)[0]
        if group == "sweep":
            content = load_yaml(file)
            _check_sweep(file, content)
            own = content.get("sweep") or {}
            if not isinstance(own, dict):
                raise ConfigError(f"sweep={own}: must be a table, as in {{width: [64, 128]}} (in {shown(file)})")
            content["sweep"] = {"name": name} | own
        else:
            preset = read_preset(group, name)
            content = {group: {name: preset} if group == "rule" else preset}
        self.loaded.append((shown(file), content))
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(content), {"package": "_global_"})

    def is_group(self, config_path: str) -> bool:
        return config_path in GROUPS

    def is_config(self, config_path: str) -> bool:
        """Accept any name in a group, as read_preset reports one that does not exist; config.yaml itself is the package's."""
        group, _, name = config_path.partition("/")
        return group in GROUPS and bool(name)

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return options(config_path)


def _check_sweep(file: Path, content: dict[str, Any]) -> None:
    """Raise ConfigError on a key that no config has, or on an entry of `defaults` that Hydra could not read."""
    for key in content:
        if key != "defaults" and key not in Config.model_fields:
            raise ConfigError(f"{unknown(key)} (in {shown(file)})")
    defaults = content.get("defaults", [])
    if not isinstance(defaults, list):
        raise ConfigError(f"{shown(file)}: defaults: must be a list, as in [mini/width, override /optimizer: muon]")
    for entry in defaults:
        if isinstance(entry, str):
            continue
        choice = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", None)
        group = re.sub(r"^(override )?/?", "", str(choice[0]))
        if group not in GROUPS or choice[0] != f"override /{group}" or not isinstance(choice[1], str | list):
            near = nearest(group, GROUPS) or "model"
            names = choice[1] if isinstance(choice[1], str) else options(near)[0]
            raise ConfigError(
                f"{shown(file)}: defaults: {entry} is neither the name of a sweep nor a choice, as in "
                f"'override /{near}: {names}'"
            )


def _explain(error: Exception, given: list[str]) -> str:
    """Explain in one line what Hydra refuses; `given` are the keys of the command line."""
    text = " ".join(str(error).split())
    for key in given:
        if f"Could not override '{key}'" in text or f"Key '{key.rsplit('.')[-1]}' is not in struct" in text:
            return _not_in_config(key)
    if isinstance(error, AssertionError) or "defaults" in text:
        return "the defaults of a file cannot be put together; give them as in defaults: [default, override /model: llama2]"
    return text


def _of_interpolation(error: OmegaConfBaseException) -> str:
    """Explain in one line which value could not be interpolated, and why."""
    text = str(error).splitlines()[0]
    if found := re.search(r"[Ii]nterpolation key '([^']*)' not found", text):
        near = nearest(found[1], known_keys())
        text = f"${{{found[1]}}} is not a key of the config" + (f"; did you mean ${{{near}}}?" if near else "")
    return f"{getattr(error, 'full_key', None) or 'config'}: {text}"


def _not_in_config(key: str) -> str:
    """Explain why a key cannot be set: no config has it, only another family or scheduler, or the chosen file leaves it out."""
    group = key.partition(".")[0]
    of_variant = {name: list(keys(cls, group)) for name, cls in variants(group).items()}
    owners = [name for name, known in of_variant.items() if key in known]
    if key == "cluster.extra":
        return f"{key}: prefix with + to add to it, as in '+cluster.extra={{name: value}}', with cluster=slurm or a site's file"
    if owners and len(owners) < len(of_variant):
        return f"{key}: only with {group}={' or '.join(owners)}{', or a site of it' if group == 'cluster' else ''}"
    if key in known_keys():
        return f"{key}: the chosen file of conf/{group} leaves it out; give it there, or here as +{key}=VALUE"
    return unknown(key)


def _where(message: str, source: PresetSource, given: list[str], recorded: bool = False) -> str:
    """Say where the key at the start of a message was set: in which file, or as recorded; empty for the command line."""
    found = re.match(r"[\w/*-]+(\.[\w/*-]+)*", message)
    key = found[0] if found else ""
    if recorded and decides(key):
        return " (as recorded; to replace that, launch with all words and yes=true)"
    if any(f"{key}.".startswith(f"{other}.") for other in given if other not in GROUPS):
        return ""
    wanted = key.rpartition(".")[0] if ": a value is missing" in message else key
    return next((f" (in {file})" for file, content in reversed(source.loaded) if wanted in dict(walk(content))), "")
