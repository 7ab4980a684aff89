"""The figure over width and depth together: a heat map of what the base's lr costs at every size."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures.style import (
    SIZE,
    finish,
    letter_width,
    line_height,
    page,
    page_width,
    panel,
    per_row,
    signed,
)
from spectral_mup.analysis.joint_regret import joint_regret
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import is_control, what_was_run

CELL = ["width", "depth", "regret", "at_least", "log2_lr", "base_log2_lr"]
LOW, HIGH = 0.1, 100.0  # percent: ends of the colours, the same in all sweeps


def joint_figure(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Draw a heat map per rule of `joint_regret`: width to the right, depth upwards; in every cell the excess loss in percent.

    Below it the octaves by which the cell's own best lr lies from the base's. Numbers have two digits, white on dark.
    """
    table, base, printing = joint_regret(data.points, data.base), data.base, data.printing
    rules = sorted(dict.fromkeys(table["rule"]), key=lambda rule: not is_control(rule))
    widths, depths = (sorted({base[axis], *(int(s) for s in table[axis])}) for axis in ("width", "depth"))
    cols = per_row(len(rules), 8 * letter_width() * len(widths) + 0.5)
    lines = -(-len(rules) // cols)
    lr, of_base = data.named("lr"), f"width {base['width']}, depth {base['depth']}"
    caption = (
        f"{what_was_run(data.points)}. In every cell: excess loss (%) of the {lr} that is best at {of_base} (framed) over the "
    )
    caption += (
        f"optimum of that size itself; below, octaves from that {lr} to the size's own best. ≥: that value did not finish "
    )
    caption += "there, or the size's own optimum is not bracketed. Empty: nothing finished, or not run. "
    caption += "Colours: logarithmic, the same in all sweeps."
    side = min((page_width() - 0.9) / cols / len(widths) - 0.1, 0.62)  # of a cell
    row, inches = max(side * 0.85, 2.6 * line_height()), side * len(widths) + 0.3
    blank = max(page_width() - 1.0 - inches * cols, 1e-3)  # beside few cells, which would else be wide
    fig, grid = page([0.62 + row * max(len(depths), 2)] * lines, [inches] * cols + [0.1, blank])
    norm, colours = LogNorm(LOW, HIGH, clip=True), matplotlib.colormaps["Reds"]
    corner = widths.index(base["width"]) - 0.5, depths.index(base["depth"]) - 0.5
    for k, rule in enumerate(rules):
        ax = panel(fig, grid[k // cols, k % cols], k, printing.name(rule), SIZE["depth"] if k % cols == 0 else None)
        percent = np.full((len(depths), len(widths)), np.nan)
        known = rows(table, (table["rule"] == rule) & np.isfinite(table["regret"]))
        for width, depth, regret, at_least, own, of_base in known[CELL].to_numpy():
            i, j, excess = depths.index(depth), widths.index(width), 100 * float(regret)
            percent[i, j] = max(excess, LOW)
            dark = np.dot(colours(norm(percent[i, j]))[:3], [0.3, 0.6, 0.1]) < 0.45
            number = "≥" * bool(at_least) + (f"{excess:.2f}" if excess < 9.995 else f"{excess:.0f}")
            shift = signed(float(own) - float(of_base))
            ax.text(j, i, f"{number}\n{shift}", ha="center", va="center", color="w" if dark else "k", linespacing=1.15)
        edges = (np.arange(len(sizes) + 1) - 0.5 for sizes in (widths, depths))
        ax.pcolormesh(*edges, percent, norm=norm, cmap=colours, edgecolors="0.85", linewidth=0.6)
        ax.set_xticks(range(len(widths)), [f"{w}" for w in widths])
        ax.set_yticks(range(len(depths)), [f"{d}" for d in depths])
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, lw=1.4, ec="k", zorder=3, clip_on=False))
        ax.set_xlabel(SIZE["width"] if k // cols == lines - 1 or k + cols >= len(rules) else "")
        ax.tick_params(length=0)
    bar, steps = fig.add_subplot(grid[:, cols]), np.geomspace(LOW, HIGH, 65)
    bar.pcolormesh([0, 1], steps, np.sqrt(steps[1:] * steps[:-1])[:, None], norm=norm, cmap=colours, linewidth=0)
    bar.set(yscale="log", xticks=[], ylabel="excess loss (%)")
    bar.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    bar.yaxis.set_minor_locator(NullLocator())
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    finish(fig, caption, note=printing.note)
    return fig, table
