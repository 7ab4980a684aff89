"""Presets as Hydra sees them: one config source over all project folders, which gives each file its place in the config."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from spectral_mup.config.presets import candidates, files_of, options, package_root, read_preset, read_sweep, shown

Loaded = list[tuple[str, str, dict[str, Any]]]
"""Of each preset that was composed: its file, its place in the config ("" for the root), its content."""


class PresetSource(ConfigSource):
    """A rule goes to rule.NAME, a sweep to the root, any other preset to its group; no file needs a @package line."""

    loaded: Loaded = []

    @staticmethod
    def scheme() -> str:
        return "spectral-mup"

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        content = read_sweep(name) if group == "sweep" else read_preset(group, name)
        if group == "rule":
            content = {name: content}
        place = "" if group == "sweep" else group
        self.loaded.append((shown(files_of(group, name)[0]), place, content))
        header: dict[str, str | None] = {"package": place or "_global_"}
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(content), header)

    def is_group(self, config_path: str) -> bool:
        return any(p.is_dir() for p in candidates(config_path))

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return bool(name and files_of(group, name))  # config.yaml itself is the package's

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return options(config_path)


class PresetSearchPath(SearchPathPlugin):
    """Adds the source while we compose, and at no other time: a program that imports us may use Hydra for itself."""

    active = False

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.active:
            search_path.prepend("spectral-mup", "spectral-mup://")


def compose_presets(overrides: list[str]) -> tuple[Any, Loaded]:
    """config.yaml of the package with the presets and values that a command line asks for. Raises Hydra's exceptions."""
    for plugin in (PresetSource, PresetSearchPath):
        Plugins.instance().register(plugin)
    PresetSource.loaded, PresetSearchPath.active = [], True
    try:
        with initialize_config_dir(str(package_root() / "conf"), version_base="1.3"):
            return compose("config", overrides=overrides), PresetSource.loaded
    finally:
        PresetSearchPath.active = False
