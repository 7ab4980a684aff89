"""Names in a literal dict, or import paths of a user's own: the one way to look up a family, figure, quantity or action."""

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from spectral_mup.errors import ConfigError


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The question that a misspelt name calls for, with a space after it; empty if nothing known resembles it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def lookup(registry: Mapping[str, Any], name: str, key: str) -> Any:
    """Return registry[name], or what an import path such as my_module.my_function names; strings in the registry are paths.

    Raises ConfigError, which names the config key and lists what there is.
    """
    found = registry.get(name, name if "." in name else None)
    if found is None:
        hint = f"{did_you_mean(name, registry)}must be one of {', '.join(registry)}"
        raise ConfigError(f"{key}={name}: {hint}, or an import path, as in my_module.my_name")
    if not isinstance(found, str):
        return found
    try:
        return pkgutil.resolve_name(found)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}={name}: cannot be imported ({type(error).__name__}: {error})") from error
