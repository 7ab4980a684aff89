"""The figures of feature and update norms: their growth with size, and the slope of it over the steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from spectral_mup.analysis.feature_check import FeatureCheck, relative, representative, short
from spectral_mup.analysis.figures.style import LETTER, LINE, MARKERS, STYLE, WIDTH, page, per_row, signed, sizes_on_x
from spectral_mup.analysis.optimum import rows
from spectral_mup.analysis.verdict import Verdict, what_was_run

# Petroff 2021 (arXiv 2107.02270): told apart by colour-blind readers. Written out, as old matplotlib lacks them.
MODULES = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()
QUANTITY = {"feature": "RMS of Δh", "update": r"$\|\Delta W\|_2\,\sqrt{n_{in}/n_{out}}$"}
COLUMN = 0.41  # inches of a column of slopes


@matplotlib.style.context(["default", STYLE])
def feature_norms(points: pd.DataFrame, verdicts: Sequence[Verdict]) -> tuple[Figure, pd.DataFrame]:
    """Feature and update norms against size at the judged step, relative to the smallest size, with slopes."""
    note = "Lines: mean over seeds (faint: single seeds) relative to the smallest {axis}, at step {step} and log2 "
    note += "lr {lr}, the common one nearest the base's optimum. Right: fitted slopes, "
    note += "bold where the whole interval is outside the limit."
    return _norm_figure(points, verdicts, note, "size")


@matplotlib.style.context(["default", STYLE])
def feature_steps(points: pd.DataFrame, verdicts: Sequence[Verdict]) -> tuple[Figure, pd.DataFrame]:
    """Slopes of the feature and update norms against size, over the probed steps."""
    note = "Slope of log2 norm against log2 {axis} at each probed step; log2 lr {lr}. Dashed: judged step {step}."
    return _norm_figure(points, verdicts, note, "step")


def _norm_figure(points, verdicts: Sequence[Verdict], note: str, over: str) -> tuple[Figure, pd.DataFrame]:
    """Lay out quantity × rule panels, three rules a row; modules and slopes are listed at the right."""
    axis, checks = verdicts[0].axis, {v.rule: v.features for v in verdicts if v.features is not None}
    names = {q: representative(list(checks.values()), q, most=len(MODULES)) for q in QUANTITY}
    cols = per_row(len(checks))
    chunks = [(list(checks)[i : i + cols], q) for i in range(0, len(checks), cols) for q in QUANTITY]
    steps = dict.fromkeys(f"{c.step}" for c in checks.values())
    lrs = dict.fromkeys(f"{c.log2_lr:g}" for c in checks.values() if c.log2_lr is not None)
    note = f"{what_was_run(points)}. {note.format(axis=axis, step='/'.join(steps), lr='/'.join(lrs))} Blocks: the "
    note += f"last one.{' Updates inside blocks: times the depth, as branches add up.' * (axis == 'depth')} "
    note += "Grey: |slope| ≤ 0.15 (the limit of hidden modules), dotted: 0.10 (embedding, readout)."
    text = LETTER * (6 + max((len(short(n)) for q in names for n in names[q]), default=0))
    table = text + COLUMN * cols * (over == "size")
    inches = (WIDTH - 0.5 - table) / cols
    heights = [max(1.6, (len(names[q]) + 2) * LINE + 0.35) for _, q in chunks]
    fig, grid = page(heights, [inches] * cols + [table], note)
    first: dict[str, Axes | None] = dict.fromkeys(QUANTITY)  # one vertical scale for a quantity
    drawn: list[tuple] = []
    for i, (rules, quantity) in enumerate(chunks):
        looks = zip(MODULES, MARKERS, strict=False)
        look = {n: {"color": c, "marker": m, "ms": 3.2} for n, (c, m) in zip(names[quantity], looks, strict=False)}
        said = f"{QUANTITY[quantity]}, relative" if over == "size" else f"slope of {QUANTITY[quantity]}"
        listed = {}
        for j, rule in enumerate(rules):
            letter = chr(97 + cols * i + j)
            ax = first[quantity] = fig.add_subplot(grid[i, j], sharey=first[quantity])
            ax.set_title(f"({letter}) {rule}", loc="left")
            ax.tick_params(labelleft=j == 0)
            ax.set_ylabel("" if j else said)
            panel = _norm_panel(ax, checks[rule], quantity, look, over, axis, inches)
            drawn += [(rule, quantity, *row) for row in panel]
            listed |= {letter: checks[rule]} if over == "size" else {}
        _list_modules(fig.add_subplot(grid[i, cols]), quantity, look, listed, table)
    columns = ["size", "seed", "value", "log2_ratio"] if over == "size" else ["step", "slope", "lo", "hi"]
    return fig, pd.DataFrame(drawn, columns=["rule", "quantity", "name", *columns])


def _norm_panel(ax: Axes, check: FeatureCheck, quantity: str, look: dict, over: str, axis: str, inches: float):
    """Draw every module of one quantity under one rule, over the size or over the step, and the limits."""
    if check.step is None:
        ax.text(0.5, 0.5, textwrap.fill(check.summary, 24), ha="center", va="center", transform=ax.transAxes)
        return []
    drawn = []
    table = rows(check.table, check.table["quantity"] == quantity)
    for name, style in look.items():
        if over == "size":
            seeds = relative(check, quantity, name)
            x = np.unique(seeds[:, 0])
            ax.plot(np.log2(seeds[:, 0]), seeds[:, 3], ls="", **style | {"ms": 2, "alpha": 0.4, "mew": 0})
            ax.plot(np.log2(x), [seeds[seeds[:, 0] == s, 3].mean() for s in x], **style)
        else:
            seeds = rows(table, table["name"] == name)[["step", "slope", "lo", "hi"]].to_numpy(float)
            ax.plot(seeds[:, 0], seeds[:, 1], **style)
        drawn += [(name, *row) for row in seeds]
    sizes = np.unique(check.values["size"].to_numpy(float))
    x = np.log2(sizes) if over == "size" else np.unique(table["step"].to_numpy(float))
    limit = x - x[0] if over == "size" else np.ones(len(x))
    ax.fill_between(x, -0.15 * limit, 0.15 * limit, color="0.88", lw=0, zorder=0)
    ax.plot(x, np.outer(limit, [-0.1, 0.1]), color="0.55", lw=0.6, ls=":", zorder=0)
    if over == "size":
        sizes_on_x(ax, sizes.tolist(), axis, inches)
        ax.yaxis.set_major_formatter(lambda y, _: f"{2.0**y:.2g}")
    else:
        ax.axvline(check.step, color="0.6", lw=0.7, ls="--", zorder=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("optimizer step")
    return drawn


def _list_modules(ax: Axes, quantity: str, look: dict, checks: dict[str, FeatureCheck], inches: float) -> None:
    """Write the legend of a row of panels as a table: mark, module, and its slope in each panel."""
    ax.set_axis_off()
    ax.set(xlim=(0, inches), ylim=(len(look) + 0.5, -0.8))
    ax.text(0, 0, "slope in" if checks else "", va="center")
    for i, (name, style) in enumerate(look.items(), start=1):
        ax.plot([0, 0.08, 0.16], [i, i, i], markevery=[1], clip_on=False, **style)
        ax.text(0.22, i, short(name), va="center")
    for j, (letter, check) in enumerate(reversed(checks.items())):
        x, t = inches - COLUMN * j, check.table
        ax.text(x, 0, f"({letter})", ha="right", va="center")
        judged = rows(t, (t["step"] == check.step) & (t["quantity"] == quantity))
        for name, slope, verdict in judged[["name", "slope", "verdict"]].to_numpy():
            if name in look:
                i, weight = list(look).index(name) + 1, "bold" if verdict == "failed" else "normal"
                ax.text(x, i, signed(slope), ha="right", va="center", weight=weight)
