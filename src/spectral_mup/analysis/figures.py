"""The figures of a sweep: functions of points and verdicts that return (Figure, the data drawn).

Here the transfer of the learning rate; the norms are in norm_figures.py, the print rules in page.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .norm_figures import feature_norms, feature_steps
from .optimum import rows
from .page import LETTER, LINE, MARKERS, STYLE, WIDTH, legend, page, save, signed, sizes_on_x
from .verdict import Verdict, by_rule, what_was_run

__all__ = ["FIGURES", "feature_norms", "feature_steps", "lr_transfer", "save"]

LOSSES, ROW = 1.5, 0.105  # inches of a panel for the losses in view, and for each row of diverged runs
# Okabe & Ito 2008 (vermillion, blue, green, orange, purple, black): told apart by colour-blind readers.
RULES = ["#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#000000"]
GREY = "0.45"
NEAR = 1.5  # octaves around an optimum that must be in view


class View(NamedTuple):
    """What the panels of lr_transfer share: the look of each size, and the range of losses in view."""

    look: dict[int, dict[str, Any]]
    row: dict[int, float]  # height of a size's row of crosses, above the losses
    lo: float
    hi: float
    top: float


@matplotlib.style.context(["default", STYLE])
def lr_transfer(points: pd.DataFrame, verdicts: Sequence[Verdict]) -> tuple[Figure, pd.DataFrame]:
    """Loss against log2 lr, a panel per rule and a line per size; then the optimum against the size."""
    axis, base, parts, n = verdicts[0].axis, verdicts[0].base, by_rule(points), len(verdicts)
    view = _view(points, verdicts)
    basis = " / ".join(dict.fromkeys(v.basis for v in verdicts))
    note = f"{what_was_run(points)}. Optimum: vertex of a parabola within an octave of the best point; bars: "
    note += f"95 % interval ({basis}). Dashed: optimum of {axis} {base}."
    note += f" Above the grey line: diverged runs, a row a {axis}." if view.row else ""
    cols = 2 if n in (1, 3) else 3
    lines = -(-(n + 1) // cols)
    fig, grid = page([2.0 + ROW * len(view.row)] * lines, [1] * cols, note, legends=2)
    drawn: list[tuple] = []
    first = None
    for i, v in enumerate(verdicts):
        part = parts[v.rule]
        ax = first = fig.add_subplot(grid[i // cols, i % cols], sharey=first)
        ax.set_title(f"({chr(97 + i)}) {v.rule}", loc="left")
        ax.set_xlabel("learning rate")
        ax.tick_params(labelleft=i % cols == 0)
        ax.set_ylabel("validation loss (nats/token)" if i % cols == 0 else "")
        tuned = v.optima.get(v.base)
        if tuned is not None:
            ax.axvline(tuned.log2_lr, color="0.6", lw=0.7, ls="--", zorder=0)
        if view.row:
            ax.axhline(view.hi, color="0.75", lw=0.5, zorder=0)
        for size in v.optima:
            drawn += _curve(ax, part, v, size, view)
        lrs = part["log2_lr"].to_numpy(float)
        ax.set_xlim(float(lrs.min()) - 0.4, float(lrs.max()) + 0.4)
        _powers_of_two(ax.xaxis, lrs.min(), lrs.max(), 7)
        ax.set_ylim(view.lo, view.top)
        ax.set_yticks([y for y in MaxNLocator(6).tick_values(view.lo, view.hi) if view.lo <= y <= view.hi])
    ax = fig.add_subplot(grid[n // cols, n % cols :])
    ax.set_title(f"({chr(97 + n)}) optimum against {axis}", loc="left")
    drawn += _drift(ax, verdicts, inches=(WIDTH - 0.8) / cols * (cols - n % cols) - 0.2)
    sizes = [_mark(f"{s}", ls="-", ms=3.5, **look) for s, look in view.look.items()]
    legend(fig, [_mark(f"{axis}:"), *sizes], line=1)
    marks = [
        _mark("one seed", marker="o", ms=3, alpha=0.5, mew=0),
        _mark("mean of seeds", ls="-"),
        _mark("optimum", marker="o", ms=6, mec="k", mew=0.7),
        _mark("not bracketed", marker="o", ms=6, mfc="w", mew=1.2),
        _mark("diverged (k/n: k of n seeds)", marker="x", ms=4.5),
        _mark("above the axis", marker=6, ms=4.5, mew=0),
    ]
    legend(fig, marks, line=2)
    return fig, pd.DataFrame(drawn, columns=["rule", "size", "what", "log2_lr", "lo", "hi", "loss", "k", "n"])


def _view(points: pd.DataFrame, verdicts: Sequence[Verdict]) -> View:
    """Choose the losses in view: every optimum, and the typical rise within 1.5 octaves of one."""
    sizes = sorted({size for v in verdicts for size in v.optima})
    found = [o for v in verdicts for o in v.optima.values() if o is not None]
    rises = [o.mean_losses[np.abs(o.log2_lrs - o.log2_lr) <= NEAR].max(initial=o.loss) - o.loss for o in found]
    best = [o.loss for o in found] or [1.0]
    spread = max(best) - min(best)
    hi = max(best) + max(1.25 * float(np.median(rises or [1.0])), 0.25 * spread, 0.002 * max(best))
    lo = min(best) - 0.06 * (hi - min(best))
    crossed = sorted(set(points.loc[points["status"] == "diverged", verdicts[0].axis]))
    step = ROW / LOSSES * (hi - lo)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.82, 0, len(sizes)))
    look = {s: {"color": c, "marker": MARKERS[i % len(MARKERS)]} for i, (s, c) in enumerate(zip(sizes, colours, strict=True))}
    row = {s: hi + step * (i + 0.8) for i, s in enumerate(crossed)}
    return View(look, row, lo, hi, hi + step * (len(row) + 0.5))


def _curve(ax: Axes, part: pd.DataFrame, v: Verdict, size: int, view: View) -> list[tuple]:
    """Draw one size of one rule: seeds, mean, optimum; above the losses, its row of diverged runs."""
    look, o = view.look[size], v.optima[size]
    colour, none = look["color"], np.nan
    below = Rectangle((0, 0), 1, (view.hi - view.lo) / (view.top - view.lo), transform=ax.transAxes)
    runs = rows(part, (part[v.axis] == size) & (part["status"] != "missing"))
    seeds = rows(runs, runs["status"] == "done")[["log2_lr", "loss"]].to_numpy(float)
    ax.plot(*seeds.T, ls="", ms=2.6, alpha=0.5, mew=0, **look)[0].set_clip_path(below)
    drawn: list[tuple] = [(v.rule, size, "seed", x, none, none, y, 1, 1) for x, y in seeds]
    if o is not None:
        ax.plot(o.log2_lrs, o.mean_losses, color=colour)[0].set_clip_path(below)
        above = o.log2_lrs[o.mean_losses > view.hi]
        aside = 0.12 * (list(view.look).index(size) - (len(view.look) - 1) / 2)  # or sizes would hide each other
        ax.plot(above + aside, np.full(len(above), view.hi), ls="", marker=6, ms=4, color=colour, mew=0)
        edge = {"mec": "k", "mew": 0.7} if o.bracketed else {"mfc": "w", "mew": 1.2}
        ax.plot(o.log2_lr, o.loss, ms=6, zorder=5, **look | edge)
        mean = zip(o.log2_lrs, o.mean_losses, strict=True)
        drawn += [(v.rule, size, "mean", x, none, none, y, o.n_seeds, o.n_seeds) for x, y in mean]
        what = "optimum" if o.bracketed else "optimum, not bracketed"
        drawn.append((v.rule, size, what, o.log2_lr, o.lo, o.hi, o.loss, o.n_seeds, o.n_seeds))
    lrs = np.unique(runs["log2_lr"].to_numpy(float))
    for x in lrs:
        statuses = list(runs["status"][runs["log2_lr"] == x])
        bad, n = statuses.count("diverged"), len(statuses)
        if bad:
            drawn.append((v.rule, size, "diverged", x, none, none, none, bad, n))
        if bad == n:
            ax.plot(x, view.row[size], "x", ms=4, color=colour, mew=1.1)
        elif bad:  # the text ends at its lr where the next lr would run into it
            crowded = ((lrs > x) & (lrs - x < 0.1 * (lrs[-1] - lrs[0]))).any()
            shift: dict[str, Any] = {"xytext": (3 * crowded, -0.5), "ha": "right" if crowded else "center", "va": "center"}
            ax.annotate(f"{bad}/{n}", (x, view.row[size]), color=colour, textcoords="offset points", **shift)
    return drawn


def _drift(ax: Axes, verdicts: Sequence[Verdict], inches: float) -> list[tuple]:
    """Draw log2 optimum against log2 size per rule: interval, fitted line, and slope 0 through the base."""
    drawn, handles, bounds, level = [], [], [], []
    for i, v in enumerate(verdicts):
        look: dict[str, Any] = {"color": RULES[i % len(RULES)], "marker": MARKERS[i % len(MARKERS)], "ms": 4.5}
        found = {s: o for s, o in v.optima.items() if o is not None}
        x, best = np.log2(list(found)), np.array([o.log2_lr for o in found.values()])
        for (size, o), at in zip(found.items(), x + 0.05 * (i - (len(verdicts) - 1) / 2), strict=True):
            ax.plot([at, at], [o.lo, o.hi], color=look["color"], lw=0.9)
            ax.plot(at, o.log2_lr, mfc=look["color"] if o.bracketed else "w", **look)
            # one unsure size must not flatten the others: at most two octaves of its bar are in view
            bounds += [max(o.lo, o.log2_lr - 2), min(o.hi, o.log2_lr + 2), o.log2_lr]
            drawn.append((v.rule, size, "drift", o.log2_lr, o.lo, o.hi, o.loss, o.n_seeds, o.n_seeds))
        said = "no slope"
        if np.isfinite(v.slope):
            ax.plot(x, best.mean() + v.slope * (x - x.mean()), color=look["color"])
            said = f"{signed(v.slope)} [{signed(v.slope_lo)}, {signed(v.slope_hi)}]"
        if v.base in found and all(abs(found[v.base].log2_lr - y) > 0.1 for y in level):
            level.append(found[v.base].log2_lr)
            ax.axhline(level[-1], color="0.6", lw=0.7, ls="--", zorder=0)
        gap = "\n" if (len(v.rule) + len(said) + 4) * LETTER > inches else " "
        handles.append(_mark(f"{v.rule}:{gap}{said}", ls="-", **look))
    sizes_on_x(ax, sorted({s for v in verdicts for s in v.optima}), verdicts[0].axis, inches)
    lo, hi = min(bounds, default=-1) - 0.3, max(bounds, default=0) + 0.3
    texts = [str(h.get_label()) for h in handles]
    columns = max(1, int(inches / (LETTER * (max(map(len, texts)) + 6))))
    written = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    free = min(0.6, (written + 1.4) * LINE / 1.6)  # of the panel's height, for the legend
    ax.set_ylim(hi - (hi - lo) / (1 - free), hi)
    _powers_of_two(ax.yaxis, lo, hi, 7)
    ax.set_ylabel("optimal learning rate")
    packed = {
        "borderaxespad": 0.2,
        "handlelength": 1.0,
        "labelspacing": 0.3,
        "alignment": "left",
        "fontsize": 7,
    }
    ax.legend(handles=handles, loc="lower left", ncol=columns, title="slope [95 % interval]", **packed)
    return drawn


def _mark(label: str, **look: Any) -> Line2D:
    look = {"color": GREY, "ls": "", **look}
    return Line2D([], [], label=label, **look)


def _powers_of_two(axis: Any, lo: float, hi: float, most: int) -> None:
    """Put ticks at whole octaves, labelled 2^k, so that at most `most` steps fit between."""
    every = max(1, int(np.ceil((hi - lo) / most)))
    ticks = [k for k in range(int(np.ceil(lo)), int(np.floor(hi)) + 1) if k % every == 0]
    axis.set_ticks(ticks, [f"$2^{{{k}}}$" for k in ticks])


FIGURES = {"lr_transfer": lr_transfer, "feature_norms": feature_norms, "feature_steps": feature_steps}
