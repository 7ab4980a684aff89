"""Your own runs: judge any table of them as a sweep is judged."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spectral_mup.analysis.report import format_verdicts, judge_all, notes_on, table_of
from spectral_mup.analysis.results import optima_table, verdict_table
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict
from spectral_mup.errors import ConfigError
from spectral_mup.util.registry import did_you_mean
from spectral_mup.util.text import html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_mup.analysis.load import Loaded

STATUS = {"done", "diverged", "missing"}
ALL = "all runs"  # the name of the one rule of a table without rules
SAME = 1e-4  # octaves: values closer than this are one value, rounded differently


class TableError(ConfigError):
    """A table of runs that cannot be judged. The message is one line: argument, what is wrong, fix."""


@dataclass(frozen=True, eq=False, repr=False)
class Judged(Mapping[str, Verdict]):
    """The Verdict of every rule, by name; prints as a table, also in a notebook.

    Attributes:
        points: One row per run: rule, the size, log2_lr (log2 of what was tuned), seed, status, loss.
        verdicts: One per rule.
        loss: What the losses are called in figures.
    """

    points: pd.DataFrame  # one row a run: rule, the size, log2_lr (log2 of what was tuned), seed, status, loss
    verdicts: list[Verdict]
    loss: str  # what the losses are called in figures

    def __getitem__(self, rule: str) -> Verdict:
        return {v.rule: v for v in self.verdicts}[rule]

    def __iter__(self) -> Iterator[str]:
        return iter([v.rule for v in self.verdicts])

    def __len__(self) -> int:
        return len(self.verdicts)

    def __str__(self) -> str:
        return format_verdicts(self.verdicts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(table_of(self.verdicts), notes_on(self.verdicts))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per rule: verdict, slope and regret with their intervals, runs by status, what would decide it."""
        return verdict_table(self.verdicts)

    @property
    def optima(self) -> pd.DataFrame:
        """One row per rule and size: the best log2 value with its interval, the loss there, each seed's own best."""
        return optima_table(self.verdicts)

    def plot(self, ax: Axes | None = None, *, rule: str | None = None) -> Axes:
        """Draw what was judged, as `plot_lr_transfer` does.

        Args:
            ax: Axes to draw into; default: those of a new figure.
            rule: Whose losses are drawn; default: the only one, and of several their optima.

        Returns:
            The axes.

        Raises:
            TableError: No rule has this name.
        """
        from spectral_mup.analysis.figures.lr_transfer import draw_losses, draw_optima
        from spectral_mup.analysis.figures.style import new_axes

        if rule is not None and rule not in self:
            raise TableError(f"rule={rule!r}: is none of {', '.join(self)}")
        ax = new_axes() if ax is None else ax
        if rule is None and len(self) > 1:
            draw_optima(ax, self.verdicts)
        else:
            draw_losses(ax, self.points, self.verdicts, rule or self.verdicts[0].rule, self.loss)
        return ax


def judge(
    df: pd.DataFrame, size: str = "width", value: str = "log2_lr", loss: str = "loss", seed: str = "seed",
    base: int | None = None, rule: str | None = None, tolerance: float = 0.25, alpha: float = 0.05,
    *, regret_limit: float = 0.005,
) -> Judged:  # fmt: skip
    """Judge a table with one row per run, as `analyze.py` judges a sweep: does the best learning rate stay as the model grows?

    'drifts': the slope's interval lies outside ±tolerance. 'costs': it does not, but what the base's optimum costs at the
    largest size surely exceeds the limit. 'transfers': the slope's interval lies within, and the cost too. Else 'undecided',
    and what would decide it. Columns `status` ('done', 'diverged', 'missing') and `tuned` of a curves.csv are heeded.

    Args:
        df: The table.
        size: Column of what grows: width, depth, steps, …; whole numbers.
        value: Column of log2 of what was tuned, a learning rate or another positive number.
        loss: Column of the final losses, above 0; one that is not finite is a run that diverged.
        seed: Column that distinguishes the runs of one size and value.
        base: The size that was tuned, by default the smallest.
        rule: Column by whose values runs are judged apart; None: all together.
        tolerance: Slopes d log2 η* / d log2 size up to this are none.
        alpha: Intervals are at level 1 - alpha; `analyze.py` takes 0.0158 where a search has looked at them several times.
        regret_limit: Costs up to this fraction of the loss are none.

    Returns:
        The verdict of every rule.

    Raises:
        TableError: A column is missing or holds what cannot be judged; the message names it and the fix. A ValueError.
    """
    points, axis = _points(df, size, value, loss, seed, rule), str(size)
    sizes = [int(s) for s in np.unique(points[axis])]
    if len(sizes) < 2:
        raise TableError(f"size={size!r}: all runs have {size} {sizes[0]}; a slope needs several sizes, a verdict three")
    base = sizes[0] if base is None else base
    if base not in sizes:
        raise TableError(f"base={base}: no run has {size} {base}; give one of {', '.join(map(str, sizes))}")
    limits = {"tolerance": tolerance, "regret_limit": regret_limit, "alpha": alpha}
    for name, limit in limits.items():
        if not isinstance(limit, Real) or not 0 < limit < (1 if name == "alpha" else np.inf):
            raise TableError(f"{name}={limit!r}: give a number above 0{', below 1, as 0.05' * (name == 'alpha')}")
    verdicts = judge_all(points, None, axis, int(base), **limits)
    return Judged(points, verdicts, loss)


def plot_lr_transfer(runs: Judged | Loaded | pd.DataFrame, ax: Axes | None = None, *, rule: str | None = None) -> Axes:
    """Draw losses against the learning rate, or of several rules the best learning rate against the size.

    Under one rule, named or the only one, there is one line per size; of several, one line per rule.

    Args:
        runs: What `judge` or `load` returned, or a table that `judge` takes without further arguments.
        ax: Axes to draw into; default: those of a new figure.
        rule: Whose losses are drawn; default: the only one, and of several their optima.

    Returns:
        The axes.

    Raises:
        TableError: `runs` is none of these, or no rule has this name.
    """
    if isinstance(runs, pd.DataFrame):
        runs = judge(runs)
    judged = getattr(runs, "judged", runs)
    if not isinstance(judged, Judged):
        raise TableError(f"runs: a {type(runs).__name__}; give what judge or load returned, or a DataFrame")
    return judged.plot(ax, rule=rule)


def _points(df: pd.DataFrame, size: str, value: str, loss: str, seed: str, rule: str | None) -> pd.DataFrame:
    """Return the table with the columns that are judged."""
    if not isinstance(df, pd.DataFrame):
        raise TableError(f"df: a {type(df).__name__}; give a pandas DataFrame with one row per run, as pd.DataFrame(runs)")
    names = {"size": size, "value": value, "loss": loss, "seed": seed, **({} if rule is None else {"rule": rule})}
    of = {argument: _column(df, argument, name) for argument, name in names.items()}
    if len(set(names.values())) < len(names):
        raise TableError(f"{', '.join(f'{a}={n!r}' for a, n in names.items())}: give each a column of its own")
    if df.empty:
        raise TableError("df: has no rows; give one row per run")
    losses = _numbers(of["loss"], "loss")
    points = pd.DataFrame(
        {"family": "", "optimizer": "", "rule": ALL if rule is None else _texts(of["rule"], "rule")}, df.index
    )
    points["tuned"], points["log2_lr"] = _tuned(df, value), _values(of["value"])
    seeds = _texts(of["seed"], "seed")
    points["seed"] = of["seed"] if pd.api.types.is_numeric_dtype(of["seed"].dtype) else seeds
    points["status"], points["loss"] = _status(df, losses), losses
    if str(size) in points:
        raise TableError(f"size={size!r}: rename the column, whose name stands for something else here, as in 'model_{size}'")
    points[str(size)] = _sizes(of["size"])
    _check_points(points, names)
    return points.reset_index(drop=True)


def _check_points(points: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Refuse losses of which no fraction can be taken, and several runs in one place."""
    done = rows(points, points["status"] == "done")["loss"].to_numpy(float)
    if len(done) and done.min() <= 0:
        raise TableError(f"loss={names['loss']!r}: holds {done.min():g}, and fractions of it are judged; give a loss above 0")
    started = rows(points, points["status"] != "missing")
    own = {names["size"]: str(names["size"]), names["value"]: "log2_lr", names["seed"]: "seed"}
    own |= {names["rule"]: "rule"} if "rule" in names else {}
    for run in rows(started, started.duplicated([*own.values()])).to_dict("records"):
        where = ", ".join(f"{name} {run[column]}" for name, column in own.items())
        fix = "keep one, or give the column that distinguishes them as seed= or rule="
        raise TableError(f"seed={names['seed']!r}: several runs have {where}; {fix}")


def _column(df: pd.DataFrame, argument: str, name: str) -> pd.Series:
    given = f"{argument}={name!r}"
    if name is None or not isinstance(name, Hashable):
        raise TableError(f"{given}: give the name of a column")
    if name not in df.columns:
        if name in df.index.names:
            raise TableError(f"{given}: is in the index of df; give df.reset_index()")
        known = [str(column) for column in df.columns]
        more = "; without seeds, df.assign(seed=0)" if argument == "seed" else ""
        hint = did_you_mean(str(name), known, f"{argument}=")
        raise TableError(f"{given}: no such column; {hint}give {argument}= one of {', '.join(known) or 'its columns'}{more}")
    column = df[name]
    if not isinstance(column, pd.Series):
        raise TableError(f"{given}: df has several columns of this name; keep one")
    return column


def _numbers(column: pd.Series, argument: str, finite: bool = False) -> np.ndarray:
    """Return a column as floats; what is missing is NaN, or refused if it must be `finite`."""
    given, as_floats = f"{argument}={column.name!r}", f"df[{column.name!r}].astype(float)"
    for row, x in zip(column.index, column, strict=True):
        absent = x is None or x is pd.NA or x is pd.NaT
        if not absent and (isinstance(x, bool) or not isinstance(x, Real)):
            raise TableError(f"{given}: holds {x!r} in row {row}, which is not a number; convert the column, as in {as_floats}")
    numbers = column.to_numpy(dtype=float, na_value=np.nan)
    for i in np.flatnonzero(~np.isfinite(numbers))[: int(finite)]:
        raise TableError(f"{given}: holds {numbers[i]} in row {column.index[i]}; give a finite number, or drop the row")
    return numbers


def _sizes(column: pd.Series) -> np.ndarray:
    sizes = _numbers(column, "size", finite=True)
    for wrong in sizes[(sizes < 1) | (sizes > 2**53) | (sizes != np.round(sizes))]:
        raise TableError(f"size={column.name!r}: holds {wrong:g}; give whole numbers from 1 to 2^53, as 124000000 for 124 M")
    return sizes.astype(int)


def _values(column: pd.Series) -> np.ndarray:
    """Return the log2 values, with those that differ by rounding alone made one."""
    values = _numbers(column, "value", finite=True)
    lo, hi = values.min(), values.max()
    if lo > 0 and (hi <= 1 or lo < 0.01):
        what = f"values from {lo:g} to {hi:g} look like learning rates themselves"
        raise TableError(f"value={column.name!r}: {what}; take np.log2, as in df.assign(log2_lr=np.log2(df[{column.name!r}]))")
    ordered = np.unique(values)
    first = ordered[np.diff(ordered, prepend=-np.inf) > SAME]
    return first[np.searchsorted(first, values, side="right") - 1]


def _texts(column: pd.Series, argument: str) -> pd.Series:
    """Return a column of names as text."""
    for row in column.index[column.isna().to_numpy()]:
        raise TableError(f"{argument}={column.name!r}: is missing in row {row}; fill it in, or drop the row")
    return column.astype(str)


def _status(df: pd.DataFrame, losses: np.ndarray) -> np.ndarray:
    """Return how each run ended: by its loss, and by `status` where that column is one of curves.csv."""
    of_loss = np.where(np.isfinite(losses), "done", "diverged")
    given = df["status"].to_numpy() if list(df.columns).count("status") == 1 else of_loss
    return np.where(given == "done", of_loss, given) if set(map(str, given)) <= STATUS else of_loss


def _tuned(df: pd.DataFrame, value: str) -> str:
    """Name what the values are log2 of: as curves.csv says of its column `value`, else the name of the column."""
    named = set(df["tuned"]) if value == "value" and "tuned" in df else set()
    return str(named.pop()) if len(named) == 1 else str(value).removeprefix("log2_")
