"""Student's t, degrees of freedom of a sum, straight lines with intervals; and two helpers on tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

if TYPE_CHECKING:
    import pandas as pd

NAN = float("nan")


def t_quantile(dof: float, alpha: float = 0.05) -> float:
    """Return the 1 - alpha/2 quantile of Student's t, inf degrees of freedom included; NaN below one."""
    return float(special.stdtrit(dof, 1 - alpha / 2)) if dof >= 1 else NAN  # scipy.stats has it too, a second to import


def satterthwaite(variances: Sequence[float], dofs: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of variances: (Σ V)² / Σ (V²/ν) (Satterthwaite 1946)."""
    terms = [(v, d) for v, d in zip(variances, dofs, strict=True) if v > 0 and d > 0]
    below = sum(v * v / d for v, d in terms)
    return sum(v for v, _ in terms) ** 2 / below if below > 0 else float("inf")


def slope_weights(x: Any) -> np.ndarray:
    """Return weights w of the least-squares slope on x: slope = w · y, and its variance is σ² w · w."""
    x = np.asarray(x, float) - np.mean(x)
    return x / (x**2).sum()


def fit_line(x: Any, y: Any) -> tuple[float, float, int]:
    """Return the least-squares slope of y on x, its variance and the residual degrees of freedom, N - 2.

    Without any of these the variance is NaN.
    """
    x, y, weight = np.asarray(x, float), np.asarray(y, float), slope_weights(x)
    slope, dof = float(weight @ y), len(y) - 2
    residual = y - y.mean() - slope * (x - x.mean())
    return slope, float(residual @ residual / dof * (weight @ weight)) if dof > 0 else NAN, dof


def slope_interval(x: Any, y: Any) -> tuple[float, float, float]:
    """Return the slope of y on x and its 95 % interval, slope ± t(0.975, N-2)·se; NaN where it is undefined."""
    if len(np.unique(x)) < 2 or not np.isfinite(y).all():
        return NAN, NAN, NAN
    slope, variance, dof = fit_line(x, y)
    half = t_quantile(dof) * variance**0.5
    return slope, slope - half, slope + half


def log_slope(size: Any, value: Any) -> tuple[float, float, float]:
    """Return the slope of log2 value on log2 size and its 95 % interval; NaN where it is undefined, as with a value of 0."""
    value = np.asarray(value, float)
    return slope_interval(np.log2(size), np.log2(np.where(value > 0, value, np.nan)))


def fit_slopes(values: pd.DataFrame, keys: Sequence[str], log: bool = True) -> pd.DataFrame:
    """Fit log2 value (or value) on log2 size in every group, in order of first appearance: keys, slope, lo, hi, n_sizes."""
    import pandas as pd  # half a second, which a search that judges curves alone does not spend

    fitted = []
    for key, part in values.groupby(list(keys), sort=False):
        size, value = part["size"].to_numpy(float), part["value"].to_numpy(float)
        interval = log_slope(size, value) if log else slope_interval(np.log2(size), value)
        fitted.append((*key, *interval, len(set(size))))  # pyright: ignore[reportGeneralTypeIssues]
    return pd.DataFrame(fitted, columns=[*keys, "slope", "lo", "hi", "n_sizes"])


def rows(frame: pd.DataFrame, where) -> pd.DataFrame:
    """Return the rows for which `where` is true (what `frame[where]` is, with a type that says so)."""
    return frame.loc[np.asarray(where, dtype=bool)]  # pyright: ignore[reportReturnType]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table; the same numbers give the same bytes."""
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
