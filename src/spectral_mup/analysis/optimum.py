"""The best learning rate of one curve: where it lies between the tested points, and how surely.

A curve is the final validation loss (nats/token) of one model size under one rule, over log2 lr and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

WINDOW = 1.0  # octaves on each side of the grid argmin that the parabola sees
MAX_EXCESS_LOSS = 0.05  # a point this fraction above the best is the wall, not the bowl: no parabola runs through both

# 97.5 % quantile of Student's t by degrees of freedom (Abramowitz & Stegun, table 26.10).
T975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    7: 2.365,
    10: 2.228,
    20: 2.086,
    60: 2.000,
    np.inf: 1.960,
}


def rows(frame: pd.DataFrame, where) -> pd.DataFrame:
    """Return the rows for which `where` is true (what `frame[where]` is, with a type that says so)."""
    return pd.DataFrame(frame.loc[np.asarray(where, dtype=bool)])


def t975(dof: float) -> float:
    """Return Student's 97.5 % quantile, log t interpolated in 1/dof (error below 3 %); NaN below one."""
    if not dof >= 1:
        return float("nan")
    inverse = [1 / d for d in reversed(T975)]
    return float(np.exp(np.interp(1 / dof, inverse, np.log(list(reversed(T975.values()))))))


def satterthwaite(variances: Sequence[float], dofs: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of variances: (Σ V)² / Σ (V²/ν) (Satterthwaite 1946)."""
    terms = [(v, d) for v, d in zip(variances, dofs, strict=True) if v > 0 and d > 0]
    below = sum(v * v / d for v, d in terms)
    return sum(v for v, _ in terms) ** 2 / below if below > 0 else float("inf")


@dataclass(frozen=True, eq=False)
class Optimum:
    """Best log2 lr of one curve; lr in log2 (octaves), losses in nats/token, variances in octaves²."""

    log2_lr: float
    lo: float  # 95 % interval of log2_lr
    hi: float
    loss: float  # predicted at log2_lr
    loss_sd: float  # over the seeds at the grid argmin; NaN with one seed
    grid_log2_lr: float
    grid_loss: float
    bracketed: bool
    open_sides: tuple[str, ...]  # 'lower', 'higher': where nothing worse was tested
    basis: str  # what the interval rests on: 'seeds and fit', 'fit', 'seeds', 'bracket'
    n_seeds: int
    n_points: int  # points under the parabola; 0 if none could be drawn
    seed_variance: float
    fit_variance: float
    dof: float
    residuals: np.ndarray = field(repr=False)  # of the parabola, inflated by sqrt(k/(k-3)); empty if k = 3
    samples: np.ndarray = field(repr=False)  # bootstrap draws of log2_lr
    log2_lrs: np.ndarray = field(repr=False)  # the mean curve: lrs at which every seed finished
    mean_losses: np.ndarray = field(repr=False)
    parabola: tuple[float, ...] | None = field(repr=False)  # (a, b, c) in x = log2_lr - grid_log2_lr
    span: tuple[float, float] = field(repr=False)  # log2 lr over which the parabola is trusted

    @property
    def variance(self) -> float:
        """Variance of log2_lr, seeds and fit together."""
        return self.seed_variance + self.fit_variance

    def loss_at(self, log2_lr):
        """Return (loss, at_least) at any log2 lr, scalar or array.

        Parabola where it was fitted, straight lines between the mean losses outside it. Beyond the lrs that
        finished, the loss of the last one stands, marked `at_least`.
        """
        x = np.asarray(log2_lr, dtype=float)
        loss = np.interp(x, self.log2_lrs, self.mean_losses)
        inside = (x >= self.span[0]) & (x <= self.span[1])
        if self.parabola is not None:
            loss = np.where(inside, np.polyval(self.parabola, x - self.grid_log2_lr), loss)
        return loss, ~inside & ((x < self.log2_lrs[0]) | (x > self.log2_lrs[-1]))

    def regret_at(self, log2_lr):
        """Return ((loss_at - loss) / loss, at least 0, and the flag `at_least`)."""
        loss, at_least = self.loss_at(log2_lr)
        return np.maximum(0.0, (loss - self.loss) / self.loss), at_least


def find_optimum(
    curve: pd.DataFrame,
    *,
    seed: int | Sequence[int] = 0,
    n_boot: int = 2000,
    pooled: tuple[np.ndarray, int] | None = None,
) -> Optimum | None:
    """Fit the optimum of one curve (columns log2_lr, seed, loss, diverged); None if no lr finished.

    Estimate: mean over seeds at each lr where every seed finished (a seed that leaves fewer than three such
    lrs is left out, see `n_seeds`); grid argmin; least-squares parabola in log2 lr through the points within
    one octave of it and less than 5 % above it, or else the nearest three; its vertex, clamped to the tested
    neighbours of the argmin. A diverged neighbour is tested and worse, so it brackets. A neighbour that only
    some seeds finished brackets if those seeds are worse there. An argmin without a worse neighbour on both
    sides is 'not bracketed'.

    Interval: log2_lr ± t(0.975, ν)·sd, where sd is over bootstrap draws that repeat the whole estimate:

    * seeds: whole seed-curves drawn with replacement (seeds share their data order over lr), deviations from
      the mean inflated by sqrt(n/(n-1)), ν_s = n-1;
    * fit: residuals of the parabola drawn with replacement, inflated by sqrt(k/(k-3)), ν_f = k-3; or those in
      `pooled` (residuals, dof), of the curves of all sizes, as the noise of a run is much alike at every size.
      With k = 3 and nothing pooled there are none.

    Percentiles of such draws would understate: two seeds give a bootstrap of three atoms that ends at
    1.41 standard errors, where Student's t with one degree asks 12.7. So the draws give only the variance and
    ν = (V_s + V_f)² / (V_s²/ν_s + V_f²/ν_f). Noise that is independent over lr enters both V_s and V_f, so
    the interval errs on the wide side (on synthetic sweeps it covers in 92-100 %). A parabola through an
    asymmetric curve is biased by a shift that is alike at every size: it matters to log2_lr, hardly to a
    slope. With one seed the basis is 'fit' alone: a shift that a seed gives to its whole curve goes unseen.
    With one seed and three points, or fewer points, only the bracket is known: interval = bracket, draws
    uniform on it.
    """
    if curve.duplicated(["log2_lr", "seed"]).any():
        raise ValueError("several runs with one (log2_lr, seed): give the runs of one size and one rule")
    table, full, bad_lrs = tabulate(curve)
    if full.empty:
        return None

    lrs, losses_SL = full.columns.to_numpy(float), full.to_numpy(float)
    n, mean_L = len(losses_SL), losses_SL.mean(0)
    tested = np.union1d(table.columns.to_numpy(float), bad_lrs)
    best = int(mean_L.argmin())
    at = lrs[best]
    window = _window(lrs, mean_L, best)
    k = len(window) if len(lrs) >= 3 else 0
    vertex = float(_vertices(lrs, mean_L[None], mean_L, tested)[0])

    # the drawn curves: fitted bowl, seed-curves and residuals resampled
    parabola, smooth_L, residuals = None, mean_L.copy(), np.empty(0)
    if k:
        fit = np.polyfit(lrs[window] - at, mean_L[window], 2)
        parabola = tuple(float(c) for c in fit) if fit[0] > 0 else None
        smooth_L[window] = np.polyval(fit, lrs[window] - at)
        if k > 3:
            residuals = (mean_L - smooth_L)[window] * np.sqrt(k / (k - 3))
    noise, fit_dof = pooled if pooled and k else (residuals, k - 3) if k > 3 else (np.empty(0), 0)
    rng = np.random.default_rng(seed)
    seed_noise_BL, fit_noise_BL = np.zeros((2, n_boot, len(lrs)))
    if n > 1:
        deviation_SL = (losses_SL - mean_L) * np.sqrt(n / (n - 1))
        seed_noise_BL = deviation_SL[rng.integers(n, size=(n_boot, n))].mean(1)
    if len(noise):
        fit_noise_BL[:, window] = noise[rng.integers(len(noise), size=(n_boot, k))]

    sides = {"lower": tested[tested < at][-1:], "higher": tested[tested > at][:1]}
    open_sides = tuple(s for s, lr in sides.items() if not len(lr) or not _worse(table, lr[0], at))
    if k and (n > 1 or len(noise)):
        basis = "seeds and fit" if n > 1 and len(noise) else "seeds" if n > 1 else "fit"
        samples = _vertices(lrs, smooth_L + seed_noise_BL + fit_noise_BL, mean_L, tested)
        seed_variance = float(_vertices(lrs, smooth_L + seed_noise_BL, mean_L, tested).var())
        fit_variance = float(_vertices(lrs, smooth_L + fit_noise_BL, mean_L, tested).var())
        dof = satterthwaite([seed_variance, fit_variance], [n - 1, fit_dof])
        half = t975(dof) * float(samples.std())
        lo, hi = vertex - half, vertex + half
    else:
        basis, seed_variance, dof = "bracket", 0.0, float("inf")
        lo, hi = (float(lr[0]) if len(lr) else float(at) for lr in sides.values())
        samples = rng.uniform(lo, hi, n_boot)
        fit_variance = (hi - lo) ** 2 / 12

    return Optimum(
        log2_lr=vertex,
        lo=lo,
        hi=hi,
        loss=float(np.polyval(parabola, vertex - at)) if parabola else float(mean_L[best]),
        loss_sd=float(losses_SL[:, best].std(ddof=1)) if n > 1 else float("nan"),
        grid_log2_lr=float(at),
        grid_loss=float(mean_L[best]),
        bracketed=not open_sides,
        open_sides=open_sides,
        basis=basis,
        n_seeds=n,
        n_points=k,
        seed_variance=seed_variance,
        fit_variance=fit_variance,
        dof=dof,
        residuals=residuals,
        samples=samples,
        log2_lrs=lrs,
        mean_losses=mean_L,
        parabola=parabola,
        span=(min(lrs[window].min(), vertex), max(lrs[window].max(), vertex)),
    )


def tabulate(curve: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Return losses by seed and lr, the part of them in which every seed finished every lr, and the lrs that diverged."""
    diverged = curve["diverged"].to_numpy(bool)
    finished = rows(curve, ~diverged & np.isfinite(curve["loss"].to_numpy(float)))
    bad_lrs = np.unique(curve["log2_lr"].to_numpy(float)[diverged])
    table = finished.pivot(index="seed", columns="log2_lr", values="loss").sort_index().sort_index(axis=1)
    table = table.loc[:, ~np.isin(table.columns.to_numpy(float), bad_lrs)].dropna(how="all")
    return table, _complete(table), bad_lrs


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lrs that every seed finished, of as many seeds as leave three lrs (else as leave one)."""
    order = table.notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    for least in (3, 1):
        for m in range(len(order), 0, -1):
            part = table.loc[sorted(order[:m])].dropna(axis=1)
            if part.shape[1] >= least:
                return part
    return table.iloc[:0, :0]


def _worse(table: pd.DataFrame, lr: float, at: float) -> bool:
    """Is lr no better than `at` for the seeds that finished both? A diverged lr (not in the table) is."""
    if lr not in table.columns:
        return True
    return bool((table[lr] - table[at]).mean() >= 0)


def _window(lrs: np.ndarray, mean_L: np.ndarray, j: int) -> np.ndarray:
    """Return the indices of the points under the parabola when lrs[j] is the grid argmin."""
    distance = np.abs(lrs - lrs[j])
    inside = np.flatnonzero((distance <= WINDOW) & (mean_L <= mean_L[j] * (1 + MAX_EXCESS_LOSS)))
    return inside if len(inside) >= 3 else np.sort(np.argsort(distance, kind="stable")[:3])


def _vertices(lrs: np.ndarray, curves_BL: np.ndarray, mean_L: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return the clamped vertex of each curve; all curves that share a grid argmin are solved at once."""
    argmin_B = curves_BL.argmin(1)
    vertex_B = lrs[argmin_B]
    if len(lrs) < 3:
        return vertex_B
    for j in np.unique(argmin_B):
        window, here = _window(lrs, mean_L, j), argmin_B == j
        solve_3K = np.linalg.pinv(np.vander(lrs[window] - lrs[j], 3))
        a, b, _ = solve_3K @ curves_BL[np.ix_(here, window)].T
        shift = np.where(a > 0, -b / (2 * np.where(a > 0, a, 1.0)), 0.0)
        lo = tested[tested < lrs[j]][-1:].sum() if (tested < lrs[j]).any() else lrs[j]
        hi = tested[tested > lrs[j]][:1].sum() if (tested > lrs[j]).any() else lrs[j]
        vertex_B[here] = np.clip(lrs[j] + shift, lo, hi)
    return vertex_B
