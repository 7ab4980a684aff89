"""No key, token, secret or password is ever part of a config: it would be written into run folders, scripts and logs.

They are found by name (`NAME`, in any part of a key), where the environment's are interpolated, and in wandb.* by look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from spectral_mup.errors import ConfigError

NAME = re.compile(r"api[-_]?key|token$|secret|passw(or)?d", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")
INNER_KEY = re.compile(r"[{,]\s*['\"]?([\w.-]+)['\"]?\s*:")  # of a dict on the command line, as in args={lr: 1}
WANDB_KEY = re.compile(r"[0-9a-f]{40}|wandb_v1_\w{20,}", re.IGNORECASE)


def refuse_in_overrides(overrides: Sequence[str]) -> None:
    """Refuse a command line that names a credential, before anything parses it and repeats it. Raises ConfigError."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = re.split(r"[^\w.@/-]", key)[0]  # so that a value behind a colon is not repeated as if it were the key
        for name in [*key.split("."), *INNER_KEY.findall(value)]:
            _refuse_name(key, name)
        _refuse_value(key, value)


def refuse_credentials(node: Any, key: str = "") -> None:
    """Refuse a composed, not yet resolved config that has a credential at any depth. Raises ConfigError."""
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            _refuse_name(inner, str(name))
            refuse_credentials(value, inner)
    elif isinstance(node, list):
        for value in node:
            refuse_credentials(value, key)
    elif isinstance(node, str):
        _refuse_value(key, node)


def _refuse_name(key: str, name: str) -> None:
    if NAME.search(name):
        raise _error(key, "a credential")


def _refuse_value(key: str, value: str) -> None:
    for variable in FROM_ENVIRONMENT.findall(value):
        if NAME.search(variable):
            raise _error(key, f"the credential {variable}")
    if key.startswith("wandb.") and WANDB_KEY.search(value):
        raise _error(key, "a key of Weights & Biases")


def _error(key: str, what: str) -> ConfigError:
    return ConfigError(
        f"{key}: {what} must not be in a config, which is kept on disk; keep it in the environment (WANDB_API_KEY) or ~/.netrc"
    )
