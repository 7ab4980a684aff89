"""The figures of feature and update norms: their growth with size, and the slope of it over the steps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from spectral_mup.analysis.feature_check import FeatureCheck, relative, representative
from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures.style import sizes_on_x
from spectral_mup.analysis.figures.tensor_panels import MODULES, Looks, Numbers, Strip, seeds_and_mean, strip_page
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import what_was_run

QUANTITY = {"feature": "RMS of Δh", "update": r"$\|\Delta W\|_2\,\sqrt{n_{in}/n_{out}}$"}
Panel = Callable[[Axes, FeatureCheck, str, Looks, float], tuple[list[tuple], Numbers]]


def feature_norms(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Feature and update norms against size at the judged step, relative to the smallest size, with slopes."""
    note = "Lines: mean over seeds (faint: single seeds) relative to the smallest {axis}, at step {step} and log2 "
    note += "lr {lr}, the common one nearest the base's optimum. Right: fitted slopes, "
    note += "bold where the whole interval is outside the limit."

    def panel(ax: Axes, check: FeatureCheck, quantity: str, look: Looks, inches: float) -> tuple[list[tuple], Numbers]:
        drawn = []
        for name, style in look.items():
            seeds = relative(check, quantity, name)
            seeds_and_mean(ax, np.log2(seeds[:, 0]), seeds[:, 3], style)
            drawn += [(name, *row) for row in seeds]
        sizes = np.unique(check.values["size"].to_numpy(float))
        _limits(ax, np.log2(sizes), np.log2(sizes / sizes[0]))
        sizes_on_x(ax, sizes.tolist(), data.axis, inches)
        ax.yaxis.set_major_formatter(lambda y, _: f"{2.0**y:.2g}")
        judged = rows(check.table, (check.table["step"] == check.step) & (check.table["quantity"] == quantity))
        return drawn, {n: (slope, v == "failed") for n, slope, v in judged[["name", "slope", "verdict"]].to_numpy()}

    return _norm_figure(data, note, panel, ["size", "seed", "value", "log2_ratio"], "{}, relative", "slope in")


def feature_steps(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Slopes of the feature and update norms against size, over the probed steps."""
    note = "Slope of log2 norm against log2 {axis} at each probed step; log2 lr {lr}. Dashed: judged step {step}."

    def panel(ax: Axes, check: FeatureCheck, quantity: str, look: Looks, inches: float) -> tuple[list[tuple], Numbers]:
        drawn, table = [], rows(check.table, check.table["quantity"] == quantity)
        for name, style in look.items():
            slopes = rows(table, table["name"] == name)[["step", "slope", "lo", "hi"]].to_numpy(float)
            ax.plot(slopes[:, 0], slopes[:, 1], **style)
            drawn += [(name, *row) for row in slopes]
        steps = np.unique(table["step"].to_numpy(float))
        _limits(ax, steps, np.ones(len(steps)))
        ax.axvline(float(check.step or 0), color="0.6", lw=0.7, ls="--", zorder=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("optimizer step")
        return drawn, {}

    return _norm_figure(data, note, panel, ["step", "slope", "lo", "hi"], "slope of {}", "")


def _norm_figure(
    data: SweepData, note: str, panel: Panel, columns: list[str], label: str, header: str
) -> tuple[Figure, pd.DataFrame]:
    """Lay out quantity × rule panels; `header` of the table of slopes, or empty if there is none."""
    checks = {v.rule: v.features for v in data.verdicts if v.features is not None}
    steps = dict.fromkeys(f"{c.step}" for c in checks.values())
    lrs = dict.fromkeys(f"{c.log2_lr:g}" for c in checks.values() if c.log2_lr is not None)
    text = (
        f"{what_was_run(data.points)}. {note.format(axis=data.axis, step='/'.join(steps), lr='/'.join(lrs))} Blocks: the last "
    )
    text += f"one.{' Updates inside blocks: times the depth, as branches add up.' * (data.axis == 'depth')} Grey: "
    text += "|slope| ≤ 0.15 (the limit of hidden modules), dotted: 0.10 (embedding, readout)."
    drawn: list[tuple] = []

    def strip(quantity: str) -> Strip:
        def draw(ax: Axes, rule: str, look: Looks, inches: float) -> Numbers:
            check = checks[rule]
            if check.step is None:
                ax.text(0.5, 0.5, textwrap.fill(check.summary, 24), ha="center", va="center", transform=ax.transAxes)
                return {}
            points, numbers = panel(ax, check, quantity, look, inches)
            drawn.extend((rule, quantity, *row) for row in points)
            return numbers

        names = representative(list(checks.values()), quantity, most=len(MODULES))
        return Strip(quantity, label.format(QUANTITY[quantity]), names, header, draw)

    fig = strip_page(list(checks), [strip(q) for q in QUANTITY], text, 1.6, columns=bool(header))
    return fig, pd.DataFrame(drawn, columns=["rule", "quantity", "name", *columns])


def _limits(ax: Axes, x: np.ndarray, unit: np.ndarray) -> None:
    """Draw the limits of the slopes; `unit`: a slope of one."""
    ax.fill_between(x, -0.15 * unit, 0.15 * unit, color="0.88", lw=0, zorder=0)
    ax.plot(x, np.outer(unit, [-0.1, 0.1]), color="0.55", lw=0.6, ls=":", zorder=0)
