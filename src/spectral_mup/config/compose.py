"""The one gate from YAML to objects: Hydra composes, dataclasses check, a mistake is one line that names key and fix.

Types live in schema.py, defaults in conf/. Nothing in this module imports torch.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spectral_mup.config.credentials import refuse_credentials, refuse_in_overrides
from spectral_mup.config.schema import Config, ModelConfig, SlurmConfig
from spectral_mup.config.validate import check
from spectral_mup.errors import ConfigError
from spectral_mup.theory.growth import KINDS

__all__ = [
    "KINDS",
    "ROOT",
    "ConfigError",
    "check",
    "head_count",
    "head_size",
    "kv_head_count",
    "load_config",
    "mlp_hidden",
    "options",
]

ROOT = Path(__file__).resolve().parents[3]


def load_config(overrides: list[str], config_dir: Path | None = None) -> Config:
    """Compose conf/ with the overrides of a command line and check the result. Raises ConfigError."""
    refuse_in_overrides(overrides)
    composed = _compose(overrides, config_dir or ROOT / "conf")
    refuse_credentials(OmegaConf.to_container(composed))
    config = _typed(composed)
    check(config)
    return config


def _compose(overrides: list[str], config_dir: Path) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain_compose(error, overrides, config_dir)) from None


def _explain_compose(error: Exception, overrides: list[str], config_dir: Path) -> str:
    from hydra.errors import OverrideParseException

    text = str(error)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        folder = config_dir / key
        if f"Could not find '{key}/" in text and folder.is_dir():
            return f"{key}={value}: no such file; {key} can be {', '.join(options(folder))}"
        if f"Could not override '{key}'" in text or f"Key '{key.rsplit('.')[-1]}' is not in struct" in text:
            return _unknown_key(key)
    if isinstance(error, OverrideParseException):
        first = " ".join(text.partition("See https")[0].split())
        return f"cannot read the command line: {first}; quote lists, as in 'sweep.width=[64,128]'"
    return " ".join(text.split())


def options(folder: Path) -> list[str]:
    """Names that a config group offers, nested ones as folder/name; what lies among the results of sweeps is none."""
    names = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    return [name for name in names if not name.startswith("results/")]


def _unknown_key(key: str) -> str:
    slurm = list(_keys(SlurmConfig, "cluster."))
    known = list(dict.fromkeys([*_keys(Config), *slurm]))
    if key in slurm:
        table = "; a plus sign adds to it, as in '+cluster.extra={name: value}'" if key == "cluster.extra" else ""
        return f"{key}: known with cluster=slurm or a site's file only{table}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    parent = key.rpartition(".")[0]
    siblings = sorted(k for k in known if k.rpartition(".")[0] == parent) or sorted(k for k in known if "." not in k)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{key}: unknown key; {hint}known: {', '.join(siblings)}"


def _keys(cls: type, prefix: str = ""):
    hints = get_type_hints(cls)
    for f in fields(cls):
        yield prefix + f.name
        if is_dataclass(hints[f.name]):
            yield from _keys(hints[f.name], f"{prefix}{f.name}.")  # type: ignore[arg-type]
        elif get_origin(hints[f.name]) is dict and is_dataclass(get_args(hints[f.name])[1]):
            yield from _keys(get_args(hints[f.name])[1], f"{prefix}{f.name}.*.")


def _typed(composed: Any) -> Config:
    try:
        return typed(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:  # an interpolation
        raise ConfigError(str(error).splitlines()[0]) from None


def typed(plain: Any) -> Config:
    """A Config of plain dicts and lists, as `dataclasses.asdict` makes them. Raises ConfigError; checks types only."""
    try:
        for name, rule in (plain.get("rule") or {}).items():  # type: ignore[union-attr]
            for part in ("multipliers", "scaling"):
                rule[part] = _exponents(rule.get(part), f"rule.{name}.{part}")
        for name, algorithm in plain["optimizer"].get("algorithms", {}).items():  # type: ignore[index, call-overload]
            for part in ("update_norm", "eps_law", "lr_shape"):
                algorithm[part] = _exponents(algorithm.get(part), f"optimizer.algorithms.{name}.{part}")
        schema = OmegaConf.structured(Config)
        if plain["cluster"].get("name") == "slurm":
            schema.cluster = OmegaConf.structured(SlurmConfig)
        merged = OmegaConf.merge(schema, OmegaConf.create(plain))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]}: a value is missing; give one, as in {missing[0]}=VALUE")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        text = str(error.msg if getattr(error, "msg", None) else error).splitlines()[0]
        if "not in" in text and "Key" in text:
            raise ConfigError(_unknown_key(key)) from None
        raise ConfigError(f"{key}: {text}") from None


def _exponents(node: Any, key: str) -> Any:
    """A table of exponents with every number a float; other leaves than numbers are an error (but for `derived`)."""
    if isinstance(node, dict):
        return {k: _exponents(v, f"{key}.{k}") for k, v in node.items()}
    if node in ("derived", "???", None):
        return node
    if isinstance(node, bool) or not isinstance(node, int | float):
        raise ConfigError(f"{key}={node}: an exponent must be a number, as in -0.5")
    return float(node)


def head_count(m: ModelConfig, width: int) -> int:
    """Number of heads at this width under the head rule."""
    return m.heads if m.heads is not None else width // m.head_size  # type: ignore[operator]


def head_size(m: ModelConfig, width: int) -> float:
    """Features a head at this width; a fraction where a base model is only a yardstick (base width 1)."""
    return width / m.heads if m.heads is not None else float(m.head_size)  # type: ignore[arg-type]


def kv_head_count(m: ModelConfig, width: int) -> int:
    """Number of key and value heads at this width: fixed, a ratio of the query heads (at least one), or as many as those."""
    heads = head_count(m, width)
    return m.kv_heads if m.kv_heads is not None else max(1, round(heads * (1.0 if m.kv_ratio is None else m.kv_ratio)))


def mlp_hidden(m: ModelConfig, width: int) -> int:
    """Width of the MLP's hidden side: fixed, or mlp_ratio · width rounded up to a multiple of mlp_multiple."""
    if m.mlp_hidden is not None:
        return m.mlp_hidden
    multiple = m.mlp_multiple or 1
    return multiple * max(1, math.ceil(round(m.mlp_ratio * width) / multiple))  # type: ignore[operator]
