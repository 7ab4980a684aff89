"""The figure of the transfer of the learning rate, from the panels in lr_panels.py."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures import lr_panels as lr
from spectral_mup.analysis.figures.style import LETTER, LINE, WIDTH, legend, letter_of, mark, page, powers_of_two, sizes_on_x
from spectral_mup.analysis.verdict import Verdict, by_rule, what_was_run

LOSS_PANEL_INCHES = 1.5


def lr_transfer(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Loss against log2 lr, a panel per rule and a line per size; then the optimum against the size."""
    points, verdicts, n = data.points, data.verdicts, len(data.verdicts)
    axis, base, parts = verdicts[0].axis, verdicts[0].base, by_rule(points)
    look = lr.size_looks(sorted({size for v in verdicts for size in v.optima}))
    view = lr.view_of(points, verdicts, look, LOSS_PANEL_INCHES)
    basis = " / ".join(dict.fromkeys(v.basis for v in verdicts))
    note = f"{what_was_run(points)}. Optimum: vertex of a parabola within an octave of the best point; bars: "
    note += f"95 % interval ({basis}). Dashed: optimum of {axis} {base}."
    note += f" Above the grey line: diverged runs, one row per {axis}." if view.row else ""
    cols = 2 if n in (1, 3) else 3
    lines = -(-(n + 1) // cols)
    fig, grid = page([2.0 + lr.ROW * len(view.row)] * lines, [1] * cols, note, legends=2)
    drawn: list[tuple] = []
    first = None
    for i, v in enumerate(verdicts):
        part = parts[v.rule]
        ax = first = fig.add_subplot(grid[i // cols, i % cols], sharey=first)
        ax.set_title(f"({letter_of(i)}) {v.rule}", loc="left")
        ax.set_xlabel("learning rate")
        ax.tick_params(labelleft=i % cols == 0)
        ax.set_ylabel("validation loss (nats/token)" if i % cols == 0 else "")
        lrs = part["log2_lr"].to_numpy(float)
        drawn += lr.loss_panel(ax, part, v, view, (float(lrs.min()), float(lrs.max())))
    ax = fig.add_subplot(grid[n // cols, n % cols :])
    ax.set_title(f"({letter_of(n)}) optimum against {axis}", loc="left")
    drawn += _drift(ax, verdicts, inches=(WIDTH - 0.8) / cols * (cols - n % cols) - 0.2)
    legend(fig, lr.size_marks(axis, look), line=1)
    legend(fig, lr.point_marks(), line=2)
    return fig, pd.DataFrame(drawn, columns=lr.LR_COLUMNS)


def _drift(ax: Axes, verdicts: Sequence[Verdict], inches: float) -> list[tuple]:
    """Draw the optimum over size, and below it a legend of the slopes."""
    looks = lr.rule_looks([v.rule for v in verdicts])
    drawn, (lo, hi) = lr.optimum_panel(ax, verdicts, looks)
    sizes_on_x(ax, sorted({s for v in verdicts for s in v.optima}), verdicts[0].axis, inches)
    handles = []
    for v in verdicts:
        gap = "\n" if (len(v.rule) + len(lr.slope_text(v)) + 4) * LETTER > inches else " "
        handles.append(mark(f"{v.rule}:{gap}{lr.slope_text(v)}", ls="-", ms=4.5, **looks[v.rule]))
    texts = [str(h.get_label()) for h in handles]
    columns = max(1, int(inches / (LETTER * (max(map(len, texts)) + 6))))
    written = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    free = min(0.6, (written + 2.0) * LINE / 1.6)  # of the panel's height, for the legend
    ax.set_ylim(hi - (hi - lo) / (1 - free), hi)
    above = Rectangle((0, free), 1, 1 - free, transform=ax.transAxes)
    for line in ax.lines:  # the bar of an unsure optimum would reach down into the legend
        line.set_clip_path(above)
    powers_of_two(ax.yaxis, lo, hi, 7)
    ax.set_ylabel("optimal learning rate")
    packed = {"borderaxespad": 0.2, "handlelength": 1.0, "labelspacing": 0.3, "alignment": "left", "fontsize": 7}
    ax.legend(handles=handles, loc="lower left", ncol=columns, title="slope [95 % interval]", **packed)
    return drawn
