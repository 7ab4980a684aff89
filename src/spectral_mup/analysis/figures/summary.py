"""The figure over several sweeps: a row each, with the losses under every rule, the optimum over size, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_mup.analysis.figures.lr_panels import (
    DRAWN,
    ROW,
    View,
    loss_panel,
    losses_on_y,
    optimum_panel,
    point_marks,
    rule_looks,
    size_looks,
    size_marks,
    slope_text,
    view_of,
)
from spectral_mup.analysis.figures.style import GREY, LETTER, LINE, SIZE, STYLE, legend, mark, page, powers_of_two, sizes_on_x
from spectral_mup.analysis.results import Results
from spectral_mup.analysis.summary import labels
from spectral_mup.analysis.verdict import Verdict, what_was_run

MOST = 3  # rules whose losses have a panel: more would be too narrow to read
HEIGHT = 1.3  # inches of a row: six, legends and note fit on a page
LOSSES = 0.95  # of them, for the losses in view
NAME, SAID = 0.08, 1.3  # width of the name and of the text beside a row, in panels


@matplotlib.style.context(["default", STYLE])
def summary_figure(sweeps: Sequence[Results]) -> tuple[Figure, pd.DataFrame]:
    """A row a sweep: loss against log2 lr (a panel a rule, a line a size), optimum against size, verdict, slope, regret."""
    rules = list(dict.fromkeys(v.rule for r in sweeps for v in r.verdicts))
    shown, looks = rules[:MOST], rule_looks(rules)
    axes = list(dict.fromkeys(v.axis for r in sweeps for v in r.verdicts))
    sizes = {axis: sorted({s for r in sweeps for v in r.verdicts if v.axis == axis for s in v.optima}) for axis in axes}
    look = {axis: size_looks(of) for axis, of in sizes.items()}
    views = [view_of(r.points, r.verdicts, look[r.verdicts[0].axis], LOSSES) for r in sweeps]
    inches = 5.5 / (NAME + len(shown) + 1 + SAID)  # of a panel, less its labels
    heights = [_height(r, view, inches * SAID) for r, view in zip(sweeps, views, strict=True)]
    fig, grid = page(heights, [NAME] + [1.0] * (len(shown) + 1) + [SAID], _note(sweeps, views, rules), legends=2)
    drawn: list[tuple] = []
    spans: list[tuple[Axes, float, float]] = []
    for i, (r, label, view) in enumerate(zip(sweeps, labels(sweeps), views, strict=True)):
        name = fig.add_subplot(grid[i, 0])
        name.set_axis_off()
        name.text(0.5, 0.5, label.replace(" (", "\n("), rotation=90, ha="center", va="center", fontweight="bold")
        verdicts = {v.rule: v for v in r.verdicts}
        lrs = r.points["log2_lr"].to_numpy(float)
        for j, rule in enumerate(shown):
            ax = fig.add_subplot(grid[i, 1 + j])
            ax.set_title(rule if i == 0 else "", loc="left")
            ax.set_ylabel("loss (nats/token)" if j == 0 else "")
            ax.set_xlabel("learning rate" if i == len(sweeps) - 1 and rule in verdicts else "")
            ax.tick_params(labelleft=j == 0)
            if rule in verdicts:
                part = pd.DataFrame(r.points[r.points["rule"] == rule])
                rows = loss_panel(ax, part, verdicts[rule], view, (float(lrs.min()), float(lrs.max())), ticks=(4, 4))
                drawn += [(r.name, r.optimizer, *row) for row in rows]
            else:
                losses_on_y(ax, view, 4)
                ax.set_xticks([])
                ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax = fig.add_subplot(grid[i, 1 + len(shown)])
        rows, (lo, hi) = optimum_panel(ax, r.verdicts, looks)
        drawn += [(r.name, r.optimizer, *row) for row in rows]
        spans.append((ax, lo, hi))
        sizes_on_x(ax, sorted({s for v in r.verdicts for s in v.optima}), "", inches)
        ax.set_xlabel(SIZE[r.verdicts[0].axis] if i == len(sweeps) - 1 or len(axes) > 1 else "")
        ax.set_ylabel("optimal lr")
        said = fig.add_subplot(grid[i, 2 + len(shown)])
        said.set_axis_off()
        _say(said, r.verdicts, looks, inches * SAID)
        if i == 0:
            ax.set_title("optimum", loc="left")
            said.set_title("verdict, slope, regret", loc="left")
    reach = max(hi - lo for _, lo, hi in spans)  # octaves alike in all rows, so that equal slopes look equal
    for ax, lo, hi in spans:
        ax.set_ylim((lo + hi - reach) / 2, (lo + hi + reach) / 2)
        powers_of_two(ax.yaxis, *ax.get_ylim(), 4)
    legend(fig, [entry for axis in axes for entry in size_marks(axis, look[axis])], line=1)
    legend(fig, point_marks(), line=2)
    return fig, pd.DataFrame(drawn, columns=["sweep", "optimizer", *DRAWN])


def _height(r: Results, view: View, inches: float) -> float:
    text = sum(_said(v, inches).count("\n") + 1.7 for v in r.verdicts) * LINE
    return max(HEIGHT + ROW * len(view.row), text)


def _note(sweeps: Sequence[Results], views: Sequence[View], rules: Sequence[str]) -> str:
    points = pd.concat([r.points for r in sweeps], ignore_index=True)
    base = " / ".join(dict.fromkeys(f"{v.axis} {v.base}" for r in sweeps for v in r.verdicts))
    note = f"{what_was_run(points)}. Optimum: vertex of a parabola within an octave of the best point; bars: 95 % interval. "
    note += f"Dashed: optimum of {base}. Slope: of log2 optimal lr on log2 size. "
    note += "Regret: what the optimal lr of the base costs at the largest size."
    note += " Above the grey line: diverged runs, a row a size." if any(view.row for view in views) else ""
    return note + (f" Losses of {', '.join(rules[MOST:])} are in the tables." if len(rules) > MOST else "")


def _said(v: Verdict, inches: float) -> str:
    gap = "\n" if (len(v.rule) + len(v.verdict) + 5) * LETTER > inches else " "
    regret = f"{'at least ' * v.regret_at_least}{v.regret:.2%}".replace("%", " %") if np.isfinite(v.regret) else "unknown"
    return f"{v.rule}:{gap}{v.verdict}\n{slope_text(v)}\nregret {regret}"


def _say(ax: Axes, verdicts: Sequence[Verdict], looks: dict[str, dict[str, Any]], inches: float) -> None:
    """Write what was found, beside the colour and mark of each rule."""
    handles = [mark(_said(v, inches), ls="-", ms=4.5, **looks[v.rule]) for v in verdicts]
    packed = {"borderaxespad": 0, "borderpad": 0, "handlelength": 1.0, "handletextpad": 0.5, "labelspacing": 0.6, "fontsize": 7}
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(0, 0.5), **packed)
