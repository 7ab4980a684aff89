"""What the `auto` settings of a Point mean. Decided from the config alone, before it is hashed."""

from __future__ import annotations

from typing import Any

from spectral_mup.schema import Config


def resolve(config: Config, width: int) -> dict[str, Any]:
    """Definite precision and compilation of a Point of this width."""
    t = config.train
    return {
        "precision": "float32" if t.precision == "auto" else t.precision,
        "compile": "false" if t.compile == "auto" else t.compile,
    }
