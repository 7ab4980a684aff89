"""Keep keys, tokens, secrets and passwords out of configs, which are written into run folders, scripts and logs.

They are recognised by name (`SECRET_NAME`): in any part of a key, before a = in a value, and in ${oc.env:…}; in an address, as
user:password@host; and in wandb.* by their form.
"""

import re
from collections.abc import Sequence
from typing import Any

from spectral_mup.config.parse import walk
from spectral_mup.errors import ConfigError

SECRET_NAME = re.compile(r"api[-_]?key|token$|secret|passw(or)?d", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")
ASSIGNED = re.compile(r"([\w.-]+)\s*=\s*[^\s,;]")  # as in export: "ALL,NAME=value"; "ALL,NAME" gives no value away
ADDRESS = re.compile(r"\w://[^\s/@:]*:[^\s/@]+@")
INNER_KEY = re.compile(r"[{,]\s*['\"]?([\w.-]+)['\"]?\s*:")  # of a dict on the command line, as in args={lr: 1}
WANDB_KEY = re.compile(r"[0-9a-f]{40}|wandb_v1_\w{20,}", re.IGNORECASE)


def refuse_in_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError on a command line with a credential, before anything parses it and repeats it."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = re.split(r"[^\w.@/-]", key)[0]  # so that a value behind a colon is not repeated as if it were the key
        _refuse(key, [*key.split("."), *INNER_KEY.findall(value)], value)


def refuse_credentials(config: Any) -> None:
    """Raise ConfigError on a composed config, not yet interpolated, that has a credential at any depth."""
    for key, value in walk(config):
        _refuse(key, key.split("."), value if isinstance(value, str) else "")


def _refuse(key: str, names: Sequence[str], value: str) -> None:
    found = ["a credential" for name in names if SECRET_NAME.search(name)]
    found += [f"the credential {name}" for name in ASSIGNED.findall(value) if SECRET_NAME.search(name)]
    found += ["a password in an address"] * bool(ADDRESS.search(value))
    found += [f"the credential {variable}" for variable in FROM_ENVIRONMENT.findall(value) if SECRET_NAME.search(variable)]
    if key.startswith("wandb.") and WANDB_KEY.search(value):
        found.append("a key of Weights & Biases")
    if found:
        raise ConfigError(
            f"{key}: {found[0]} must not be in a config, which is kept on disk; "
            "keep it in the environment (WANDB_API_KEY) or ~/.netrc"
        )
