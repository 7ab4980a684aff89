"""Learning rates that transfer across width and depth, for any optimizer, on your own models: no Hydra, no sweep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from spectral_mup.analysis.load import Loaded, load
    from spectral_mup.analysis.own_runs import Judged, judge, plot_lr_transfer
    from spectral_mup.cli.sweep import sweep
    from spectral_mup.measure.check_features import FeatureVerdict, check_features, plot_features
    from spectral_mup.measure.derive import derive
    from spectral_mup.scaling.forward_multipliers import multipliers, set_multipliers_
    from spectral_mup.scaling.groups import make_optimizers, param_groups
    from spectral_mup.scaling.init import init_
    from spectral_mup.scaling.recipe import Recipe, recipe
    from spectral_mup.scaling.scale import ModelScaling, scale
    from spectral_mup.scaling.table import explain
    from spectral_mup.training.trainer import Trainer

PUBLIC = {
    "FeatureVerdict": "measure.check_features",
    "Judged": "analysis.own_runs",
    "Loaded": "analysis.load",
    "ModelScaling": "scaling.scale",
    "Recipe": "scaling.recipe",
    "Trainer": "training.trainer",
    "check_features": "measure.check_features",
    "derive": "measure.derive",
    "explain": "scaling.table",
    "init_": "scaling.init",
    "judge": "analysis.own_runs",
    "load": "analysis.load",
    "make_optimizers": "scaling.groups",
    "multipliers": "scaling.forward_multipliers",
    "param_groups": "scaling.groups",
    "plot_features": "measure.check_features",
    "plot_lr_transfer": "analysis.own_runs",
    "recipe": "scaling.recipe",
    "scale": "scaling.scale",
    "set_multipliers_": "scaling.forward_multipliers",
    "sweep": "cli.sweep",
}
__all__ = [
    "FeatureVerdict",
    "Judged",
    "Loaded",
    "ModelScaling",
    "Recipe",
    "Trainer",
    "check_features",
    "derive",
    "explain",
    "init_",
    "judge",
    "load",
    "make_optimizers",
    "multipliers",
    "param_groups",
    "plot_features",
    "plot_lr_transfer",
    "recipe",
    "scale",
    "set_multipliers_",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import what a function needs, torch or pandas, when it is first asked for: `launch.py action=plan` needs neither."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"spectral_mup.{PUBLIC[name]}"), name)
