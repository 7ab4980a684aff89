"""The figure over width and depth together: a heat map of what the base's lr costs at every size."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures.style import SIZE, WIDTH, page, panel, per_row
from spectral_mup.analysis.joint_regret import joint_regret
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import what_was_run

LOW, HIGH = 0.1, 100.0  # percent: ends of the colours, the same in all sweeps


def joint_figure(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """A heat map per rule of `joint_regret`: width to the right, depth upwards, the excess loss in percent in every cell.

    Numbers have two digits, white on dark.
    """
    table, base = joint_regret(data.points, data.base), data.base
    rules = list(dict.fromkeys(table["rule"]))
    widths, depths = (sorted({base[axis], *(int(s) for s in table[axis])}) for axis in ("width", "depth"))
    cols = per_row(len(rules))
    lines = -(-len(rules) // cols)
    note = f"{what_was_run(data.points)}. In every cell: excess loss (%) of the {data.named('lr')} that is best at width "
    note += (
        f"{base['width']}, depth {base['depth']} (framed) over the optimum of that size itself. ≥: that value did not finish "
    )
    note += "there, or the size's own optimum is not bracketed. Empty: nothing finished, or not run. "
    note += "Colours: logarithmic, the same in all sweeps."
    fig, grid = page([0.55 + 0.24 * max(len(depths), 3)] * lines, [(WIDTH - 1.2) / cols] * cols + [0.1], note)
    norm, colours = LogNorm(LOW, HIGH, clip=True), matplotlib.colormaps["viridis_r"]
    corner = widths.index(base["width"]) - 0.5, depths.index(base["depth"]) - 0.5
    for k, rule in enumerate(rules):
        ax = panel(fig, grid[k // cols, k % cols], k, rule, SIZE["depth"] if k % cols == 0 else None)
        percent = np.full((len(depths), len(widths)), np.nan)
        known = rows(table, (table["rule"] == rule) & np.isfinite(table["regret"]))
        for width, depth, regret, at_least in known[["width", "depth", "regret", "at_least"]].to_numpy():
            i, j, shown = depths.index(depth), widths.index(width), 100 * float(regret)
            percent[i, j] = max(shown, LOW)
            dark = np.dot(colours(norm(percent[i, j]))[:3], [0.3, 0.6, 0.1]) < 0.45
            number = "≥" * at_least + (f"{shown:.2f}" if shown < 9.995 else f"{shown:.0f}")
            ax.text(j, i, number, ha="center", va="center", fontsize=7, color="w" if dark else "k")
        edges = (np.arange(len(sizes) + 1) - 0.5 for sizes in (widths, depths))
        ax.pcolormesh(*edges, percent, norm=norm, cmap=colours, edgecolors="w", linewidth=1.0)
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
    return fig, table
