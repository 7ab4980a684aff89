"""Names in a literal dict, or import paths of a user's own: the one way to look up a family, figure, quantity or action."""

import difflib
import hashlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spectral_mup.errors import ConfigError

GIVEN: dict[str, Any] = {}
"""Functions handed over in Python, by the names under which the config of this process knows them in place of import paths."""


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the question that a misspelt name calls for, with a space after it; empty if nothing known resembles it."""
    found = nearest(name, known)
    return f"did you mean {prefix}{found}? " if found else ""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return what resembles a name most, in letters of either case; None where nothing known is as similar as `cutoff`."""
    by_letters = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=cutoff)
    return by_letters[near[0]] if near else None


def lookup(registry: Mapping[str, Any], name: str, key: str) -> Any:
    """Return registry[name], or what an import path such as my_module.my_function names; strings in the registry are paths.

    Raises ConfigError, which names the config key and lists what there is.
    """
    found = registry.get(name, GIVEN.get(name, name if "." in name else None))
    if found is None:
        hint = f"{did_you_mean(name, registry)}must be one of {', '.join(registry)}"
        raise ConfigError(f"{key}={name}: {hint}, or an import path, as in my_module.my_name")
    if not isinstance(found, str):
        return found
    try:
        imported = pkgutil.resolve_name(found)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}={name}: cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(imported):
        raise ConfigError(f"{key}={name}: must be a function or a class, not a {type(imported).__name__}")
    return imported


def code_digest(name: str) -> str | None:
    """Return the SHA-256 of the file that defines the function at an import path, or of the source of a GIVEN one.

    None if it is not found. What the file imports is not part of it. Imports the packages around the module, but not itself.
    """
    if name in GIVEN:
        return source_digest(GIVEN[name])
    parts = name.replace(":", ".").split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin is not None and spec.has_location:
            with open(spec.origin, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def source_digest(function: Callable[..., Any]) -> str:
    """Return the SHA-256 of the source of a function or class, or of its bytecode where there is none, as when typed in."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(getattr(function, "func", function), "__code__", None)  # func: of functools.partial
        source = repr(function) if code is None else f"{code.co_code!r} {code.co_consts!r} {code.co_names!r}"
    return hashlib.sha256(source.encode()).hexdigest()


def import_path(function: Callable[..., Any]) -> str | None:
    """Return the import path by which every process finds the function; None if there is none: lambdas, those of a notebook."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        return None
    try:
        return f"{module}.{name}" if pkgutil.resolve_name(f"{module}:{name}") is function else None
    except (ImportError, AttributeError):
        return None
