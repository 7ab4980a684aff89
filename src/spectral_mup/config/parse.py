"""From plain dicts to the types of schema.py; a mistake becomes one line: the key, what is wrong, what to type."""

import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from spectral_mup.config.cluster import SCHEDULERS, ClusterConfig
from spectral_mup.config.presets import folders
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError
from spectral_mup.models import FAMILIES
from spectral_mup.models.configs import FamilyConfig, ModelConfig
from spectral_mup.util.registry import did_you_mean, lookup

M = TypeVar("M", bound=BaseModel)

MISSING = "{key}: a value is missing; give one, as in {key}=VALUE"
MESSAGES = {  # by the beginning of pydantic's error types
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text",
    "list": "must be a list, as in '{key}=[…]'",
    "dict": "must be a table, as in {{name: value}}",
    "model": "must be a table, as in {{name: value}}",
    "too_short": "is empty; give at least one value",
    "literal_error": "must be one of {choices}",
    "value_error": "{error}",
}


def typed(plain: Any) -> Config:
    """Make a Config of plain dicts and lists, as schema.to_plain makes them. Raises ConfigError; checks single values only.

    Modules of the user's project folders can be imported from then on, as for `family: my_module.MyConfig`.
    """
    sys.path += [str(folder) for folder in folders()[:-1] if str(folder) not in sys.path and _trusted(folder)]
    parts = dict(plain)
    model, cluster = parts.get("model"), parts.get("cluster")
    if isinstance(model, dict):
        parts["model"] = parse(_family(model.get("family")), model, "model")
    if isinstance(cluster, dict):
        parts["cluster"] = parse(SCHEDULERS.get(str(cluster.get("scheduler")), ClusterConfig), cluster, "cluster")
    return parse(Config, parts, "")


def key_of(word: str) -> str:
    """Return the key that a word of the command line sets."""
    return word.lstrip("+~").partition("=")[0]


def _trusted(folder: Path) -> bool:
    """Return whether modules may be imported from there: under python -P, as in jobs, not where everybody may put them."""
    return not sys.flags.safe_path or folder.is_dir() and not folder.stat().st_mode & 0o002


def _family(name: Any) -> type[ModelConfig]:
    found = FamilyConfig if name is None else lookup(FAMILIES, str(name), "model.family")
    if not (isinstance(found, type) and issubclass(found, ModelConfig)):
        raise ConfigError(f"model.family={name}: must be a subclass of spectral_mup.models.configs.FamilyConfig")
    return found


def variants(group: str) -> dict[str, type[BaseModel]]:
    """Return the classes that a part of the config may have, by the value that chooses it: model.family, cluster.scheduler."""
    return {"model": {name: _family(name) for name in FAMILIES}, "cluster": dict(SCHEDULERS)}.get(group, {})


def parse(cls: type[M], node: Any, key: str) -> M:
    """Parse one part of the config, which lies at `key`. Raises ConfigError about its first mistake.

    What chooses the class comes first, then unknown keys: a misspelt one is missing as well.
    """
    refuse_missing(node, key)
    try:
        return cls.model_validate(node)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        first = min(mistakes, key=lambda e: ({"family", "scheduler"}.isdisjoint(e["loc"]), e["type"] != "extra_forbidden"))
        raise ConfigError(_describe(dict(first), key, cls)) from None


def refuse_missing(node: Any, key: str = "") -> None:
    """Raise ConfigError if a value is still YAML's ???."""
    missing = [inner for inner, value in walk(node, key) if value == "???"]
    if missing:
        raise ConfigError(MISSING.format(key=min(missing)))


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of nested dicts with its value; entries of a list are under the key of the list."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else (("", entry) for entry in node):
            inner = f"{key}.{name}".strip(".")
            yield inner, value
            yield from walk(value, inner)


def _describe(error: dict[str, Any], prefix: str, cls: type[BaseModel]) -> str:
    context, kind = error.get("ctx", {}), error["type"]
    if isinstance(context.get("error"), ConfigError):
        return str(context["error"])  # of a check in the class, which names its keys itself
    names = [str(x) for x in error["loc"] if not isinstance(x, int) and str(x)[0] not in "<["]
    key = ".".join(filter(None, [prefix, *names]))
    if kind == "missing":
        return MISSING.format(key=key)
    if kind == "extra_forbidden":
        return unknown_key(key, keys(cls, prefix))
    choices = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
    if error["loc"][-1] == "[key]":
        return unknown_key(key, [f"{key.rpartition('.')[0]}.{choice}" for choice in choices.split(", ")])
    message = next((text for begin, text in MESSAGES.items() if kind.startswith(begin)), error["msg"])
    message = message.format(key=key, choices=choices, **context).replace("above 0", "positive")
    value = "null" if error["input"] is None else error["input"]
    message += "; none is written null" * (str(value).lower() == "none")
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}: {message}"


def unknown_key(key: str, known: Iterable[str], meant: str | None = None) -> str:
    """Return what to say of a key that is not in the schema: the one that is `meant`, or the nearest, and those beside it."""
    known, (parent, _, last) = list(dict.fromkeys(known)), key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in known if fnmatchcase(parent, k.rpartition(".")[0])]
    hint = f"did you mean {meant}? " if meant else did_you_mean(last, beside, f"{parent}." if parent else "")
    return f"{key}: unknown key; {hint}known: {', '.join(sorted(beside or [k for k in known if '.' not in k]))}"


def keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a part of the config, dotted; * stands for the names in a table."""
    for name, field in cls.model_fields.items():
        key = f"{prefix}.{name}".lstrip(".")
        yield key
        for inner in _classes(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{key}.*" if str(field.annotation).startswith("dict[") else key)
            elif hasattr(inner, "__total__"):
                yield from (f"{key}.{quantity}" for quantity in inner.__annotations__)


def _classes(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    return [cls for inner in inside for cls in _classes(inner)] if inside else [annotation]
