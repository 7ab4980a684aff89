"""Panels of losses over lr and of the optimum over size: each returns what it drew; the figures lay them out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from spectral_mup.analysis.bowl import losses_in_view
from spectral_mup.analysis.figures.style import VERDICTS, Looks, ink, mark, powers_of_two, signed
from spectral_mup.analysis.stats import NAN, rows
from spectral_mup.analysis.verdict import Verdict, format_slope
from spectral_mup.config.tune import LR

LR_COLUMNS = ["rule", "size", "what", "log2_lr", "lo", "hi", "loss", "k", "n"]  # columns of what the panels return
ROW = 0.105  # inches: height of each row of diverged runs, above the losses in view
FAR = 16.0  # octaves: how far a bar reaches whose end is not known, beyond every axis
OPTIMUM_NOTE = "Optimum: minimum of the bowl through the points around the best one"
NO_SLOPE = "no slope"
JOINT = "\N{NO-BREAK SPACE}"
DIVERGED = "diverged (k/n seeds)"
CARET = Path([(-1.0, -0.5), (0.0, 0.5), (1.0, -0.5)])  # open, unlike the markers of sizes
MARKS: dict[str, dict[str, Any]] = {  # what each mark in a panel of losses means
    "one seed": {"marker": "o", "ms": 3, "alpha": 0.5, "mew": 0},
    "mean of seeds": {"ls": "-", "lw": 0.5},
    "bowl": {"ls": "-"},
    "optimum": {"marker": "o", "ms": 6, "mec": "k", "mew": 0.7},
    "not bracketed": {"marker": "o", "ms": 6, "mfc": "w", "mew": 1.2},
    "from base to largest": {"marker": r"$\rightarrow$", "ms": 9, "color": "k", "mew": 0.3},
    DIVERGED: {"marker": "x", "ms": 4.5},
    "above the axis": {"marker": CARET, "ms": 5, "mfc": "none", "mew": 1.2},
}


class View(NamedTuple):
    """What the panels of one sweep share: the look of each size, and the range of losses in view."""

    look: Looks
    row: dict[int, float]  # height of a size's row of crosses, above the losses
    lo: float
    hi: float
    top: float


def base_lr(tuned: str, lr: str = "base learning rate") -> str:
    """Return the axis label of what was tuned: the lr of which every tensor's own is a multiple, or another key."""
    return lr if tuned == LR else tuned


def most_ticks(inches: float) -> tuple[int, int]:
    """Return about how many ticks a panel of losses of this width has on x and y."""
    return max(2, int(inches / 0.29)), 6


def verdict_text(v: Verdict) -> str:
    """Format verdict, slope and regret to stand over a panel; lines may break between them and before the interval."""
    verdict, slope, regret = verdict_lines(v)
    parts = [f"{verdict}:", *f"{'slope ' * (slope != NO_SLOPE)}{slope},".replace(" [", "\n[").split("\n"), regret]
    return " ".join(part.replace(" ", JOINT) for part in parts)


def verdict_lines(v: Verdict) -> tuple[str, str, str]:
    """Format verdict, slope and regret, each by itself."""
    regret = f"{'≥ ' * v.regret_at_least}{100 * v.regret:.2f} %" if np.isfinite(v.regret) else "unknown"
    return v.verdict, slope_text(v), f"regret {regret}"


def view_of(points: pd.DataFrame, verdicts: Sequence[Verdict], look: Looks, inches: float, full: bool = False) -> View:
    """Choose the losses in view, which get `inches` of height; the rows of diverged runs come on top.

    In view are every optimum and the typical rise within 1.5 octaves of it; with `full`, the means of all lrs that finished.
    """
    optima = [o for v in verdicts for o in v.finished.values()]
    best, hi = losses_in_view(optima)
    if full:
        hi = max([hi, *(1.01 * float(np.nanmax(o.curve.mean_L[o.curve.finished_SL.any(0)])) for o in optima)])
    lo = best - 0.06 * (hi - best)
    crossed = sorted(set(points.loc[points["status"] == "diverged", verdicts[0].axis]))
    step = ROW / inches * (hi - lo)
    row = {s: hi + step * (i + 0.8) for i, s in enumerate(crossed)}
    return View(look, row, lo, hi, hi + step * (len(row) + 0.5))


def loss_panel(ax: Axes, part: pd.DataFrame, v: Verdict, view: View, lrs: list[float], ticks=(7, 6)) -> list[tuple]:
    """Draw all curves of one rule, and its base's optimum, over the range of `lrs`; return rows of LR_COLUMNS.

    Each size has its seeds, their mean, the bowl and the optimum; above the losses, a row of diverged runs. `ticks` are about
    how many there are on x and y.
    """
    lo, hi = min(lrs), max(lrs)
    if (tuned := v.optima.get(v.base)) is not None:
        ax.axvline(tuned.log2_lr, color="0.6", lw=0.7, ls="--", zorder=0)
    if view.row:
        ax.axhline(view.hi, color="0.75", lw=0.5, zorder=0)
    drawn: list[tuple] = []
    below = Rectangle((0, 0), 1, (view.hi - view.lo) / (view.top - view.lo), transform=ax.transAxes)  # diverged runs
    for size, o in v.optima.items():
        look, runs = view.look[size], rows(part, (part[v.axis] == size) & (part["status"] != "missing"))
        seeds = rows(runs, runs["status"] == "done")[["log2_lr", "loss"]].to_numpy(float)
        ax.plot(*seeds.T, ls="", ms=2.6, alpha=0.5, mew=0, label="_one seed", **look)[0].set_clip_path(below)
        drawn += [(v.rule, size, "seed", x, NAN, NAN, y, 1, 1) for x, y in seeds]
        if o is not None:
            n, use = o.curve.n_seeds, o.curve.finished_SL.any(0)
            x, means = o.curve.log2_lrs[use], o.curve.mean_L[use]
            ax.plot(x, means, color=look["color"], lw=0.5, label="_mean of seeds")[0].set_clip_path(below)
            if o.fitted:
                window = o.curve.log2_lrs[o.curve.window]
                under = np.linspace(window[0], window[-1], 60)
                ax.plot(under, o.bowl_at(under), color=look["color"], label="_bowl")[0].set_clip_path(below)
            above = x[means > view.hi]
            aside = 0.12 * (list(view.look).index(size) - (len(view.look) - 1) / 2)  # else sizes would hide each other
            if len(above):
                caret = {"marker": CARET, "ms": 4.5, "mfc": "none", "mew": 1.2, "color": look["color"]}
                at = view.hi - 0.02 * (view.hi - view.lo)
                ax.plot(above + aside, np.full(len(above), at), ls="", label="_above the axis", **caret)
            edge = MARKS["optimum" if o.bracketed else "not bracketed"]
            edge = {name: edge[name] for name in ("mec", "mew", "mfc") if name in edge}
            ax.plot(o.log2_lr, o.loss, ms=6, zorder=5, label=f"_{'optimum' if o.bracketed else 'not bracketed'}", **look | edge)
            drawn += [(v.rule, size, "mean", x, NAN, NAN, y, n, n) for x, y in zip(x, means, strict=True)]
            what = "optimum" if o.bracketed else "optimum, not bracketed"
            drawn.append((v.rule, size, what, o.log2_lr, o.lo, o.hi, o.loss, n, n))
        drawn += _diverged(ax, v, size, runs, view)
    _arrow(ax, v)
    ax.set_xlim(lo - 0.4, hi + 0.4)
    powers_of_two(ax.xaxis, lo, hi, ticks[0])
    losses_on_y(ax, view, ticks[1])
    return drawn


def _arrow(ax: Axes, v: Verdict) -> None:
    """Draw an arrow from the optimum of the base to that of the largest size."""
    largest = max(v.finished, default=v.base)
    if v.base in v.finished and largest != v.base:
        start, end = v.finished[v.base], v.finished[largest]
        ends = {"shrinkA": 4.0, "shrinkB": 4.5, "lw": 1.3, "color": ink(VERDICTS[v.verdict]["color"]), "mutation_scale": 8}
        arrow = ax.annotate(
            "", (end.log2_lr, end.loss), (start.log2_lr, start.loss), arrowprops={"arrowstyle": "-|>", **ends}, zorder=4
        )
        arrow.set_label("_from base to largest")


def losses_on_y(ax: Axes, view: View, ticks: int) -> None:
    """Put the losses in view on the y axis, with about `ticks` ticks, none among the diverged runs."""
    ax.set_ylim(view.lo, view.top)
    ax.set_yticks([y for y in MaxNLocator(ticks).tick_values(view.lo, view.hi) if view.lo <= y <= view.hi])


def _diverged(ax: Axes, v: Verdict, size: int, runs: pd.DataFrame, view: View) -> list[tuple]:
    """Draw a size's row of diverged runs: a cross at an lr where all seeds diverged, k/n where k of n did."""
    drawn, colour = [], view.look[size]["color"]
    lrs = np.unique(runs["log2_lr"].to_numpy(float))
    for x in lrs:
        statuses = list(runs["status"][runs["log2_lr"] == x])
        bad, n = statuses.count("diverged"), len(statuses)
        if bad:
            drawn.append((v.rule, size, "diverged", x, NAN, NAN, NAN, bad, n))
        if bad == n:
            ax.plot(x, view.row[size], "x", ms=4, color=colour, mew=1.1, label=f"_{DIVERGED}")
        elif bad:  # the text ends at its lr if, centred, it would run into the next
            crowded = ((lrs > x) & (lrs - x < 0.15 * (lrs[-1] - lrs[0]))).any()
            shift: dict[str, Any] = {"xytext": (1 * crowded, -0.5), "ha": "right" if crowded else "center", "va": "center"}
            text = ax.annotate(f"{bad}/{n}", (x, view.row[size]), color=colour, textcoords="offset points", **shift)
            text.set_label(f"_{DIVERGED}")
    return drawn


def optimum_panel(ax: Axes, verdicts: Sequence[Verdict], looks: Looks) -> tuple[list[tuple], tuple[float, float]]:
    """Draw log2 optimum against log2 size per rule: interval, fitted line; from the base the tolerance, and slope -1.

    Returns rows of LR_COLUMNS, and the range of log2 lr that must be in view.
    """
    drawn, bounds = [], []
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
    levels = [v.finished[v.base].log2_lr for v in verdicts if v.base in v.finished]
    if levels:
        sizes = sorted({size for v in verdicts for size in v.optima})
        doublings, level = np.log2(sizes) - np.log2(verdicts[0].base), float(np.mean(levels))
        wedge = verdicts[0].tolerance * doublings
        ax.fill_between(np.log2(sizes), level - wedge, level + wedge, color="0.88", lw=0, zorder=0)
        ax.plot(np.log2(sizes), level - doublings, ls=":", lw=0.9, color="0.3", zorder=0)
        bounds += [level + abs(wedge).max(), level - abs(wedge).max()]
    return drawn, (min(bounds, default=-1) - 0.3, max(bounds, default=0) + 0.3)


def slope_text(v: Verdict) -> str:
    """Format the slope with its interval for a figure."""
    return format_slope(v.slope, v.slope_lo, v.slope_hi, signed) or NO_SLOPE


def size_marks(axis: str, look: Looks) -> list[Line2D]:
    """Make the legend of the sizes."""
    return [mark(f"{axis.replace('_', ' ')}:"), *(mark(f"{size}", **{"ls": "-", "ms": 3.5, **of}) for size, of in look.items())]
