"""Presets: the YAML files of conf/, read without Hydra. Imports no torch."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from spectral_mup.config.compose import ROOT, options


def read_preset(group: str, name: str) -> dict[str, Any]:
    """A YAML of conf/ and below it those of its `defaults`, in their order."""
    folder = ROOT / "conf" / group
    if not folder.is_dir():
        raise ValueError(
            f"{group}={name!r}: {folder} does not exist; install from a clone with pip install -e, "
            "or pass an UpdateScaling (a Rule) instead of a name"
        )
    if name not in options(folder):
        raise ValueError(f"{group}={name!r}: no such file; {group} can be {', '.join(options(folder))}")
    own = OmegaConf.load(folder / f"{name}.yaml")
    inherited = [read_preset(group, other) for other in OmegaConf.select(own, "defaults", default=[]) if other != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(*inherited, own))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items() if key != "defaults"}
