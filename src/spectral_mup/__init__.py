"""Learning rates that transfer across width and depth, for any optimizer: for models of one's own, no Hydra, no sweep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spectral_mup.measure.check_features import check_features
    from spectral_mup.measure.derive import derive
    from spectral_mup.scaling.api import (
        ModelScaling,
        explain,
        init_,
        make_optimizers,
        multipliers,
        param_groups,
        scale,
        set_multipliers_,
    )

__all__ = [
    "ModelScaling",
    "check_features",
    "derive",
    "explain",
    "init_",
    "make_optimizers",
    "multipliers",
    "param_groups",
    "scale",
    "set_multipliers_",
]


def __getattr__(name: str) -> Any:
    """Import torch when the first function is asked for, and not before: `launch.py action=plan` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"check_features": "measure.check_features", "derive": "measure.derive"}.get(name, "scaling.api")
    return getattr(import_module(f"spectral_mup.{module}"), name)
