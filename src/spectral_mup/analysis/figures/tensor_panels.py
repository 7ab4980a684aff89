"""Two layouts for modules and tensors: single ones with a table of their slopes, and groups of them over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from spectral_mup.analysis.feature_check import short
from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures.lr_panels import size_looks, size_marks
from spectral_mup.analysis.figures.style import (
    LETTER,
    LINE,
    MARKERS,
    WIDTH,
    legend,
    letter_of,
    mark,
    page,
    per_row,
    signed,
    sizes_on_x,
    step_at,
    steps_on_x,
)
from spectral_mup.analysis.stats import fit_slopes, rows
from spectral_mup.analysis.verdict import Verdict, what_was_run

# Petroff 2021 (arXiv 2107.02270): told apart by colour-blind readers. Written out, as old matplotlib lacks them.
MODULES = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()
COLUMN = 0.41  # inches of a column of slopes
SLOPE_COLUMNS = ["quantity", "step", "size", "seed", "value", "slope", "lo", "hi"]
SECOND: dict[str, Any] = {"ls": (0, (2.2, 1.1)), "lw": 0.9, "mfc": "w"}  # the look of a cell's second quantity
Looks = dict[str, dict[str, Any]]  # of modules or tensors
Numbers = dict[str, tuple[float, bool]]  # of a panel in the table at its right, by name: number, and whether it is bold


class Strip(NamedTuple):
    """A row of panels of `strip_page`, one per rule, of the same quantity and tensors."""

    quantity: str  # strips of one quantity share their vertical scale
    label: str
    names: Sequence[str]
    header: str  # of the table at its right
    draw: Callable[[Axes, str, Looks, float], Numbers]  # one panel: axes, rule, looks of the names, inches


class Cell(NamedTuple):
    """A panel of `against_steps`: quantities of one rule and group of tensors; the first solid, the second dashed."""

    rule: str
    group: str
    quantities: tuple[str, ...]
    title: str
    row: str
    kind: str  # of its vertical axis: 'log', 'share' (0 to 1), 'linear'
    scale: str = ""  # cells of one scale share their vertical axis

    @property
    def log(self) -> bool:
        return self.kind == "log"


def strip_page(rules: Sequence[str], strips: Sequence[Strip], note: str, least: float, columns: bool = True) -> Figure:
    """Lay out strip × rule panels, three rules a row, and at the right the names with their number in each panel.

    `least`: inches of a panel if it has few names; `columns`: whether there are numbers.
    """
    cols = per_row(len(rules))
    chunks = [(rules[i : i + cols], strip) for i in range(0, len(rules), cols) for strip in strips]
    table = LETTER * (6 + max((len(short(n)) for strip in strips for n in strip.names), default=0)) + COLUMN * cols * columns
    inches = (WIDTH - 0.5 - table) / cols
    heights = [max(least, (len(strip.names) + 2) * LINE + 0.35) for _, strip in chunks]
    fig, grid = page(heights, [inches] * cols + [table], note)
    first: dict[str, Axes] = {}
    for i, (own_rules, strip) in enumerate(chunks):
        look = {n: {"color": c, "marker": m, "ms": 3.2} for n, c, m in zip(strip.names, MODULES, MARKERS, strict=False)}
        numbers: dict[str, Numbers] = {}
        for j, rule in enumerate(own_rules):
            letter = letter_of(cols * i + j)
            ax = fig.add_subplot(grid[i, j], sharey=first.get(strip.quantity))
            first.setdefault(strip.quantity, ax)
            ax.set_title(f"({letter}) {rule}", loc="left")
            ax.set_ylabel("" if j else strip.label)
            ax.tick_params(labelleft=j == 0)
            numbers[letter] = strip.draw(ax, rule, look, inches)
        _table(fig.add_subplot(grid[i, cols]), look, numbers if columns else {}, strip.header, table)
    return fig


def _table(ax: Axes, look: Looks, numbers: Mapping[str, Numbers], header: str, inches: float) -> None:
    """Write the legend of a row of panels: mark, name, and its number in each panel."""
    ax.set_axis_off()
    ax.set(xlim=(0, inches), ylim=(len(look) + 0.5, -0.8))
    ax.text(0, 0, header, va="center")
    for i, (name, style) in enumerate(look.items(), start=1):
        ax.plot([0, 0.08, 0.16], [i, i, i], markevery=[1], clip_on=False, **style)
        ax.text(0.22, i, short(name), va="center")
    at: dict[str, Any] = {"ha": "right", "va": "center"}
    for j, (letter, column) in enumerate(reversed(list(numbers.items()))):
        ax.text(inches - COLUMN * j, 0, f"({letter})", **at)
        for i, name in enumerate(look, start=1):
            if name in column:
                number, bold = column[name]
                ax.text(inches - COLUMN * j, i, signed(number), weight="bold" if bold else "normal", **at)


def seeds_and_mean(ax: Axes, x: np.ndarray, y: np.ndarray, style: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw single seeds faintly and the line of their mean at each x; return the line."""
    ax.plot(x, y, ls="", **{**style, "ms": 2, "alpha": 0.4, "mew": 0})
    at = np.unique(x)
    mean = np.array([y[x == one].mean() for one in at])
    ax.plot(at, mean, **style)
    return at, mean


def sizes_panel(ax: Axes, at: pd.DataFrame, look: Looks, expected: Mapping[str, float], axis: str, inches: float) -> None:
    """Draw the values of every tensor against the size; dotted, the slopes that are expected."""
    if at.empty:
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
        return
    for name, style in look.items():
        seeds = rows(at, at["name"] == name)[["size", "value"]].to_numpy(float)
        if len(seeds):
            sizes, mean = seeds_and_mean(ax, np.log2(seeds[:, 0]), np.log2(seeds[:, 1]), style)
            ax.plot(sizes, mean[0] + expected[name] * (sizes - sizes[0]), ls=":", lw=0.8, color=style["color"], zorder=1)
    sizes_on_x(ax, sorted(set(at["size"])), axis, inches)
    ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    ax.yaxis.set_major_formatter(lambda y, _: f"$2^{{{y:g}}}$")


def slopes_panel(ax: Axes, slopes: pd.DataFrame, judged: int, look: Looks, inches: float) -> None:
    """Draw the slopes of every tensor over the steps, with the limit of hidden ones and the judged step."""
    for name, style in look.items():
        line = rows(slopes, (slopes["name"] == name) & (slopes["step"] > 0)).sort_values("step")
        ax.plot(step_at(line["step"]), line["slope"], **style)
    ax.axhspan(-0.15, 0.15, color="0.88", lw=0, zorder=0)
    ax.axhline(0, color="0.6", lw=0.6, ls=":", zorder=0)
    ax.axvline(float(step_at([judged])[0]), color="0.6", lw=0.7, ls="--", zorder=0)
    lo, hi = ax.get_ylim()
    ax.set_ylim(min(lo, -0.6), max(hi, 0.6))
    steps_on_x(ax, sorted(set(slopes["step"][slopes["step"] > 0])), inches)


def against_steps(
    data: SweepData,
    values: pd.DataFrame,
    cells: Sequence[Sequence[Cell]],
    labels: Mapping[str, str],
    note: str,
    chance: str = "",
) -> tuple[Figure, pd.DataFrame]:
    """Lay out the cells, a line per size, each the mean over the tensors of the group; slopes against the size in the titles.

    Means and slopes are of log2 where a cell is log, else of the value itself (its change per doubling of the size).
    `chance` names the quantity whose value for a Gaussian matrix, √fan_out/(√fan_out + √fan_in), is dotted.
    """
    sizes, steps, cols = sorted({int(s) for s in values["size"]}), sorted(set(values["step"])), len(cells[0])
    own_scales = len({cell.scale for cell in cells[0]}) > 1  # each column its own, with its own ticks
    inches = (WIDTH - 0.6) / cols - 0.15 - 0.3 * own_scales
    marker_sizes = np.linspace(4.0, 2.6, len(sizes))  # larger below: all are seen where they coincide
    look = {s: {**style, "ms": ms} for (s, style), ms in zip(size_looks(sizes).items(), marker_sizes, strict=True)}
    means = [[_group_means(values, cell) for cell in row] for row in cells]
    fits = [[_group_fits(mean, cell.log) for mean, cell in zip(*pair, strict=True)] for pair in zip(means, cells, strict=True)]
    kinds = list(dict.fromkeys(labels[q] for row in cells for c in row for q in c.quantities if len(c.quantities) > 1))
    last = "/".join(dict.fromkeys(str(f["step"].max()) for row in fits for f in row if len(f)))
    text = f"{sweep_note(data)} Mean over seeds (faint: single seeds) and over the tensors of all blocks. Over the panels: "
    text += f"slope against log2 {data.axis} at step {last}, of log2 of the quantity where its axis is log. "
    text += f"{note}{left_out(data.verdicts, values['rule'])}"
    fig, grid = page([1.45] * len(cells), [1] * cols, text, legends=1 + bool(kinds))
    shared: dict[str, Axes] = {}
    drawn = []
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            ax = fig.add_subplot(grid[i, j], sharey=shared.get(cell.scale))
            shared.setdefault(cell.scale, ax)
            mean, fitted = means[i][j], fits[i][j]
            ax.set_title(f"({letter_of(cols * i + j)}) {cell.title}\n{_slopes_text(fitted, labels, inches)}", loc="left")
            ax.set_ylabel(cell.row if j == 0 else "")
            ax.tick_params(labelleft=own_scales or j == 0)
            _steps_panel(ax, mean, cell, look)
            steps_on_x(ax, steps, inches, label=i == len(cells) - 1)
            if chance:
                _chance_lines(ax, rows(values, _of(values, cell) & (values["quantity"] == chance)), look)
            drawn.append(mean.merge(fitted, on=["quantity", "step"], how="left").assign(rule=cell.rule, group=cell.group))
    legend(fig, size_marks(data.axis, look), line=1)
    if kinds:
        styles = zip(kinds, [{"ls": "-"}, SECOND], strict=True)
        legend(fig, [mark(kind, marker="o", ms=3.5, **style) for kind, style in styles], line=2)
    return fig, pd.concat(drawn, ignore_index=True).reindex(columns=["rule", "group", *SLOPE_COLUMNS])


def _steps_panel(ax: Axes, mean: pd.DataFrame, cell: Cell, look: dict) -> None:
    for quantity, dashed in zip(cell.quantities, (False, True), strict=False):
        line = SECOND if dashed else {"ls": "-"}
        for size, style in look.items():
            part = rows(mean, (mean["quantity"] == quantity) & (mean["size"] == size))
            if part.empty:
                continue
            seeds = part.pivot(index="step", columns="seed", values="value")
            y = seeds.map(np.log2) if cell.log else seeds
            ax.plot(step_at(y.index), y, color=style["color"], lw=0.5, alpha=0.35, ls=line["ls"])
            ax.plot(step_at(y.index), y.mean(axis=1), mew=0.7, **style | line)
    if cell.log:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        ax.yaxis.set_major_formatter(lambda y, _: f"{2.0**y:g}" if ax.get_ylim()[0] > -4 else f"$2^{{{y:g}}}$")
    elif cell.kind == "share":
        ax.set_ylim(-0.04, 1.04)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))


def _chance_lines(ax: Axes, part: pd.DataFrame, look: dict) -> None:
    for size in sorted(set(part["size"])):
        out, fan_in = np.sqrt(rows(part, part["size"] == size)[["fan_out", "fan_in"]].to_numpy(float)).T
        ax.axhline(float((out / (out + fan_in)).mean()), color=look[size]["color"], lw=0.8, ls=":", zorder=0)


def _of(values: pd.DataFrame, cell: Cell) -> Any:
    return (values["rule"] == cell.rule) & (values["group"] == cell.group)


def _group_means(values: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """One row per quantity, step, size and seed: the mean over the tensors of the cell's group."""
    part = rows(values, _of(values, cell) & values["quantity"].isin(list(cell.quantities)))
    part["value"] = np.log2(part["value"]) if cell.log else part["value"]
    mean = pd.DataFrame(part.groupby(["quantity", "step", "size", "seed"], as_index=False)["value"].mean())
    return mean.assign(value=np.exp2(mean["value"]) if cell.log else mean["value"])


def _group_fits(mean: pd.DataFrame, log: bool) -> pd.DataFrame:
    """quantity, step, slope, lo, hi of a cell's means at the steps that have all its sizes."""
    fitted = fit_slopes(mean, ["quantity", "step"], log)
    return rows(fitted, fitted.pop("n_sizes") == len(set(mean["size"])))


def _slopes_text(fitted: pd.DataFrame, labels: Mapping[str, str], inches: float) -> str:
    """The slopes of a cell at its last step, without the word where it does not fit."""
    last = rows(fitted, fitted["step"] == fitted["step"].max())[["quantity", "slope"]].to_numpy()
    slopes = {labels[q]: signed(s) for q, s in sorted(last, key=lambda row: list(labels).index(row[0]))}
    if not slopes:
        return "not recorded"
    text = ", ".join(slopes.values() if len(slopes) == 1 else (f"{q} {s}" for q, s in slopes.items()))
    return "slope " * (LETTER * len(f"slope {text}") < inches) + text


def sweep_note(data: SweepData) -> str:
    """The beginning of a footnote: what was run, and at which lrs the norms are drawn."""
    lrs = [v.features.log2_lr for v in data.verdicts if v.features is not None]
    text = "/".join(dict.fromkeys(f"{lr:g}" for lr in lrs if lr is not None))
    return f"{what_was_run(data.points)}. Log2 lr {text}, the common one nearest the base's optimum."


def left_out(verdicts: Sequence[Verdict], rules: Any) -> str:
    """The end of a footnote: rules that are not drawn."""
    absent = [v.rule for v in verdicts if v.rule not in set(rules)]
    return f" Not measured at all sizes of one lr: {', '.join(absent)}." if absent else ""
