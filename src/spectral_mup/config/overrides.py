"""The KEY=VALUE words of a command line, looked at one by one, so that a mistake is answered in words of this project."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from pydantic import BaseModel

from spectral_mup.config.parse import keys, unknown_key, variants
from spectral_mup.config.presets import GROUPS, options
from spectral_mup.config.schema import Config
from spectral_mup.config.tune import log2_lr
from spectral_mup.errors import ConfigError
from spectral_mup.util.registry import nearest

# Where a key is looked for that was typed with another part or none, as model.depth or steps: the first that has it.
PARTS = ("train", "sweep", "model", "cluster", "data", "figures", "wandb", "verdict", "lr", "optimizer")
DECAY = ("optimizer.weight_decay", "train.weight_decay")  # a table by kind, and how it is coupled
TABLES = {
    name: f.annotation for name, f in Config.model_fields.items() if name not in GROUPS and isinstance(f.annotation, type)
}


def check_overrides(words: Sequence[str]) -> None:
    """Raise ConfigError about the first word that no config can be made of, or that would be read as something else."""
    parser = OverridesParser.create()
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        part = re.split(r"[^\w-]", key)[0]
        if word.startswith(("-", "=")) or ("=" not in word and not word.startswith("~")):
            raise ConfigError(f"{word}: {bare(key)}")
        if part not in Config.model_fields or re.search("[@:]", key):
            raise ConfigError(unknown(key))
        try:
            override = parser.parse_override(word)
        except HydraException:
            raise ConfigError(f"{word}: cannot be read{_fix(key, value)}") from None
        if override.is_sweep_override():
            raise ConfigError(f"{word}: {_several(key, value)}")
        if key in GROUPS:
            _check_choice(word, key, override)
        if key == "optimizer.name" and value in options("optimizer") and f"optimizer={value}" not in words:
            raise ConfigError(f"{word}: gives a name alone; to train with it choose optimizer={value}")
        if key in DECAY and isinstance(override.value(), int | float):
            raise ConfigError(f"{word}: λ is given to a kind of tensor, as in optimizer.weight_decay.hidden={value}")
        table = TABLES.get(key)
        if table and issubclass(table, BaseModel) and not isinstance(override.value(), dict):
            own = ", ".join(f"{key}.{name}" for name in table.model_fields)
            meant = f"; learning rates are {log2_lr(value)}" if key == "lr" else ""
            raise ConfigError(f"{word}: must be a table, or one of its keys: {own}{meant}")


def bare(word: str) -> str:
    """Return what is missing of a word that is no KEY=VALUE."""
    return f"give it a value, as in {word}=VALUE" if word in known_keys() else "must be KEY=VALUE, as in train.steps=400"


def _fix(key: str, value: str) -> str:
    """Return what may be wrong with a value that is none."""
    for left, right in ("[]", "{}"):
        if value.count(left) > value.count(right):
            return f"; quote what has spaces in it, as in '{key}={value} …{right}'"
    if "^" in value:
        return f"; learning rates, and values of sweep.tune, are {log2_lr('')}"
    if value[:1] in "([{" and "," in value:
        return f"; a list is written as in '{key}=[{value.strip('()[]{}, ')}]'"
    return f"; quote a text that has spaces or signs in it, as in '{key}=\"{value}\"'"


def _several(key: str, value: str) -> str:
    """Return what to write in place of values with nothing but commas between."""
    if key in GROUPS and key != "rule":
        return f"takes one; launch a sweep for each, as in {key}={value.partition(',')[0]}"
    return f"write several values as a list, as in '{key}=[{'1,2' if '(' in value else value}]'"


def _check_choice(word: str, group: str, override: Override) -> None:
    chosen: Any = override.value()
    names = chosen if isinstance(chosen, list) else [chosen]
    if override.is_delete():
        raise ConfigError(f"{word}: cannot be left out; {group} can be {', '.join(options(group))}")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{word}: give a name; {group} can be {', '.join(options(group))}")
    if len(names) > 1 and group != "rule":
        raise ConfigError(f"{word}: {_several(group, str(names[0]))}")


@cache
def known_keys() -> tuple[str, ...]:
    """Every key that some config has, of whatever family and scheduler; * stands for the names in a table."""
    of_variants = (keys(cls, group) for group in ("model", "cluster") for cls in variants(group).values())
    return tuple(dict.fromkeys([*keys(Config), *(key for own in of_variants for key in own)]))


def unknown(key: str) -> str:
    """Return what to say of a key that no config has: the one beside it or in another part that it resembles."""
    by_end = {k.rpartition(".")[2]: k for part in reversed(PARTS) for k in known_keys() if k.rpartition(".")[0] == part}
    parent = key.rpartition(".")[0]
    beside = {k.rpartition(".")[2]: k for k in known_keys() if k.rpartition(".")[0] == parent}
    names = by_end | beside
    found = nearest(key.rpartition(".")[2], names, cutoff=0.8)
    return unknown_key(key, known_keys(), names[found] if found else None)
