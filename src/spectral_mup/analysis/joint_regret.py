"""Width and depth together: what the lr tuned on the smallest model costs at every size."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from spectral_mup.analysis.figures.style import SIZE, STYLE, WIDTH, letter_of, page, per_row
from spectral_mup.analysis.optimum import Optimum, find_optimum, rows
from spectral_mup.analysis.verdict import by_rule, curves_of, what_was_run

LOW, HIGH = 0.1, 100.0  # percent: ends of the colours, alike in all sweeps
DRAWN = ["rule", "width", "depth", "log2_lr", "loss", "base_log2_lr", "regret", "at_least"]


def joint_regret(points: pd.DataFrame, base: Mapping[str, int]) -> pd.DataFrame:
    """Return DRAWN rows, one a rule, width and depth that has runs: regret of the base model's optimal lr there, a fraction.

    regret = L(η*_base) / L(η*) - 1 with L the curve of that size and η* its own optimum (log2, as everywhere); `base` holds
    the width and depth of the base model. `at_least`: η*_base lies beyond the lrs that finished, or η* is not bracketed and a
    better lr may lie outside. NaN where nothing finished, or nothing at the base.
    """
    found = []
    for rule, part in by_rule(points).items():
        optima = _optima(part)
        tuned = optima.get((base["width"], base["depth"]))
        for (width, depth), o in optima.items():
            if o is None or tuned is None:
                own = (None, None) if o is None else (o.log2_lr, o.loss)
                found.append((rule, width, depth, *own, tuned and tuned.log2_lr, None, False))
                continue
            regret, beyond = o.regret_at(tuned.log2_lr)
            at_least = bool(beyond) or not o.bracketed
            found.append((rule, width, depth, o.log2_lr, o.loss, tuned.log2_lr, float(regret), at_least))
    numbers = dict.fromkeys(["log2_lr", "loss", "base_log2_lr", "regret"], float)
    return pd.DataFrame(found, columns=DRAWN).astype(numbers)


def _optima(part: pd.DataFrame) -> dict[tuple[int, int], Optimum | None]:
    """Fit every size of one rule; the estimate alone, which needs no draws."""
    optima = {}
    for depth in sorted({int(d) for d in part["depth"]}):
        here = rows(part, part["depth"] == depth)
        for width, curve in curves_of(here, "width", sorted({int(w) for w in here["width"]})).items():
            optima[width, depth] = find_optimum(curve, n_boot=1)
    return optima


@matplotlib.style.context(["default", STYLE])
def joint_figure(points: pd.DataFrame, table: pd.DataFrame, base: Mapping[str, int]) -> Figure:
    """A heat map a rule of `joint_regret`: width to the right, depth upwards, the excess loss in percent in every cell."""
    rules = list(dict.fromkeys(table["rule"]))
    widths, depths = (sorted({base[axis], *(int(s) for s in table[axis])}) for axis in ("width", "depth"))
    cols = per_row(len(rules))
    lines = -(-len(rules) // cols)
    note = f"{what_was_run(points)}. In every cell: excess loss (%) of the lr that is best at width {base['width']}, depth "
    note += (
        f"{base['depth']} (framed) over the optimum of that size itself. ≥: that lr did not finish there, or the size's own "
    )
    note += "optimum is not bracketed. Empty: nothing finished, or not run. Colours: logarithmic, alike in all sweeps."
    fig, grid = page([0.55 + 0.24 * max(len(depths), 3)] * lines, [(WIDTH - 1.2) / cols] * cols + [0.1], note)
    norm, colours = LogNorm(LOW, HIGH, clip=True), matplotlib.colormaps["viridis_r"]
    for i, rule in enumerate(rules):
        ax = fig.add_subplot(grid[i // cols, i % cols])
        ax.set_title(f"({letter_of(i)}) {rule}", loc="left")
        _map(ax, rows(table, table["rule"] == rule), widths, depths, norm, colours)
        ax.add_patch(Rectangle(_corner(widths, depths, base), 1, 1, fill=False, lw=1.4, ec="k", zorder=3, clip_on=False))
        ax.set_xlabel(SIZE["width"] if i // cols == lines - 1 or i + cols >= len(rules) else "")
        ax.set_ylabel(SIZE["depth"] if i % cols == 0 else "")
        ax.tick_params(labelleft=i % cols == 0, length=0)
    side = fig.add_subplot(grid[:, cols])
    steps = np.geomspace(LOW, HIGH, 65)
    middle = np.sqrt(steps[1:] * steps[:-1])
    side.pcolormesh([0, 1], steps, middle[:, None], norm=norm, cmap=colours, linewidth=0)
    side.set(yscale="log", xticks=[], ylabel="excess loss (%)")
    side.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    side.yaxis.set_minor_locator(NullLocator())
    side.yaxis.tick_right()
    side.yaxis.set_label_position("right")
    return fig


def _corner(widths: list[int], depths: list[int], size: Mapping[str, int]) -> tuple[float, float]:
    return widths.index(size["width"]) - 0.5, depths.index(size["depth"]) - 0.5


def _map(ax: Axes, table: pd.DataFrame, widths: list[int], depths: list[int], norm: LogNorm, colours) -> None:
    """Colour the cells of one rule and write their numbers: two digits, and white on dark."""
    percent = np.full((len(depths), len(widths)), np.nan)
    for width, depth, regret, at_least in table[["width", "depth", "regret", "at_least"]].to_numpy():
        if not np.isfinite(regret):
            continue
        i, j, shown = depths.index(depth), widths.index(width), 100 * float(regret)
        percent[i, j] = max(shown, LOW)
        r, g, b, _ = colours(norm(percent[i, j]))
        number = f"{shown:.2f}" if shown < 9.995 else f"{shown:.0f}"
        dark = 0.3 * r + 0.6 * g + 0.1 * b < 0.45
        ax.text(j, i, "≥" * at_least + number, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    ax.pcolormesh(np.arange(len(widths) + 1) - 0.5, np.arange(len(depths) + 1) - 0.5, percent,
                  norm=norm, cmap=colours, edgecolors="w", linewidth=1.0)  # fmt: skip
    ax.set_xticks(range(len(widths)), [f"{w}" for w in widths])
    ax.set_yticks(range(len(depths)), [f"{d}" for d in depths])
    for spine in ax.spines.values():
        spine.set_visible(False)


def joint_text(table: pd.DataFrame) -> str:
    """Return a line a rule for the screen: the dearest size."""
    said = []
    for rule in dict.fromkeys(table["rule"]):
        part = rows(table, (table["rule"] == rule) & np.isfinite(table["regret"].to_numpy(float)))
        if part.empty:
            said.append(f"{rule}: nothing finished at the base, so no regret over width and depth together")
            continue
        worst = part.iloc[int(part["regret"].to_numpy(float).argmax())]
        cost = f"{'at least ' * bool(worst['at_least'])}{worst['regret']:.2%}"
        said.append(f"{rule}: over width and depth together the base's lr costs most, {cost}, at width {worst['width']}, "
                    f"depth {worst['depth']}")  # fmt: skip
    return "\n".join(said)
