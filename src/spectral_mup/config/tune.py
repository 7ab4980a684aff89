"""What a sweep tunes in log2: the lr, or any positive number of the config that a run depends on, by its key.

`optimizer.X.KEY` is short for `optimizer.algorithms.X.KEY`.
"""

import functools
import math
import operator
import re
import statistics
from collections.abc import Mapping
from typing import Any, TypeGuard

from spectral_mup.config.parse import typed, walk
from spectral_mup.config.schema import PROCESS_KEYS, Config, to_plain
from spectral_mup.theory.growth import KINDS

LR = "lr"  # a run's log2_lr; not a key of the config
SIZES = {f"train.{name}": f"sweep.{name}" for name in ("steps", "batch_size")}  # which have axes of their own
SPREAD = 2.0  # octaves from a key's value to the other two that its search starts from, where none are given


def key_named(config: Config, name: str) -> str:
    """Return the key that a name stands for."""
    short = name.removeprefix("optimizer.")
    return f"optimizer.algorithms.{short}" if short.partition(".")[0] in config.optimizer.algorithms else name


def named(text: str, tuned: str) -> str:
    """Rewrite what is said of lr for the key that was tuned."""
    return (
        re.sub(r"learning rate|\blrs?\b", lambda m: f"values of {tuned}" if m[0] == "lrs" else tuned, text)
        if tuned != LR
        else text
    )


def tunable(config: Config) -> dict[str, Any]:
    """Return the values of the config that a run depends on, by key, whether numbers or not; without sizes, which have axes."""
    plain, o = to_plain(config), config.optimizer
    used = {getattr(o, kind) for kind in KINDS}
    plain["optimizer"]["algorithms"] = {name: a for name, a in plain["optimizer"]["algorithms"].items() if name in used}
    values: dict[str, Any] = {}
    for key, value in walk({part: plain[part] for part in ("model", "optimizer", "train")}):
        values.setdefault(key, value)  # of a list its entries follow under the same key
    apart = {*SIZES, *(f"train.{key}" for key in PROCESS_KEYS)}
    return {key: value for key, value in values.items() if key not in apart and not isinstance(value, dict)}


def names(config: Config) -> list[str]:
    """List what can be tuned, by its short name; exponents, which say how things grow, are left out."""
    numbers = [key for key, value in tunable(config).items() if value is None or is_number(value)]
    short = [key.replace("optimizer.algorithms.", "optimizer.") for key in numbers]
    return [LR, *sorted(key for key in short if not {"update_norm", "eps_law", "lr_shape"} & {*key.split(".")})]


def log2_now(config: Config, name: str) -> float | None:
    """Return log2 of a key's value, rounded to a multiple of 1/4; None unless that is a positive number.

    An init std of null is the default that it stands for in the base model.
    """
    key = key_named(config, name)
    value: Any = tunable(config).get(key)
    if value is None and key.startswith("model.init_std."):
        kind, width = key.rpartition(".")[2], config.sweep.base_width
        std = config.model.init_stds(width)[kind]
        value = width**-0.5 if std is None else std
    return round(4 * math.log2(value)) / 4 if is_number(value) and value > 0 else None


def log2_lr(value: str | float) -> str:
    """How a learning rate is given, in log2, which a positive value is taken not to be yet."""
    try:
        lr = float(value)
        log2 = lr if lr <= 0 else round(4 * math.log2(lr)) / 4
    except ValueError:
        log2 = -7
    return f"log2, as in 'sweep.lr=[{log2:g}]'"


def is_number(value: object) -> TypeGuard[float]:
    """Return whether log2 of a value could be swept, were it positive."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def start_of(config: Config, name: str) -> list[float]:
    """Return the log2 values that the search of a tuned key starts from; empty where they cannot be told."""
    given = config.sweep.tune.get(name) or (config.sweep.lr if name == LR else [])
    now = None if given else log2_now(config, name)
    return sorted(given) if now is None else [now - SPREAD, now, now + SPREAD]


def held_at(config: Config, name: str) -> float:
    """Return the log2 value at which a key is held until it is tuned: its own, else the middle of its search's first ones."""
    now = None if name == LR else log2_now(config, name)
    return statistics.median_low(start_of(config, name)) if now is None else now


def with_sizes(config: Config, steps: int | None, batch_size: int | None) -> Config:
    """Return the config with runs of this length, of which warmup keeps its share, and this batch; None: unchanged."""
    t = config.train
    sizes = {"steps": steps or t.steps, "batch_size": batch_size or t.batch_size}
    sizes["warmup"] = round(t.warmup * sizes["steps"] / t.steps)
    return config.model_copy(update={"train": t.model_copy(update=sizes)})


def with_numbers(config: Config, log2: Mapping[str, float]) -> Config:
    """Return the config with these keys at 2**log2, rounded where one holds a whole number.

    Raises ConfigError on their bounds.
    """
    plain = to_plain(config)
    for name, x in log2.items():
        *path, last = key_named(config, name).split(".")
        table = functools.reduce(operator.getitem, path, plain)
        table[last] = round(2.0**x) if isinstance(table[last], int) else 2.0**x
    return typed(plain)
