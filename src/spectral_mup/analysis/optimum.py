"""The best learning rate of one curve: where it lies between the tested points, and how precisely that is known.

A curve is the final validation loss (nats/token) of one model size under one rule, over log2 lr and seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from spectral_mup.analysis.stats import NAN, rows, satterthwaite, t975

WINDOW = 1.0  # octaves on each side of the grid argmin that the parabola sees
MAX_EXCESS_LOSS = 0.05  # points whose loss exceeds the best by more than 5 % are left out of the parabola


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """Mean loss over log2 lr, at the lrs that every seed finished, with the parabola through its minimum.

    A seed that leaves fewer than three such lrs is left out. lr in log2 (octaves); S: seeds, L: lrs, B: curves, K: window.
    """

    log2_lrs: np.ndarray
    losses_SL: np.ndarray
    table: pd.DataFrame = field(repr=False)  # losses by seed and lr of all seeds, NaN where one did not finish
    tested: np.ndarray = field(repr=False)  # lrs that finished or diverged

    @cached_property
    def mean_L(self) -> np.ndarray:
        return self.losses_SL.mean(0)

    @cached_property
    def best(self) -> int:
        """Index of the grid argmin."""
        return int(self.mean_L.argmin())

    @property
    def grid_log2_lr(self) -> float:
        return float(self.log2_lrs[self.best])

    @property
    def grid_loss(self) -> float:
        return float(self.mean_L[self.best])

    @property
    def loss_sd(self) -> float:
        """Standard deviation over the seeds at the grid argmin; NaN with one seed."""
        return float(self.losses_SL[:, self.best].std(ddof=1)) if self.n_seeds > 1 else NAN

    @property
    def n_seeds(self) -> int:
        return len(self.losses_SL)

    @property
    def n_points(self) -> int:
        """Number of points under the parabola; 0 if there are too few to draw one."""
        return len(self.window(self.best)) if len(self.log2_lrs) >= 3 else 0

    def window(self, j: int) -> np.ndarray:
        """Indices of the points under the parabola when log2_lrs[j] is the grid argmin."""
        distance = np.abs(self.log2_lrs - self.log2_lrs[j])
        inside = np.flatnonzero((distance <= WINDOW) & (self.mean_L <= self.mean_L[j] * (1 + MAX_EXCESS_LOSS)))
        return inside if len(inside) >= 3 else np.sort(np.argsort(distance, kind="stable")[:3])

    @cached_property
    def _fit(self) -> np.ndarray:
        window = self.window(self.best)
        return np.polyfit(self.log2_lrs[window] - self.log2_lrs[self.best], self.mean_L[window], 2)

    @property
    def parabola(self) -> np.ndarray | None:
        """Coefficients (a, b, c) in log2 lr minus the grid argmin; None without three points or a minimum."""
        return self._fit if self.n_points and self._fit[0] > 0 else None

    @cached_property
    def smooth_L(self) -> np.ndarray:
        """The mean curve with the parabola in place of the points under it."""
        smooth_L, window = self.mean_L.copy(), self.window(self.best)
        if self.n_points:
            smooth_L[window] = np.polyval(self._fit, self.log2_lrs[window] - self.log2_lrs[self.best])
        return smooth_L

    @property
    def residuals_K(self) -> np.ndarray:
        """Residuals of the parabola, inflated by sqrt(k/(k-3)); empty with three points or fewer."""
        k = self.n_points
        return (self.mean_L - self.smooth_L)[self.window(self.best)] * np.sqrt(k / (k - 3)) if k > 3 else np.empty(0)

    def neighbours(self, j: int) -> tuple[float | None, float | None]:
        """The tested lrs next to log2_lrs[j], below and above."""
        at = self.log2_lrs[j]
        below, above = self.tested[self.tested < at], self.tested[self.tested > at]
        return float(below[-1]) if len(below) else None, float(above[0]) if len(above) else None

    def is_worse(self, lr: float) -> bool:
        """Whether lr is no better than the grid argmin for the seeds that finished both; one that diverged is worse."""
        return lr not in self.table or bool((self.table[lr] - self.table[self.log2_lrs[self.best]]).mean() >= 0)

    def vertices(self, curves_BL: np.ndarray) -> np.ndarray:
        """The vertex of each curve, clamped to the tested neighbours of its argmin; all that share an argmin at once."""
        argmin_B = curves_BL.argmin(1)
        vertex_B = self.log2_lrs[argmin_B]
        if len(self.log2_lrs) < 3:
            return vertex_B
        for j in np.unique(argmin_B):
            window, here, at = self.window(j), argmin_B == j, self.log2_lrs[j]
            solve_3K = np.linalg.pinv(np.vander(self.log2_lrs[window] - at, 3))
            a, b, _ = solve_3K @ curves_BL[np.ix_(here, window)].T
            shift = np.where(a > 0, -b / (2 * np.where(a > 0, a, 1.0)), 0.0)
            lo, hi = (at if lr is None else lr for lr in self.neighbours(j))
            vertex_B[here] = np.clip(at + shift, lo, hi)
        return vertex_B


def tabulate(points: pd.DataFrame) -> MeanCurve | None:
    """The curve of one size (columns log2_lr, seed, loss, status; missing runs are ignored); None if no lr finished.

    An lr at which any seed diverged is tested, but not part of the curve. Raises ValueError on two runs in one cell.
    """
    started = rows(points, points["status"] != "missing")
    if started.duplicated(["log2_lr", "seed"]).any():
        raise ValueError("several runs with one (log2_lr, seed): give the runs of one size and one rule")
    diverged = (started["status"] == "diverged").to_numpy(bool)
    bad_lrs = np.unique(started["log2_lr"].to_numpy(float)[diverged])
    finished = rows(started, ~diverged & np.isfinite(started["loss"].to_numpy(float)))
    table = finished.pivot(index="seed", columns="log2_lr", values="loss").sort_index().sort_index(axis=1)
    table = table.loc[:, ~np.isin(table.columns.to_numpy(float), bad_lrs)].dropna(how="all")
    full = _complete(table)
    if full.empty:
        return None
    lrs = table.columns.to_numpy(float)
    return MeanCurve(full.columns.to_numpy(float), full.to_numpy(float), table, np.union1d(lrs, bad_lrs))


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """The lrs that every seed finished, of as many seeds as leave three lrs (else as leave one)."""
    order = table.notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    for least in (3, 1):
        for m in range(len(order), 0, -1):
            part = table.loc[sorted(order[:m])].dropna(axis=1)
            if part.shape[1] >= least:
                return part
    return table.iloc[:0, :0]


class Draws(NamedTuple):
    """Bootstrap draws of log2_lr, and the variance that seeds and fit give it (octaves²)."""

    samples: np.ndarray = np.empty(0)
    seed_variance: float = NAN
    fit_variance: float = NAN

    @property
    def variance(self) -> float:
        return self.seed_variance + self.fit_variance


@dataclass(frozen=True, eq=False)
class Optimum:
    """Best log2 lr of one curve; lr in log2 (octaves), losses in nats/token."""

    log2_lr: float
    lo: float  # 95 % interval of log2_lr
    hi: float
    loss: float  # predicted at log2_lr
    open_sides: tuple[str, ...]  # 'lower', 'higher': where nothing worse was tested
    basis: str  # what the interval rests on: 'seeds and fit', 'fit', 'seeds', 'bracket'
    dof: float
    curve: MeanCurve = field(repr=False)
    draws: Draws = field(default=Draws(), repr=False)  # empty in results that were read back

    @property
    def bracketed(self) -> bool:
        return not self.open_sides

    def loss_at(self, log2_lr):
        """(loss, at_least) at any log2 lr, scalar or array: parabola where it was fitted, else straight lines between means.

        Beyond the lrs that finished, the loss of the last one stands, marked `at_least`.
        """
        x, lrs, inside = np.asarray(log2_lr, dtype=float), self.curve.log2_lrs, False
        loss = np.interp(x, lrs, self.curve.mean_L)
        if self.curve.parabola is not None:
            window = lrs[self.curve.window(self.curve.best)]
            inside = (x >= min(window.min(), self.log2_lr)) & (x <= max(window.max(), self.log2_lr))
            loss = np.where(inside, np.polyval(self.curve.parabola, x - self.curve.grid_log2_lr), loss)
        return loss, ~np.asarray(inside) & ((x < lrs[0]) | (x > lrs[-1]))

    def regret_at(self, log2_lr):
        """((loss_at - loss) / loss, at least 0, and the flag `at_least`)."""
        loss, at_least = self.loss_at(log2_lr)
        return np.maximum(0.0, (loss - self.loss) / self.loss), at_least


def find_optimum(
    curve: MeanCurve, *, seed: int | Sequence[int] = 0, n_boot: int = 2000, pooled: tuple[np.ndarray, int] | None = None
) -> Optimum:
    """Estimate the optimum of one curve and its 95 % interval.

    Estimate: mean over seeds at each lr where every seed finished; grid argmin; least-squares parabola in log2 lr through the
    points within one octave of it and less than 5 % above it, or else the nearest three; its vertex, clamped to the tested
    neighbours of the argmin. A diverged neighbour is tested and worse, so it brackets. A neighbour that only some seeds
    finished brackets if those seeds are worse there. An argmin without a worse neighbour on both sides is 'not bracketed'.

    Interval: log2_lr ± t(0.975, ν)·sd, where sd is over bootstrap draws that repeat the whole estimate:

    * seeds: whole seed-curves drawn with replacement (seeds share their data order over lr), deviations from the mean inflated
      by sqrt(n/(n-1)), ν_s = n-1;
    * fit: residuals of the parabola drawn with replacement, inflated by sqrt(k/(k-3)), ν_f = k-3; or those in `pooled`
      (residuals, dof), of the curves of all sizes, as the noise of a run is similar at every size. With k = 3 and nothing
      pooled there are none.

    Percentiles of such draws would understate: two seeds give a bootstrap of three atoms that ends at 1.41 standard errors,
    where Student's t with one degree of freedom needs 12.7. So the draws give only the variance and
    ν = (V_s + V_f)² / (V_s²/ν_s + V_f²/ν_f). Noise that is independent over lr enters both V_s and V_f, so the interval errs on
    the wide side (on synthetic sweeps it covers in 92-100 %). A parabola through an asymmetric curve is biased by a shift that
    is the same at every size: it matters to log2_lr, hardly to a slope. With one seed the basis is 'fit' alone: a
    seed-dependent shift of the whole curve cannot be detected. With one seed and three points, or fewer points, only the
    bracket is known: interval = bracket, draws uniform on it.
    """
    vertex = float(curve.vertices(curve.mean_L[None])[0])
    sides = dict(zip(("lower", "higher"), curve.neighbours(curve.best), strict=True))
    open_sides = tuple(side for side, lr in sides.items() if lr is None or not curve.is_worse(lr))
    residuals, fit_dof = pooled if pooled and curve.n_points else (curve.residuals_K, curve.n_points - 3)
    basis, rng = " and ".join(["seeds"] * (curve.n_seeds > 1) + ["fit"] * (len(residuals) > 0)), np.random.default_rng(seed)
    if curve.n_points and basis:
        draws = _bootstrap(curve, residuals, n_boot, rng)
        dof = satterthwaite([draws.seed_variance, draws.fit_variance], [curve.n_seeds - 1, fit_dof])
        half = t975(dof) * float(draws.samples.std())
        lo, hi = vertex - half, vertex + half
    else:
        basis, dof = "bracket", float("inf")
        lo, hi = (curve.grid_log2_lr if lr is None else lr for lr in sides.values())
        draws = Draws(rng.uniform(lo, hi, n_boot), 0.0, (hi - lo) ** 2 / 12)
    parabola = curve.parabola
    loss = curve.grid_loss if parabola is None else float(np.polyval(parabola, vertex - curve.grid_log2_lr))
    return Optimum(vertex, lo, hi, loss, open_sides, basis, dof, curve, draws)


def _bootstrap(curve: MeanCurve, residuals: np.ndarray, n_boot: int, rng: np.random.Generator) -> Draws:
    """Repeat the estimate on curves with the noise of resampled seeds, of resampled residuals, and with both."""
    n, k = curve.n_seeds, curve.n_points
    seed_noise_BL, fit_noise_BL = np.zeros((2, n_boot, len(curve.log2_lrs)))
    if n > 1:
        deviation_SL = (curve.losses_SL - curve.mean_L) * np.sqrt(n / (n - 1))
        seed_noise_BL = deviation_SL[rng.integers(n, size=(n_boot, n))].mean(1)
    if len(residuals):
        fit_noise_BL[:, curve.window(curve.best)] = residuals[rng.integers(len(residuals), size=(n_boot, k))]
    by_seed_BL, by_fit_BL = curve.smooth_L + seed_noise_BL, curve.smooth_L + fit_noise_BL
    both, by_seed, by_fit = map(curve.vertices, (by_seed_BL + fit_noise_BL, by_seed_BL, by_fit_BL))
    return Draws(both, float(by_seed.var()), float(by_fit.var()))
