"""No key, token, secret or password is ever part of a config: it would be written into run folders, scripts and logs.

They are found by name (`NAME`, in any part of a key, and before a = in a value), where the environment's are interpolated, in
addresses (user:password@host), and in wandb.* by look.
"""

import re
from collections.abc import Sequence
from typing import Any

from spectral_mup.config.parse import walk
from spectral_mup.errors import ConfigError

NAME = re.compile(r"api[-_]?key|token$|secret|passw(or)?d", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")
ASSIGNED = re.compile(r"([\w.-]+)\s*=\s*[^\s,;]")  # as in export: "ALL,NAME=value"; ALL,NAME alone hands a variable on
ADDRESS = re.compile(r"\w://[^\s/@:]*:[^\s/@]+@")
INNER_KEY = re.compile(r"[{,]\s*['\"]?([\w.-]+)['\"]?\s*:")  # of a dict on the command line, as in args={lr: 1}
WANDB_KEY = re.compile(r"[0-9a-f]{40}|wandb_v1_\w{20,}", re.IGNORECASE)


def refuse_in_overrides(overrides: Sequence[str]) -> None:
    """Refuse a command line that names a credential, before anything parses it and repeats it. Raises ConfigError."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = re.split(r"[^\w.@/-]", key)[0]  # so that a value behind a colon is not repeated as if it were the key
        _refuse(key, [*key.split("."), *INNER_KEY.findall(value)], value)


def refuse_credentials(config: Any) -> None:
    """Refuse a composed, not yet resolved config that has a credential at any depth. Raises ConfigError."""
    for key, value in walk(config):
        _refuse(key, key.split("."), value if isinstance(value, str) else "")


def _refuse(key: str, names: Sequence[str], value: str) -> None:
    found = ["a credential" for name in names if NAME.search(name)]
    found += [f"the credential {name}" for name in ASSIGNED.findall(value) if NAME.search(name)]
    found += ["a password in an address"] * bool(ADDRESS.search(value))
    found += [f"the credential {variable}" for variable in FROM_ENVIRONMENT.findall(value) if NAME.search(variable)]
    if key.startswith("wandb.") and WANDB_KEY.search(value):
        found.append("a key of Weights & Biases")
    if found:
        raise ConfigError(
            f"{key}: {found[0]} must not be in a config, which is kept on disk; "
            "keep it in the environment (WANDB_API_KEY) or ~/.netrc"
        )
