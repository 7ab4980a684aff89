"""Which keys of a config decide what a sweep is, so that its name stands for them: comparing, and going on with them."""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from spectral_mup.config.schema import PROCESS_KEYS, Config, to_plain

DECIDING = ("model", "optimizer", "rule", "data", "train", "probe", "lr", "verdict", "sweep")
"""Parts of the config that decide which runs are judged, what is searched, and the verdict."""
APART = ("sweep.name", "model.code", "rule.*.differences", *(f"train.{key}" for key in PROCESS_KEYS))
"""Keys in them that decide nothing, or that nobody gives."""
CALLED = {"model": "family", "optimizer": "name", "data": "source"}
"""By which key a part is another one altogether: then nothing is said of its other keys."""


def decides(key: str) -> bool:
    """Whether a key of the config, or a part of it, has a say in which runs are judged, what is searched, and the verdict."""
    return key.partition(".")[0] in DECIDING and not any(fnmatchcase(key, apart) for apart in APART)


def resumed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the deciding keys of a record; all others, also those that are new since, are as they are `now`."""
    config = dict(now)
    for part in DECIDING:
        own = {key: value for key, value in recorded.get(part, {}).items() if part == "rule" or decides(f"{part}.{key}")}
        same = part != "rule" and now[part].get(CALLED.get(part, "")) == own.get(CALLED.get(part, ""))
        config[part] = {**(now[part] if same else {}), **own}
    return config


def differences(recorded: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """(key, recorded value, value now) of the deciding keys that differ; of a table with other names in it, these names."""
    now = json.loads(json.dumps(to_plain(config)))  # as a record holds it, without tuples
    old = resumed(recorded, now)
    found = [found for part in DECIDING for found in _differences(part, old[part], now[part])]
    before, tuned = [*old["sweep"]["tune"]], [*now["sweep"]["tune"]]
    turned = {*before} == {*tuned} and before != tuned  # the first is tuned first, and judged into the sweep's own folder
    return found + [("sweep.tune", before, tuned)] * turned


def _differences(key: str, old: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if old == now or not decides(key) or _in_any_order(key, old, now):
        return
    if not isinstance(old, dict) or not isinstance(now, dict):
        yield key, old, now
        return
    called = CALLED.get(key, "")
    if old.get(called) != now.get(called):
        yield key, old.get(called), now.get(called)
    elif old.keys() != now.keys():
        yield key, list(old), list(now)
    else:
        for name in now:
            yield from _differences(f"{key}.{name}", old[name], now[name])


def _in_any_order(key: str, old: Any, now: Any) -> bool:
    """Whether these are the same sizes, learning rates or seeds of a sweep."""
    return key.startswith("sweep.") and isinstance(old, list) and isinstance(now, list) and sorted(old) == sorted(now)
