"""Where the best learning rate lies: losses of every size over lr, and the optimum over size.

`lr_transfer` is the figure of one sweep; the panels below it, which draw and return what they drew, summary.py lays out too,
and `draw_losses` and `draw_optima` put one of them, with a legend, into axes that are given.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures import style as page_style
from spectral_mup.analysis.figures.style import (
    LETTER,
    LINE,
    MARKERS,
    WIDTH,
    inches_of,
    legend,
    mark,
    page,
    panel,
    powers_of_two,
    signed,
)
from spectral_mup.analysis.stats import NAN, rows
from spectral_mup.analysis.verdict import Verdict, by_rule, format_slope, loss_name, percent, what_was_run
from spectral_mup.config.tune import named

LR_COLUMNS = ["rule", "size", "what", "log2_lr", "lo", "hi", "loss", "k", "n"]  # columns of what the panels return
ROW = 0.105  # inches of a panel for each row of diverged runs, above the losses in view
# Okabe & Ito 2008 (vermillion, blue, green, orange, purple, black): told apart by colour-blind readers.
RULES = ["#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#000000"]
FAR = 16.0  # octaves: an end of a bar that is not known, beyond every axis
NEAR = 1.5  # octaves around an optimum that must be in view
OPTIMUM_NOTE = "Optimum: minimum of the bowl through the points around the best one; bars: its interval"
Looks = Mapping[Any, dict[str, Any]]  # colour and marker of sizes, rules or tensors
LOSS_PANEL_INCHES = 1.5


class View(NamedTuple):
    """What the panels of one sweep share: the look of each size, and the range of losses in view."""

    look: Looks
    row: dict[int, float]  # height of a size's row of crosses, above the losses
    lo: float
    hi: float
    top: float


def lr_transfer(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Loss against log2 lr, a panel per rule and a line per size; then the optimum against the size."""
    points, verdicts, n = data.points, data.verdicts, len(data.verdicts)
    axis, base, parts = verdicts[0].axis, verdicts[0].base, by_rule(points)
    of_axis = axis.replace("_", " ")
    look = size_looks(sorted({size for v in verdicts for size in v.optima}))
    looks = rule_looks([v.rule for v in verdicts])
    view = view_of(points, verdicts, look, LOSS_PANEL_INCHES)
    basis = " / ".join(dict.fromkeys(v.basis for v in verdicts))
    note = f"{what_was_run(points)}. {OPTIMUM_NOTE} ({basis}). Dashed: optimum of {of_axis} {base}."
    note += f" Above the grey line: diverged runs, one row per {of_axis}." if view.row else ""
    cols = 2 if n in (1, 3) else 3
    lines = -(-(n + 1) // cols)
    fig, grid = page([2.0 + ROW * len(view.row)] * lines, [1] * cols, note, legends=2)
    drawn, first = [], None
    for i, v in enumerate(verdicts):
        label = loss_name(points) if i % cols == 0 else None
        ax = first = panel(fig, grid[i // cols, i % cols], i, v.rule, label, first)
        ax.set_xlabel(data.named("learning rate"))
        drawn += loss_panel(ax, parts[v.rule], v, view, list(parts[v.rule]["log2_lr"]))
    ax = panel(fig, grid[n // cols, n % cols :], n, f"optimum against {of_axis}", data.named("optimal learning rate"))
    inches = (WIDTH - 0.8) / cols * (cols - n % cols) - 0.2
    optima, (lo, hi) = optimum_panel(ax, verdicts, looks)
    page_style.sizes_on_x(ax, list(look), axis, inches)
    slopes = {v.rule: slope_text(v) for v in verdicts}
    long = {rule for rule, slope in slopes.items() if (len(rule) + len(slope) + 4) * LETTER > inches}
    texts = [f"{rule}:\n{slope}" if rule in long else f"{rule}: {slope}" for rule, slope in slopes.items()]
    columns = max(1, int(inches / (LETTER * (max(map(len, texts)) + 6))))
    written = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    free = min(0.6, (written + 2.0) * LINE / 1.6)  # of the panel's height, below the optima: for the legend of the slopes
    ax.set_ylim(hi - (hi - lo) / (1 - free), hi)
    above = Rectangle((0, free), 1, 1 - free, transform=ax.transAxes)
    for line in ax.lines:  # the bar of an unsure optimum would reach down into the legend
        line.set_clip_path(above)
    powers_of_two(ax.yaxis, lo, hi, 7)
    handles = [mark(text, ls="-", ms=4.5, **own) for text, own in zip(texts, looks.values(), strict=True)]
    packed = {"borderaxespad": 0.2, "handlelength": 1.0, "labelspacing": 0.3, "alignment": "left", "fontsize": 7}
    ax.legend(handles=handles, loc="lower left", ncol=columns, title=f"slope [{percent(verdicts[0].alpha)} interval]", **packed)
    legend(fig, size_marks(axis, look), line=1)
    legend(fig, point_marks(), line=2)
    return fig, pd.DataFrame(drawn + optima, columns=LR_COLUMNS)


def draw_losses(ax: Axes, points: pd.DataFrame, verdicts: Sequence[Verdict], rule: str, label: str) -> None:
    """Draw the losses under one rule against what was tuned; in view are those that all of the rules need."""
    v = next(v for v in verdicts if v.rule == rule)
    look = size_looks(sorted({size for v in verdicts for size in v.optima}))
    view = view_of(points, verdicts, look, inches_of(ax)[1])
    loss_panel(ax, by_rule(points)[rule], v, view, list(points["log2_lr"]))
    ax.set(xlabel=named("learning rate", v.tuned), ylabel=label)
    ax.legend(handles=size_marks(v.axis, look)[1:], title=f"{rule}\n{v.axis.replace('_', ' ')}")


def draw_optima(ax: Axes, verdicts: Sequence[Verdict]) -> None:
    """Draw the optimum against the size under every rule, with the slopes in the legend."""
    looks, sizes = rule_looks([v.rule for v in verdicts]), sorted({size for v in verdicts for size in v.optima})
    _, (lo, hi) = optimum_panel(ax, verdicts, looks)
    page_style.sizes_on_x(ax, sizes, verdicts[0].axis, inches_of(ax)[0])
    ax.set_ylim(lo, hi)
    powers_of_two(ax.yaxis, lo, hi, 7)
    ax.set_ylabel(named("optimal learning rate", verdicts[0].tuned))
    handles = [mark(f"{v.rule}: {slope_text(v)}", **{"ls": "-", "ms": 4.5, **looks[v.rule]}) for v in verdicts]
    ax.legend(handles=handles, title=f"slope [{percent(verdicts[0].alpha)} interval]")


def size_looks(sizes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Colour and marker of every size, dark for large."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.82, 0, len(sizes)))
    return {size: {"color": c, "marker": m} for size, c, m in zip(sizes, colours, cycle(MARKERS))}


def rule_looks(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every rule."""
    return {rule: {"color": c, "marker": m} for rule, c, m in zip(rules, cycle(RULES), cycle(MARKERS))}


def view_of(points: pd.DataFrame, verdicts: Sequence[Verdict], look: Looks, inches: float) -> View:
    """Choose the losses in view: every optimum, and the typical rise within 1.5 octaves of one; `inches` for them."""
    optima = [o for v in verdicts for o in v.finished.values()]
    near = [o.curve.mean_L[np.abs(o.curve.log2_lrs - o.log2_lr) <= NEAR] for o in optima]
    rises = [np.nanmax(around, initial=o.loss) - o.loss for o, around in zip(optima, near, strict=True)]
    losses = [o.loss for o in optima] or [1.0]
    best, worst = min(losses), max(losses)
    hi = worst + max(1.25 * float(np.median(rises or [1.0])), 0.25 * (worst - best), 0.002 * worst)
    lo = best - 0.06 * (hi - best)
    crossed = sorted(set(points.loc[points["status"] == "diverged", verdicts[0].axis]))
    step = ROW / inches * (hi - lo)
    row = {s: hi + step * (i + 0.8) for i, s in enumerate(crossed)}
    return View(look, row, lo, hi, hi + step * (len(row) + 0.5))


def loss_panel(ax: Axes, part: pd.DataFrame, v: Verdict, view: View, lrs: list[float], ticks=(7, 6)) -> list[tuple]:
    """Draw all curves of one rule, and its base's optimum, over the range of `lrs`, with about `ticks` ticks on x and y.

    Of each size: seeds, mean, optimum; above the losses, a row of diverged runs.
    """
    lo, hi = min(lrs), max(lrs)
    if (tuned := v.optima.get(v.base)) is not None:
        ax.axvline(tuned.log2_lr, color="0.6", lw=0.7, ls="--", zorder=0)
    if view.row:
        ax.axhline(view.hi, color="0.75", lw=0.5, zorder=0)
    drawn: list[tuple] = []
    below = Rectangle((0, 0), 1, (view.hi - view.lo) / (view.top - view.lo), transform=ax.transAxes)  # the diverged runs
    for size, o in v.optima.items():
        look, runs = view.look[size], rows(part, (part[v.axis] == size) & (part["status"] != "missing"))
        seeds = rows(runs, runs["status"] == "done")[["log2_lr", "loss"]].to_numpy(float)
        ax.plot(*seeds.T, ls="", ms=2.6, alpha=0.5, mew=0, **look)[0].set_clip_path(below)
        drawn += [(v.rule, size, "seed", x, NAN, NAN, y, 1, 1) for x, y in seeds]
        if o is not None:
            n, use = o.curve.n_seeds, o.curve.finished_SL.any(0)
            x, means = o.curve.log2_lrs[use], o.curve.mean_L[use]
            ax.plot(x, means, color=look["color"], lw=0.5)[0].set_clip_path(below)
            if o.fitted:
                window = o.curve.log2_lrs[o.curve.window]
                under = np.linspace(window[0], window[-1], 60)
                ax.plot(under, o.bowl_at(under), color=look["color"])[0].set_clip_path(below)
            above = x[means > view.hi]
            aside = 0.12 * (list(view.look).index(size) - (len(view.look) - 1) / 2)  # or sizes would hide each other
            ax.plot(above + aside, np.full(len(above), view.hi), ls="", marker=6, ms=4, color=look["color"], mew=0)
            edge = {"mec": "k", "mew": 0.7} if o.bracketed else {"mfc": "w", "mew": 1.2}
            ax.plot(o.log2_lr, o.loss, ms=6, zorder=5, **look | edge)
            drawn += [(v.rule, size, "mean", x, NAN, NAN, y, n, n) for x, y in zip(x, means, strict=True)]
            what = "optimum" if o.bracketed else "optimum, not bracketed"
            drawn.append((v.rule, size, what, o.log2_lr, o.lo, o.hi, o.loss, n, n))
        drawn += _diverged(ax, v, size, runs, view)
    ax.set_xlim(lo - 0.4, hi + 0.4)
    powers_of_two(ax.xaxis, lo, hi, ticks[0])
    losses_on_y(ax, view, ticks[1])
    return drawn


def losses_on_y(ax: Axes, view: View, ticks: int) -> None:
    """Put the losses in view on the y axis, with about `ticks` ticks, none among the diverged runs."""
    ax.set_ylim(view.lo, view.top)
    ax.set_yticks([y for y in MaxNLocator(ticks).tick_values(view.lo, view.hi) if view.lo <= y <= view.hi])


def _diverged(ax: Axes, v: Verdict, size: int, runs: pd.DataFrame, view: View) -> list[tuple]:
    """Draw a size's row of diverged runs: a cross where all seeds did, else k/n."""
    drawn, colour = [], view.look[size]["color"]
    lrs = np.unique(runs["log2_lr"].to_numpy(float))
    for x in lrs:
        statuses = list(runs["status"][runs["log2_lr"] == x])
        bad, n = statuses.count("diverged"), len(statuses)
        if bad:
            drawn.append((v.rule, size, "diverged", x, NAN, NAN, NAN, bad, n))
        if bad == n:
            ax.plot(x, view.row[size], "x", ms=4, color=colour, mew=1.1)
        elif bad:  # the text ends at its lr where the next lr would run into it
            crowded = ((lrs > x) & (lrs - x < 0.15 * (lrs[-1] - lrs[0]))).any()
            shift: dict[str, Any] = {"xytext": (1 * crowded, -0.5), "ha": "right" if crowded else "center", "va": "center"}
            ax.annotate(f"{bad}/{n}", (x, view.row[size]), color=colour, textcoords="offset points", **shift)
    return drawn


def optimum_panel(ax: Axes, verdicts: Sequence[Verdict], looks: Looks) -> tuple[list[tuple], tuple[float, float]]:
    """Draw log2 optimum against log2 size per rule: interval, fitted line, and slope 0 through the base.

    Returns what was drawn and the log2 lrs that must be in view.
    """
    drawn, bounds, level = [], [], []
    for i, v in enumerate(verdicts):
        look, optima = looks[v.rule], v.finished
        x, best = np.log2(list(optima)), np.array([o.log2_lr for o in optima.values()])
        for (size, o), at in zip(optima.items(), x + 0.05 * (i - (len(verdicts) - 1) / 2), strict=True):
            ax.plot([at, at], np.clip([o.lo, o.hi], o.log2_lr - FAR, o.log2_lr + FAR), color=look["color"], lw=0.9)
            ax.plot(at, o.log2_lr, mfc=look["color"] if o.bracketed else "w", ms=4.5, **look)
            # one unsure size must not flatten the others: at most two octaves of its bar are in view
            bounds += [max(o.lo, o.log2_lr - 2), min(o.hi, o.log2_lr + 2), o.log2_lr]
            drawn.append((v.rule, size, "drift", o.log2_lr, o.lo, o.hi, o.loss, o.curve.n_seeds, o.curve.n_seeds))
        if np.isfinite([v.slope_lo, v.slope_hi]).all():
            ax.plot(x, best.mean() + v.slope * (x - x.mean()), color=look["color"])
        if v.base in optima and all(abs(optima[v.base].log2_lr - y) > 0.1 for y in level):
            level.append(optima[v.base].log2_lr)
            ax.axhline(level[-1], color="0.6", lw=0.7, ls="--", zorder=0)
    return drawn, (min(bounds, default=-1) - 0.3, max(bounds, default=0) + 0.3)


def slope_text(v: Verdict) -> str:
    """The slope with its interval, as it stands in a figure."""
    return format_slope(v.slope, v.slope_lo, v.slope_hi, signed) or "no slope"


def size_marks(axis: str, look: Looks) -> list[Line2D]:
    """Legend of the sizes."""
    return [mark(f"{axis.replace('_', ' ')}:"), *(mark(f"{size}", **{"ls": "-", "ms": 3.5, **of}) for size, of in look.items())]


def point_marks() -> list[Line2D]:
    """Legend of what each mark in a panel of losses means."""
    return [
        mark("one seed", marker="o", ms=3, alpha=0.5, mew=0),
        mark("mean of seeds", ls="-", lw=0.5),
        mark("bowl", ls="-"),
        mark("optimum", marker="o", ms=6, mec="k", mew=0.7),
        mark("not bracketed", marker="o", ms=6, mfc="w", mew=1.2),
        mark("diverged (k/n seeds)", marker="x", ms=4.5),
        mark("above the axis", marker=6, ms=4.5, mew=0),
    ]
