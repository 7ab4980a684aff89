"""Model families by name. Imports no torch: `family` does when it is called."""

from __future__ import annotations

import pkgutil
from typing import Any

FAMILIES = {
    "nanogpt": "spectral_mup.models.nanogpt.NanoGPT",
    "llama2": "spectral_mup.models.llama2.Llama2",
}


def family(name: str) -> Any:
    """The class of a family: an nn.Module built by keywords, with its residual blocks' name prefixes in `residual_blocks`."""
    return pkgutil.resolve_name(FAMILIES[name])
