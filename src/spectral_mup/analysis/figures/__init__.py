"""The figures of a sweep by name. Each is a function of SweepData that returns (Figure, the data drawn), or None.

A user's own figure is such a function, named by its import path: figures.only=[lr_transfer,my_module.my_figure].
matplotlib and pandas take a second to import: here they are imported only where something is drawn.
"""

from __future__ import annotations

import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.config.tune import named
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import AXES
from spectral_mup.util.registry import lookup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from spectral_mup.analysis.feature_check import FeatureCheck
    from spectral_mup.analysis.verdict import Verdict

    Drawing = tuple[Figure, pd.DataFrame]


@dataclass(frozen=True, eq=False)
class SweepData:
    """What a figure is drawn from: the runs of a sweep over one axis, or over both together."""

    points: pd.DataFrame  # one row per run (collect.py)
    norms: pd.DataFrame  # one row per run, probed step and module or tensor; of the runs at the lrs of the feature checks
    verdicts: Sequence[Verdict]  # one per rule and axis
    base: Mapping[str, int]  # the size of each axis that was tuned
    axis: str = "width"  # one of AXES, or 'joint': width and depth together
    printing: Printing = Printing()

    def named(self, text: str) -> str:
        """Rewrite what is said of lr for the key that was tuned."""
        return named(text, self.verdicts[0].tuned) if self.verdicts else text

    @property
    def ordered(self) -> list[Verdict]:
        """The verdicts in the order of panels: controls at the left of what is tested."""
        return sorted(self.verdicts, key=lambda v: not v.is_control)

    @property
    def checks(self) -> dict[str, FeatureCheck]:
        """The feature check of each rule."""
        return {v.rule: v.features for v in self.ordered if v.features is not None}

    @property
    def judged_steps(self) -> dict[str, int]:
        """The step at which the features of each rule are judged, where its check found an lr that all sizes share."""
        return {rule: check.step for rule, check in self.checks.items() if check.step is not None}

    def has(self, need: str) -> bool:
        """Return whether a column of `norms` was recorded; of 'norms', whether some rule's feature check found a common lr."""
        if need == "norms":
            return bool(self.judged_steps)
        return need in self.norms and bool(self.norms[need].notna().any())


@dataclass(frozen=True)
class FigureSpec:
    """How a figure is drawn and when: `draw` is a function or its import path, `needs` columns of the norms, or 'norms'."""

    draw: str | Callable[[SweepData], Drawing | None]
    help: str
    needs: frozenset[str] = frozenset()
    axes: frozenset[str] = frozenset({"width", "depth"})  # of steps and batch size no features are judged

    def __call__(self, data: SweepData) -> Drawing | None:
        """Draw in the print style; None where the figure does not apply."""
        if data.axis not in self.axes or not all(map(data.has, self.needs)):
            return None
        draw = pkgutil.resolve_name(self.draw) if isinstance(self.draw, str) else self.draw
        with data.printing.context():
            return draw(data)


def choose_figures(names: Sequence[str] | None) -> dict[str, FigureSpec]:
    """Choose figures by name of file: all of FIGURES (None), or those named, by name or import path. Raises ConfigError."""
    chosen = {}
    for name in FIGURES if names is None else names:
        figure = lookup(FIGURES, name, "figures.only")
        spec = figure if isinstance(figure, FigureSpec) else FigureSpec(figure, figure.__doc__ or "")
        if not isinstance(spec.draw, str) and not callable(spec.draw):
            raise ConfigError(
                f"figures.only={name}: must be a function of SweepData or a FigureSpec, not a {type(figure).__name__}"
            )
        stem = name.rpartition(".")[2]
        built_in = stem in FIGURES and name not in (stem, FIGURES[stem].draw)
        if built_in or stem in chosen or stem in OTHER_FILES:
            raise ConfigError(f"figures.only={name}: its files would be called {stem}.*, as others are; rename the function")
        chosen[stem] = spec
    return chosen


def draw_figures(data: SweepData, folder: Path, figures: Mapping[str, FigureSpec], processes: int = 1) -> None:
    """Write NAME.pdf, .svg, .png, .txt and .csv of each figure that applies; on Linux in that many processes."""
    processes = min(processes, len(figures))
    if processes < 2 or sys.platform != "linux":
        for name, figure in figures.items():
            draw_figure(data, folder, name, figure)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: of BLAS alone, which is made for it
        with ProcessPoolExecutor(processes, get_context("fork"), _inherit, (data, folder, figures)) as pool:
            list(pool.map(_draw_inherited, sorted(figures, key=lambda name: figures[name].needs == NORMS)))  # the slowest first


def draw_figure(data: SweepData, folder: Path, name: str, figure: FigureSpec) -> None:
    """Write the files of a figure; where it no longer applies, remove those of an earlier time."""
    if (drawing := figure(data)) is None:
        for kind in FILES if data.axis in figure.axes else ():
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    else:
        from spectral_mup.analysis.figures.style import save

        save(drawing[0], folder / name, drawing[1], data.printing)


_inherited: list[tuple[SweepData, Path, Mapping[str, FigureSpec]]] = []  # of a forked process: too much to be copied to it


def _inherit(*drawn: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that forked this one, which says so alone
    _inherited.append(drawn)


def _draw_inherited(name: str) -> None:
    data, folder, figures = _inherited[0]
    draw_figure(data, folder, name, figures[name])


def figure_help() -> str:
    """Return one line per figure: name, and what it shows."""
    return "\n".join(f"{name:16} {figure.help}" for name, figure in FIGURES.items())


FILES = ("pdf", "svg", "png", "txt", "csv")  # of a figure
OTHER_FILES = ("curves", "features", "optima", "report", "verdicts", "sweep", "recipe")  # what lies beside them is called
NORMS = frozenset({"norms"})
SPECTRA = frozenset(f"{side}_{what}" for side in ("left", "right") for what in ("largest", "median", "rank", "damped"))
STEPS = f"{__name__}.diagnostics"  # most of its figures are over the steps

FIGURES: dict[str, FigureSpec] = {
    "lr_transfer": FigureSpec(f"{__name__}.lr_transfer.lr_transfer", "loss against lr, a line per size; optimum against size",
        axes=frozenset(AXES)),
    "coord_check": FigureSpec(f"{__name__}.feature_norms.coord_check",
        "coordinate check: RMS of features against size, a panel per class of modules, one line per step", NORMS | {"rms"}),
    "feature_norms": FigureSpec(f"{__name__}.feature_norms.feature_norms",
        "change of features and of weights against size, by class of modules", NORMS),
    "feature_modules": FigureSpec(f"{__name__}.feature_norms.feature_modules",
        "change of features and of weights of single modules", NORMS),
    "feature_steps": FigureSpec(f"{__name__}.feature_norms.feature_steps", "slopes of the classes at every probed step", NORMS),
    "spectral_norms": FigureSpec(f"{STEPS}.spectral_norms",
        "spectral norms of weights and updates against width, in natural units",
        NORMS | {"weight_norm", "update_norm"}, frozenset({"width"})),  # over depth the condition has other powers
    "stable_rank": FigureSpec(f"{STEPS}.stable_rank", "stable rank of updates and gradients over the steps",
        NORMS | {"update_stable_rank", "grad_stable_rank"}),
    "alignment": FigureSpec(f"{STEPS}.alignment", "alignment of weights and updates with their inputs over the steps",
        NORMS | {"weight_alignment", "update_alignment"}),
    "trust_ratios": FigureSpec(f"{STEPS}.trust_ratios", "LAMB: trust ratios against size, and compared with the init std",
        NORMS | {"trust_ratio", "weight_norm"}),
    "clip_fraction": FigureSpec(f"{STEPS}.clip_fraction", "Sophia: share of clipped entries over the steps",
        NORMS | {"clip_fraction"}),
    "shampoo_spectra": FigureSpec(f"{STEPS}.shampoo_spectra", "Shampoo: eigenvalues of its preconditioners over the steps",
        NORMS | SPECTRA),
    "layers": FigureSpec(f"{__name__}.feature_norms.layers",
        "over depth: change of every block and branch against its place in the model", NORMS, frozenset({"depth"})),
    "joint_regret": FigureSpec(f"{__name__}.joint_regret.joint_figure",
        "over width and depth: what the lr tuned on the base costs at every size", axes=frozenset({"joint"})),
    "quantities": FigureSpec(f"{STEPS}.quantities", "other quantities that were recorded, over the steps", NORMS),
}  # fmt: skip
