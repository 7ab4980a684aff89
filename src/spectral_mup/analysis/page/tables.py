"""The tables of the page: verdicts, optima, runs and features, each cell with what it is sorted by."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from spectral_mup.analysis.page.cards import features_text, number, regret_text, slope_text
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, percent
from spectral_mup.config.tune import LR


class Cell(NamedTuple):
    """What a table shows, and the number that it is sorted by; None: by its text."""

    text: str
    number: float | None = None


class Table(NamedTuple):
    """A table that sorts by any column."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]


Called = Callable[[str], str]


def _number(x: float, form: str = "", text: str | None = None) -> Cell:
    form = form or ("{:.0f}" if float(x).is_integer() else "{:g}")  # all digits of a seed
    return Cell(number(x, form) if text is None else text, None if math.isnan(x) else x)


def verdict_table(verdicts: Sequence[Verdict], called: Called) -> Table:
    """One row per rule and axis."""
    found = []
    for v in verdicts:
        features = features_text(v)
        over = f"{v.axis.replace('_', ' ')} {min(v.optima)} to {max(v.optima)}{f', of {v.tuned}' * (v.tuned != LR)}"
        cells = [Cell(called(v.rule)), Cell(over), Cell(v.verdict), _number(v.slope, text=slope_text(v))]
        cells += [_number(v.regret, text=regret_text(v)), Cell(features["word"] if features else "–")]
        found.append([*cells, Cell(v.basis or "–"), *(_number(v.counts[status]) for status in ("done", "diverged", "missing"))])
    level = " / ".join(dict.fromkeys(percent(v.alpha) for v in verdicts))
    head = ["rule", "over", "verdict", f"slope [{level}]", "regret", "features", "seeds", "done", "diverged", "missing"]
    return Table("Verdicts", head, found)


def optima_table(verdicts: Sequence[Verdict], called: Called) -> Table:
    """One row per rule and size."""
    axis, tuned = verdicts[0].axis.replace("_", " "), verdicts[0].tuned
    found = []
    for v in verdicts:
        for size, o in v.optima.items():
            if o is None:
                found.append([Cell(called(v.rule)), _number(size), *[Cell("none finished")] * 2, *[Cell("–")] * 3])
                continue
            interval = f"{number(o.lo)} to {number(o.hi)}".replace("–", "open")
            known = [_number(o.log2_lr, "{:.2f}"), Cell(interval), _number(2**o.log2_lr, "{:.3g}")]
            found.append([Cell(called(v.rule)), _number(size), *known, _number(o.loss, "{:.4f}"), _number(o.curve.n_seeds)])
    head = ["rule", axis, f"log2 of the best {tuned}", "its interval", f"best {tuned}", "loss there", "seeds"]
    return Table(f"The best {'learning rate' if tuned == LR else tuned} of every size", head, found)


def runs_table(points: pd.DataFrame, axis: str, tuned: str, called: Called) -> Table:
    """One row per run of a rule; those of the base size stand under each rule."""
    found = []
    for run in points.to_dict("records"):
        cells = [
            Cell(called(run["rule"])),
            _number(run[axis], "{:.0f}"),
            _number(run["log2_lr"]),
            _number(run["seed"], "{:.0f}"),
        ]
        found.append([*cells, Cell(run["status"]), _number(run["loss"], "{:.4f}"), Cell(run["run_id"])])
    return Table("All runs", ["rule", axis.replace("_", " "), f"log2 {tuned}", "seed", "status", "loss", "run"], found)


def features_table(features: pd.DataFrame, called: Called) -> Table | None:
    """One row per module or tensor at the step that is judged; None where nothing was."""
    found = []
    for row in rows(features, features["judged"] == True).to_dict("records"):  # noqa: E712  empty columns are objects
        slope = f"{number(row['slope'], '{:+.2f}')} [{number(row['lo'], '{:+.2f}')}, {number(row['hi'], '{:+.2f}')}]"
        what = {"feature": "features", "update": "updates"}[row["quantity"]]
        cells = [Cell(called(row["rule"])), Cell(what), Cell(row["name"]), _number(row["slope"], text=slope)]
        found.append([*cells, _number(row["limit"], text=f"±{row['limit']:g}"), Cell(row["verdict"])])
    head = ["rule", "what", "module or tensor", "slope [95 %]", "limit", "verdict"]
    return Table("How features and updates grow with the size", head, found) if found else None
