"""Two layouts of the diagnostics: single tensors against the size with a table of slopes, and groups of them over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from spectral_mup.analysis.feature_check import LIMITS, fit_slope, short
from spectral_mup.analysis.figures.feature_norms import COLUMN, MODULES
from spectral_mup.analysis.figures.style import (
    LETTER,
    LINE,
    MARKERS,
    STYLE,
    WIDTH,
    legend,
    letter_of,
    page,
    per_row,
    signed,
    sizes_on_x,
    step_at,
    steps_on_x,
)
from spectral_mup.analysis.optimum import rows
from spectral_mup.analysis.verdict import Verdict, what_was_run

GREY = "0.45"
DRAWN = ["quantity", "step", "size", "seed", "value", "slope", "lo", "hi"]
SECOND: dict[str, Any] = {"ls": (0, (2.2, 1.1)), "lw": 0.9, "mfc": "w"}  # the look of a cell's second quantity


class Strip(NamedTuple):
    """A row of panels of `against_size`, one a rule: a quantity at the rule's step, or its slope over the steps."""

    quantity: str
    label: str
    steps: Mapping[str, int]
    header: str  # of the table at its right
    expected: Mapping[tuple[str, str], float]  # slopes by (rule, name): dotted, or over the steps listed in the table
    over_steps: bool = False


class Cell(NamedTuple):
    """A panel of `against_steps`: quantities of one rule and group of tensors; the first solid, the second dashed."""

    rule: str
    group: str
    quantities: tuple[str, ...]
    title: str
    log: bool
    row: str


@matplotlib.style.context(["default", STYLE])
def against_size(
    points: pd.DataFrame,
    verdicts: Sequence[Verdict],
    names: Sequence[str],
    values: pd.DataFrame,
    fitted: pd.DataFrame,
    strips: Sequence[Strip],
    note: str,
    judged_by: str = "",
) -> tuple[Figure, pd.DataFrame]:
    """Lay out strip × rule panels, three rules a row, and at the right the tensors with their slopes.

    A slope is bold if its whole interval is further from the expected one than the limit of the tensor's kind, or if that of
    the quantity `judged_by` is further from 0. Returns the values and slopes of what is drawn.
    """
    rules, axis = list(dict.fromkeys(values["rule"])), verdicts[0].axis
    values, fitted = (rows(t, t["name"].isin(list(names))) for t in (values, fitted))
    cols = per_row(len(rules))
    chunks = [(rules[i : i + cols], strip) for i in range(0, len(rules), cols) for strip in strips]
    looks = zip(names, MODULES, MARKERS, strict=False)
    look = {n: {"color": c, "marker": m, "ms": 3.2} for n, c, m in looks}
    table = LETTER * (6 + max(len(short(n)) for n in names)) + COLUMN * cols
    inches = (WIDTH - 0.5 - table) / cols
    text = (
        f"{what_was_run(points)}. Log2 lr {_lrs(verdicts)}, the common one nearest the base's optimum. Lines: mean over seeds "
    )
    text += f"(faint: single seeds). Blocks: the last one. {note}{_left_out(verdicts, rules)}"
    fig, grid = page([max(1.75, (len(names) + 2) * LINE + 0.35) for _ in chunks], [inches] * cols + [table], text)
    first: dict[str, Axes] = {}
    for i, (some, strip) in enumerate(chunks):
        listed: dict[str, dict[str, tuple[float, bool]]] = {}
        for j, rule in enumerate(some):
            letter = letter_of(cols * i + j)
            ax = fig.add_subplot(grid[i, j], sharey=first.get(strip.quantity))
            first.setdefault(strip.quantity, ax)
            ax.set_title(f"({letter}) {rule}", loc="left")
            ax.set_ylabel("" if j else strip.label)
            ax.tick_params(labelleft=j == 0)
            own = rows(values, (values["rule"] == rule) & (values["quantity"] == strip.quantity))
            of_rule = rows(fitted, fitted["rule"] == rule)
            slopes = rows(of_rule, of_rule["quantity"] == strip.quantity)
            expected = {n: strip.expected.get((rule, n), np.nan) for n in look}
            if strip.over_steps:
                _slopes_panel(ax, slopes, strip.steps[rule], look, inches)
                listed[letter] = {n: (slope, False) for n, slope in expected.items()}
            else:
                at = rows(own, own["step"] == strip.steps.get(rule))
                _sizes_panel(ax, at, look, expected, axis, inches)
                judge = rows(of_rule, of_rule["quantity"] == (judged_by or strip.quantity))
                listed[letter] = _judged(slopes, judge, strip.steps.get(rule), {} if judged_by else expected)
        _table(fig.add_subplot(grid[i, cols]), look, listed, strip.header, table)
    drawn = values.merge(fitted.drop(columns="kind"), on=["rule", "quantity", "name", "step"], how="left")
    return fig, drawn.reindex(columns=["rule", "name", *DRAWN])


def _sizes_panel(ax: Axes, at: pd.DataFrame, look: dict, expected: dict[str, float], axis: str, inches: float) -> None:
    if at.empty:
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes)
        return
    for name, style in look.items():
        seeds = rows(at, at["name"] == name)[["size", "value"]].to_numpy(float)
        if not len(seeds):
            continue
        x, y = np.log2(seeds.T)
        ax.plot(x, y, ls="", **style | {"ms": 2, "alpha": 0.4, "mew": 0})
        sizes = np.unique(x)
        mean = np.array([y[x == s].mean() for s in sizes])
        ax.plot(sizes, mean[0] + expected[name] * (sizes - sizes[0]), ls=":", lw=0.8, color=style["color"], zorder=1)
        ax.plot(sizes, mean, **style)
    sizes_on_x(ax, sorted(set(at["size"])), axis, inches)
    ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    ax.yaxis.set_major_formatter(lambda y, _: f"$2^{{{y:g}}}$")


def _slopes_panel(ax: Axes, slopes: pd.DataFrame, judged: int, look: dict, inches: float) -> None:
    for name, style in look.items():
        line = rows(slopes, (slopes["name"] == name) & (slopes["step"] > 0)).sort_values("step")
        ax.plot(step_at(line["step"]), line["slope"], **style)
    ax.axhspan(-0.15, 0.15, color="0.88", lw=0, zorder=0)
    ax.axhline(0, color="0.6", lw=0.6, ls=":", zorder=0)
    ax.axvline(float(step_at([judged])[0]), color="0.6", lw=0.7, ls="--", zorder=0)
    lo, hi = ax.get_ylim()
    ax.set_ylim(min(lo, -0.6), max(hi, 0.6))
    steps_on_x(ax, sorted(set(slopes["step"][slopes["step"] > 0])), inches)


def _judged(
    slopes: pd.DataFrame, judge: pd.DataFrame, step: int | None, expected: dict[str, float]
) -> dict[str, tuple[float, bool]]:
    """{name: (slope, whether the interval that judges it is wholly further from the expected than the kind's limit)}."""
    outside = {}
    for name, kind, lo, hi in rows(judge, judge["step"] == step)[["name", "kind", "lo", "hi"]].to_numpy():
        lo, hi = lo - expected.get(name, 0.0), hi - expected.get(name, 0.0)
        outside[name] = bool(lo > LIMITS[kind] or hi < -LIMITS[kind])
    at = rows(slopes, slopes["step"] == step)
    return {name: (slope, outside.get(name, False)) for name, slope in at[["name", "slope"]].to_numpy()}


def _table(ax: Axes, look: dict, listed: dict[str, dict[str, tuple[float, bool]]], header: str, inches: float) -> None:
    """Write the legend of a row of panels: mark, tensor, and its number in each panel."""
    ax.set_axis_off()
    ax.set(xlim=(0, inches), ylim=(len(look) + 0.5, -0.8))
    ax.text(0, 0, header, va="center")
    for i, (name, style) in enumerate(look.items(), start=1):
        ax.plot([0, 0.08, 0.16], [i, i, i], markevery=[1], clip_on=False, **style)
        ax.text(0.22, i, short(name), va="center")
        for j, (letter, numbers) in enumerate(reversed(listed.items())):
            number, bold = numbers.get(name, (float("nan"), False))
            at: dict[str, Any] = {"ha": "right", "va": "center"}
            ax.text(inches - COLUMN * j, i, signed(number), weight="bold" if bold else "normal", **at)
            if i == 1:
                ax.text(inches - COLUMN * j, 0, f"({letter})", **at)


@matplotlib.style.context(["default", STYLE])
def against_steps(
    points: pd.DataFrame,
    verdicts: Sequence[Verdict],
    values: pd.DataFrame,
    cells: Sequence[Sequence[Cell]],
    labels: Mapping[str, str],
    note: str,
    chance: str = "",
) -> tuple[Figure, pd.DataFrame]:
    """Lay out the cells, a line a size, each the mean over the tensors of the group; slopes against the size in the titles.

    Means and slopes are of log2 where a cell is log, else of the value itself (its change per doubling of the size).
    `chance` names the quantity whose value for a Gaussian matrix, √fan_out/(√fan_out + √fan_in), is dotted.
    """
    axis, sizes = verdicts[0].axis, sorted({int(s) for s in values["size"]})
    colours = matplotlib.colormaps["viridis"](np.linspace(0.82, 0, len(sizes)))
    marks = zip(
        MARKERS * len(sizes), np.linspace(4.0, 2.6, len(sizes)), strict=False
    )  # larger below: all are seen where they meet
    look = {s: {"color": c, "marker": m, "ms": ms} for s, c, (m, ms) in zip(sizes, colours, marks, strict=False)}
    cols = len(cells[0])
    inches = (WIDTH - 0.6) / cols - 0.15 - 0.3 * (len({c.title for c in cells[0]} & {c.group for c in cells[0]}) == 0)
    kinds = dict.fromkeys(labels[q] for row in cells for c in row for q in c.quantities)
    fits = [_group_fits(values, cell) for row in cells for cell in row]
    steps = dict.fromkeys(str(f["step"].max()) for f in fits if len(f))
    text = (
        f"{what_was_run(points)}. Log2 lr {_lrs(verdicts)}, the common one nearest the base's optimum. Mean over seeds (faint: "
    )
    text += f"single seeds) and over the tensors of all blocks. Over the panels: slope against log2 {axis} at step "
    text += f"{'/'.join(steps)}, of log2 of the quantity where its axis is log. {note}{_left_out(verdicts, values['rule'])}"
    fig, grid = page([1.45] * len(cells), [1] * cols, text, legends=1 + (len(kinds) > 1))
    shared: dict[Any, Axes] = {}
    drawn = []
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            by_column = cell.title != cell.group  # columns are quantities, each with its own scale
            ax = fig.add_subplot(grid[i, j], sharey=shared.get(cell.title if by_column else None))
            shared.setdefault(cell.title if by_column else None, ax)
            mean, fitted = _group_means(values, cell), fits[i * cols + j]
            told = "\n" + _told(fitted, labels, inches)
            ax.set_title(f"({letter_of(cols * i + j)}) {cell.title}{told}", loc="left")
            ax.set_ylabel(cell.row if j == 0 else "")
            ax.tick_params(labelleft=by_column or j == 0)
            _steps_panel(ax, mean, cell, look)
            steps_on_x(ax, sorted(set(values["step"])), inches, label=i == len(cells) - 1)
            if chance:
                part = rows(values, (values["rule"] == cell.rule) & (values["group"] == cell.group))
                part = rows(part, part["quantity"] == chance)
                for size in sorted(set(part["size"])):
                    out, fan_in = np.sqrt(rows(part, part["size"] == size)[["fan_out", "fan_in"]].to_numpy(float)).T
                    ax.axhline(float((out / (out + fan_in)).mean()), color=look[size]["color"], lw=0.8, ls=":", zorder=0)
            drawn.append(mean.merge(fitted, on=["quantity", "step"], how="left").assign(rule=cell.rule, group=cell.group))
    entries = [Line2D([], [], label=f"{s}", **style) for s, style in look.items()]
    legend(fig, [Line2D([], [], ls="", label=f"{axis}:"), *entries], line=1)
    if len(kinds) > 1:
        styles = [{"ls": "-"}, SECOND]
        pairs = zip(kinds, styles, strict=True)
        legend(fig, [Line2D([], [], label=k, marker="o", ms=3.5, color=GREY, **s) for k, s in pairs], line=2)
    table = pd.concat(drawn, ignore_index=True)
    return fig, table.reindex(columns=["rule", "group", *DRAWN])


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
    else:
        ax.set_ylim(-0.04, 1.04)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))


def _group_means(values: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Return one row a quantity, step, size and seed: the mean over the tensors of the cell's group."""
    mine = (values["rule"] == cell.rule) & (values["group"] == cell.group) & values["quantity"].isin(list(cell.quantities))
    part = rows(values, mine)
    part["value"] = np.log2(part["value"]) if cell.log else part["value"]
    mean = pd.DataFrame(part.groupby(["quantity", "step", "size", "seed"], as_index=False)["value"].mean())
    return mean.assign(value=np.exp2(mean["value"]) if cell.log else mean["value"])


def _group_fits(values: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Return quantity, step, slope, lo, hi of a cell's means at the steps that have all its sizes."""
    mean, fitted = _group_means(values, cell), []
    for (quantity, step), part in mean.groupby(["quantity", "step"]):  # pyright: ignore[reportGeneralTypeIssues]
        if set(part["size"]) == set(mean["size"]):
            value = part["value"].to_numpy(float)  # of a value that is not logged: log2(2^value) is fitted
            fitted.append((quantity, step, *fit_slope(part["size"].to_numpy(float), value if cell.log else np.exp2(value))))
    return pd.DataFrame(fitted, columns=["quantity", "step", "slope", "lo", "hi"])


def _told(fitted: pd.DataFrame, labels: Mapping[str, str], inches: float) -> str:
    """Say the slopes of a cell at its last step, without the word where it does not fit."""
    last = rows(fitted, fitted["step"] == fitted["step"].max())[["quantity", "slope"]].to_numpy()
    slopes = {labels[q]: signed(s) for q, s in sorted(last, key=lambda row: list(labels).index(row[0]))}
    if not slopes:
        return "not recorded"
    said = ", ".join(slopes.values() if len(slopes) == 1 else (f"{q} {s}" for q, s in slopes.items()))
    return "slope " * (LETTER * len(f"slope {said}") < inches) + said


def _lrs(verdicts: Sequence[Verdict]) -> str:
    lrs = [v.features.log2_lr for v in verdicts if v.features is not None]
    return "/".join(dict.fromkeys(f"{lr:g}" for lr in lrs if lr is not None))


def _left_out(verdicts: Sequence[Verdict], rules: Any) -> str:
    absent = [v.rule for v in verdicts if v.rule not in set(rules)]
    return f" Not measured at all sizes of one lr: {', '.join(absent)}." if absent else ""
