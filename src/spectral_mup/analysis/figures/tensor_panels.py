"""Two layouts for modules and tensors: single ones with a table of their slopes, and groups of them over the steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from spectral_mup.analysis.feature_check import short
from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures import style as page_style
from spectral_mup.analysis.figures.lr_panels import size_marks
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import (
    Looks,
    finish,
    letter_width,
    line_height,
    mark,
    module_looks,
    page,
    page_width,
    per_row,
    signed,
    size_looks,
    slashed,
    step_at,
)
from spectral_mup.analysis.stats import fit_slopes, rows
from spectral_mup.analysis.verdict import what_was_run

FLAT = 0.01  # slopes below it have no guide
COLUMN = 8.3  # letters of a column of slopes
SLOPE_COLUMNS = ["quantity", "step", "size", "seed", "value", "slope", "lo", "hi"]
SECOND: dict[str, Any] = {"ls": (0, (2.2, 1.1)), "lw": 0.9, "mfc": "w"}  # the look of a cell's second quantity
Numbers = dict[str, tuple[float, bool]]  # of a panel in the table at its right, by name: number, and whether it is bold


class Strip(NamedTuple):
    """A row of panels of `strip_page`, one per rule, of the same quantity and tensors."""

    quantity: str  # strips of one quantity share their vertical scale
    label: str
    names: Sequence[str]
    header: str  # of the numbers in the table at its right; empty if it has none
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


def strip_page(rules: Sequence[str], strips: Sequence[Strip], caption: str, least: float, printing: Printing) -> Figure:
    """Lay out strip × rule panels, `least` inches high or more; at the right names and numbers, or names below all of them."""
    columns, looks = (
        bool(strips[0].header),
        {name: look for strip in strips for name, look in module_looks(strip.names).items()},
    )
    cols = per_row(len(rules), 2.4 if columns else 1.6)
    chunks = [(rules[i : i + cols], strip) for i in range(0, len(rules), cols) for strip in strips]
    letters = 5 + max((len(printing.name(short(n))) for strip in strips for n in strip.names), default=0) + COLUMN * cols
    table = letter_width() * letters * columns
    inches = (page_width() - 0.5 - table) / cols
    heights = [max(least, ((len(strip.names) + 2) * line_height() + 0.35) * columns) for _, strip in chunks]
    fig, grid = page(heights, [inches] * cols + [table] * columns)
    first: dict[str, Axes] = {}
    for i, (own_rules, strip) in enumerate(chunks):
        look = module_looks(strip.names)
        numbers: dict[str, Numbers] = {}
        for j, rule in enumerate(own_rules):
            title, share = printing.name(rule), first.get(strip.quantity)
            ax = page_style.panel(fig, grid[i, j], cols * i + j, title, None if j else strip.label, share)
            first.setdefault(strip.quantity, ax)
            numbers[page_style.letter_of(cols * i + j)] = strip.draw(ax, rule, look, inches)
        if columns:
            _table(fig.add_subplot(grid[i, cols]), strip.header, look, numbers, table, printing)
    names = [] if columns else [mark(printing.name(short(n)), ls="-", **look) for n, look in looks.items()]
    finish(fig, caption, names, note=printing.note)
    return fig


def _table(ax: Axes, header: str, look: Looks, numbers: Mapping[str, Numbers], inches: float, printing: Printing) -> None:
    """Write the names of a strip, and beside them the numbers of its panels."""
    ax.set_axis_off()
    ax.set(xlim=(0, inches), ylim=(len(look) + 0.5, -0.8))
    ax.text(0, 0, header, va="center")
    for k, (name, style) in enumerate(look.items(), start=1):
        ax.plot([0, 0.08, 0.16], [k, k, k], markevery=[1], clip_on=False, **style)
        ax.text(0.22, k, printing.name(short(name)), va="center")
    for j, (letter, column) in enumerate(reversed(list(numbers.items()))):
        right: dict[str, Any] = {"x": inches - COLUMN * letter_width() * j, "ha": "right", "va": "center"}
        ax.text(y=0, s=f"({letter})", **right)
        for k, (number, bold) in ((k, column[name]) for k, name in enumerate(look, start=1) if name in column):
            ax.text(y=k, s=signed(number), weight="bold" if bold else "normal", **right)


def seeds_and_mean(ax: Axes, x: np.ndarray, y: np.ndarray, style: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw single seeds faintly and the line of their mean at each x; return the line."""
    ax.plot(x, y, ls="", **{**style, "ms": 2, "alpha": 0.4, "mew": 0})
    at = np.unique(x)
    mean = np.array([y[x == one].mean() for one in at])
    ax.plot(at, mean, **style)
    return at, mean


def sizes_panel(ax: Axes, at: pd.DataFrame, look: Looks, expected: Mapping[str, float], data: SweepData, inches: float) -> None:
    """Draw the values of every tensor against the size, relative to the base; dotted, slopes that are expected and not flat."""
    if at.empty:
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
        return
    for name, style in look.items():
        own = rows(at, at["name"] == name)
        size, value = np.log2(own[["size", "value"]].to_numpy(float).T)
        if len(own):
            base = np.log2(data.base.get(data.axis, own["size"].min()))
            value = value - value[size == (base if base in size else size.min())].mean()
            sizes, mean = seeds_and_mean(ax, size, value, style)
            if abs(expected[name]) > FLAT:
                guide = mean[0] + expected[name] * (sizes - sizes[0])
                ax.plot(sizes, guide, ls=":", lw=0.8, color=style["color"], zorder=1)
    page_style.keep_in_view(ax, -0.7, 0.7)  # or noise would look like a trend
    page_style.sizes_on_x(ax, sorted(set(at["size"])), data.axis, inches)
    ratios_on_y(ax, 7)


def ratios_on_y(ax: Axes, most: int) -> None:
    """Put ticks at whole octaves, labelled as ratios: ½, 1, 2."""
    octaves_on_y(ax, most)
    ax.yaxis.set_major_formatter(lambda y, _: f"{2.0**y:.3g}" if abs(y) < 7 else f"$2^{{{y:g}}}$")


def octaves_on_y(ax: Axes, most: int) -> None:
    """Put ticks at whole octaves, labelled 2^y, at most about `most` of them."""
    ax.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=True))
    ax.yaxis.set_major_formatter(lambda y, _: f"$2^{{{y:g}}}$")


def against_steps(
    data: SweepData, values: pd.DataFrame, cells: list[list[Cell]], labels: Mapping[str, str], note: str, chance: str = ""
) -> tuple[Figure, pd.DataFrame] | None:
    """Lay out rows of cells, a line per size, each the mean over the tensors of the group; slopes against size in the titles.

    Means and slopes are of log2 where a cell is log, else of the value itself (its change per doubling of the size); None
    without cells. `chance` names the quantity whose value for a Gaussian matrix, √fan_out/(√fan_out + √fan_in), is dotted.
    """
    if not cells:
        return None
    sizes, steps, own_scales = sorted({int(s) for s in values["size"]}), sorted(set(values["step"])), _own_scales(cells)
    most = max(1, int((page_width() - 0.5) / (1.3 if own_scales else 1.15)))
    chunks = [part for row in cells for part in _even(row, most)]
    cols = max(map(len, chunks))
    inches = (page_width() - 0.6) / cols - 0.15 - 0.3 * own_scales
    marker_sizes = np.linspace(4.0, 2.6, len(sizes))  # larger below: all are seen where they coincide
    look = {s: {**style, "ms": ms} for (s, style), ms in zip(size_looks(sizes).items(), marker_sizes, strict=True)}
    found = {cell: _means_and_slopes(values, cell) for row in cells for cell in row}
    kinds = list(dict.fromkeys(labels[q] for cell in found for q in cell.quantities if len(cell.quantities) > 1))
    last = slashed(slopes["step"].max() for _, slopes in found.values() if len(slopes))
    caption = f"{sweep_note(data)} Mean over seeds (band: their range) and over the tensors of all blocks. Over the panels: "
    caption += f"slope against log2 {data.axis} at step {last}, of log2 of the quantity where its axis is log. "
    caption += f"{note}{left_out(data, values['rule'].unique())}"
    fig, grid = page([1.45] * len(chunks), [1] * cols)
    shared: dict[str, Axes] = {}
    drawn = []
    places = ((i, j, cell) for i, chunk in enumerate(chunks) for j, cell in enumerate(chunk))
    for k, (i, j, cell) in enumerate(places):
        mean, slopes = found[cell]
        title, label = f"{cell.title}\n{_slopes_text(slopes, labels, inches)}", "" if own_scales else None
        ax = page_style.panel(fig, grid[i, j], k, title, label if j else cell.row, shared.get(cell.scale))
        shared.setdefault(cell.scale, ax)
        _steps_panel(ax, mean, cell, look)
        page_style.steps_on_x(ax, steps, inches, label=i == len(chunks) - 1 or j >= len(chunks[i + 1]))
        dotted = rows(values, _of(values, cell, [chance]))
        for size in sorted(set(dotted["size"])):
            out, fan_in = np.sqrt(rows(dotted, dotted["size"] == size)[["fan_out", "fan_in"]].to_numpy(float)).T
            ax.axhline(float((out / (out + fan_in)).mean()), color=look[size]["color"], lw=0.8, ls=":", zorder=0)
        drawn.append(mean.merge(slopes, on=["quantity", "step"], how="left").assign(rule=cell.rule, group=cell.group))
    styles = zip(kinds, [{"ls": "-"}, SECOND], strict=False)
    kind_marks = [mark(kind, marker="o", ms=3.5, **style) for kind, style in styles]
    finish(fig, caption, size_marks(data.axis, look), kind_marks, note=data.printing.note)
    return fig, pd.concat(drawn, ignore_index=True).reindex(columns=["rule", "group", *SLOPE_COLUMNS])


def _own_scales(cells: Sequence[Sequence[Cell]]) -> bool:
    """Return whether each column has its own scale, with its own ticks."""
    return len({cell.scale for cell in cells[0]}) > 1


def _even(row: Sequence[Cell], most: int) -> list[Sequence[Cell]]:
    """Break a row of cells into as few rows as hold at most that many each, of about equal length."""
    length = -(-len(row) // -(-len(row) // most))
    return [row[i : i + length] for i in range(0, len(row), length)]


def _steps_panel(ax: Axes, mean: pd.DataFrame, cell: Cell, look: Looks) -> None:
    for quantity, line in zip(cell.quantities, ({"ls": "-"}, SECOND), strict=False):
        for size, style in look.items():
            part = rows(mean, (mean["quantity"] == quantity) & (mean["size"] == size))
            seeds = part.pivot(index="step", columns="seed", values="value")
            y = pd.DataFrame(np.log2(seeds)) if cell.kind == "log" else seeds
            seeds_over(ax, step_at(seeds.index), y, {"mew": 0.7, **style, **line})
    if cell.kind == "log":
        octaves_on_y(ax, 5)
        ax.yaxis.set_major_formatter(lambda y, _: f"{2.0**y:g}" if ax.get_ylim()[0] > -4 else f"$2^{{{y:g}}}$")
    elif cell.kind == "share":
        ax.set_ylim(-0.04, 1.04)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))


def seeds_over(ax: Axes, x: Any, seeds: pd.DataFrame, style: Mapping[str, Any]) -> None:
    """Draw a band over the range of the seeds (columns), and over it the line of their mean."""
    if not seeds.empty:
        ax.fill_between(x, seeds.min(axis=1), seeds.max(axis=1), color=style["color"], alpha=0.22, lw=0, zorder=1.5)
        ax.plot(x, seeds.mean(axis=1), **style)


def _of(values: pd.DataFrame, cell: Cell, quantities: Sequence[str]) -> Any:
    return (values["rule"] == cell.rule) & (values["group"] == cell.group) & values["quantity"].isin(list(quantities))


def _means_and_slopes(values: pd.DataFrame, cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return means over the tensors of the cell's group by quantity, step, size and seed, and slopes where all sizes are."""
    part, log = rows(values, _of(values, cell, cell.quantities)), cell.kind == "log"
    part["value"] = np.log2(part["value"]) if log else part["value"]
    mean = pd.DataFrame(part.groupby(["quantity", "step", "size", "seed"], as_index=False)["value"].mean())
    mean["value"] = np.exp2(mean["value"]) if log else mean["value"]
    fitted = fit_slopes(mean, ["quantity", "step"], log)
    return mean, rows(fitted, fitted.pop("n_sizes") == len(set(mean["size"])))


def _slopes_text(fitted: pd.DataFrame, labels: Mapping[str, str], inches: float) -> str:
    """Format the slopes of a cell at its last step, without the word where it does not fit."""
    slopes = dict(rows(fitted, fitted["step"] == fitted["step"].max())[["quantity", "slope"]].to_numpy())
    texts = {label: signed(slopes[q]) for q, label in labels.items() if q in slopes}
    if not texts:
        return "not recorded"
    text = ", ".join(texts.values() if len(texts) == 1 else (f"{q} {s}" for q, s in texts.items()))
    return "slope " * (letter_width() * len(f"slope {text}") < inches) + text


def sweep_note(data: SweepData) -> str:
    """Return the beginning of a footnote: what was run, and at which lrs the norms are drawn."""
    return f"{what_was_run(data.points)}. Log2 {data.named('lr')} {norm_lrs(data)}, the common one nearest the base's optimum."


def norm_lrs(data: SweepData) -> str:
    """Format the log2 lrs whose norms are drawn."""
    return slashed(f"{check.log2_lr:g}" for check in data.checks.values() if check.log2_lr is not None)


def left_out(data: SweepData, rules: Any, sizes: str = "sizes") -> str:
    """Return the end of a footnote: rules that are not drawn."""
    absent = [v.rule for v in data.verdicts if v.rule not in set(rules)]
    return f" Not measured at all {sizes} of one {data.named('lr')}: {', '.join(absent)}." if absent else ""
