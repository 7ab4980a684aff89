"""A bowl through the losses of each size: where its minimum lies, for the mean and for every seed.

x is log2 of the learning rate, or of whatever was tuned (octaves), y the final validation loss (nats/token), s a seed.

Window:
    The connected lrs less than 5 % above the best and within two octaves of it, and its two neighbours.
Bowl:
    Per size, least squares over all seeds: y_s(x) = α_s + b_s·x + a·g_k(x), g_k(x) = 2/k²·(e^{kx} - kx - 1), x² at
    k = 0: convex, with one minimum, steeper to the right for skew k > 0 (linex: Varian 1975). The optimum of the mean
    over seeds is m = ln(1 - b̄k/2a)/k, its curvature there A = a·e^{km}, and each seed's own optimum
    μ_s = m - (b_s - b̄)/2A: one curvature a size, so that a flat bowl does not blow up single seeds.
Skew:
    One k for all sizes: the mean of -3 … 3, weighed by RSS^(-ν/2)·e^{-k²/2} with ν the residual degrees of freedom.
    Where an F test rejects one k for all (5 %), each size has its own, shrunk to the common one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.stats import NAN

NEAR = 0.5  # octaves from the optimum within which the bowl says what an lr costs; beyond, the points do
SKEWS = np.linspace(-3, 3, 25)  # per octave: curvature an octave above the minimum over that an octave below is e^{2k}
IN_VIEW = 1.5  # octaves around an optimum whose losses a figure shows
F_TEST = 0.05  # level at which sizes are taken to differ in skew
EXACT = 1e-9  # of the loss: smaller residuals are rounding


def bowl(x: Any, skew: Any) -> np.ndarray:
    """Return g_k(x) = 2/k²·(e^{kx} - kx - 1): 0 at x = 0 and second derivative 2 there."""
    kx = np.asarray(skew * x, float)
    small = np.abs(kx) < 1e-3
    kx_ = np.where(small, 1.0, kx)
    return np.square(x) * np.where(small, 1 + kx / 3 + kx**2 / 12, 2 * (np.expm1(kx_) - kx_) / kx_**2)


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best log2 lr of one size; losses in nats/token. Without a bowl, it is the best lr tested, between its neighbours."""

    log2_lr: float
    lo: float  # interval of log2_lr; -inf, inf on an open side
    hi: float
    loss: float  # at log2_lr, mean over seeds
    curvature: float  # nats/octave²: loss ≈ loss + curvature·(x - log2_lr)² nearby; NaN without a bowl
    skew: float
    seeds: tuple[float, ...]  # each seed's own optimum
    open_sides: tuple[str, ...]
    curve: LossCurve = field(repr=False)

    @property
    def bracketed(self) -> bool:
        return not self.open_sides

    @property
    def fitted(self) -> bool:
        return bool(np.isfinite(self.curvature))

    @property
    def bound(self) -> float:
        """Of an optimum open on one side, how far it may lie on the other: as in the steepest bowl equal at both lrs there.

        They are an octave apart at least: noise may choose between closer ones.
        """
        inside, sign = (self.curve.neighbours[1], 1) if self.open_sides == ("lower",) else (self.curve.neighbours[0], -1)
        kx = SKEWS[-1] * max(abs(inside - self.log2_lr), 1.0)
        return self.log2_lr + sign * float(np.log(np.expm1(kx) / kx) / SKEWS[-1])

    def loss_at(self, log2_lr: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (loss, at_least) at any log2 lr: the bowl, and over half an octave from the optimum what the points add to it.

        Between points straight lines; beyond the lrs that finished the last loss stands, marked `at_least`.
        """
        x, more_L = self.beyond_bowl
        near = (self.log2_lr - NEAR, self.log2_lr + NEAR) if self.fitted else (x[0], x[-1])
        at = np.clip(log2_lr, min(x[0], near[0]), max(x[-1], near[1]))
        return self.bowl_at(at) + np.interp(at, x, more_L), at != log2_lr

    def bowl_at(self, log2_lr: Any) -> np.ndarray:
        """Return the loss of the bowl; 0 without one."""
        x = np.asarray(log2_lr, float)
        return self.loss + self.curvature * bowl(x - self.log2_lr, self.skew) if self.fitted else np.zeros_like(x)

    @cached_property
    def beyond_bowl(self) -> tuple[np.ndarray, np.ndarray]:
        """The lrs that finished, and what their mean loss adds to the bowl over half an octave from the optimum."""
        use = self.curve.finished_SL.any(0)
        x, more = self.curve.log2_lrs[use], self.curve.mean_L[use] - self.bowl_at(self.curve.log2_lrs[use])
        return x, np.where((np.abs(x - self.log2_lr) <= NEAR) & self.fitted, 0.0, more)

    def regret_at(self, log2_lr: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (loss_at - loss) / |loss|, at least 0, and the flag `at_least`."""
        loss, at_least = self.loss_at(log2_lr)
        return np.maximum(0.0, (loss - self.loss) / abs(self.loss)), at_least


class Bowls(NamedTuple):
    """Bowls of one size, one for each skew k in K; what is unusable is NaN."""

    rss_K: np.ndarray  # inf where the bowl has no minimum, or one over half a step beyond the window
    optimum_K: np.ndarray
    curvature_K: np.ndarray
    by_curvature_K: np.ndarray  # ∂m/∂ln a
    ln_a_K: np.ndarray  # var(ln a), in units of the variance of a run
    loss_K: np.ndarray
    seeds_KS: np.ndarray
    points: int
    dof: int


def fit_bowls(curve: LossCurve, skew_K: np.ndarray) -> Bowls | None:
    """Fit y_s(x) = α_s + b_s·x + a·g_k(x) for every skew; None with an open side, or without a seed of three lrs in the window.

    Seeds' levels and slopes on x are projected out, which leaves one unknown, a; K: skews, S: seeds, L: lrs of the window.
    """
    if curve.best is None or curve.open_sides or len(curve.window) < 3:
        return None
    seen_SL = curve.finished_SL[:, curve.window]
    if seen_SL.sum(1).max() < 3:  # each seed's own line meets its points, so that nothing shows the curvature
        return None
    kept = seen_SL.sum(1) >= 2
    w_SL, y_SL = seen_SL[kept].astype(float), np.where(seen_SL, curve.losses_SL[:, curve.window], 0.0)[kept]
    centre = curve.log2_lrs[curve.window].mean()
    x_L, n_S = curve.log2_lrs[curve.window] - centre, w_SL.sum(1)
    x_S = w_SL @ x_L / n_S
    x_SL = w_SL * (x_L - x_S[:, None])
    xx_S, step = (x_SL**2).sum(1), (x_L[-1] - x_L[0]) / (len(x_L) - 1)

    def line(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fit mean, slope on x and residuals of each seed."""
        mean, slope = (w_SL * v).sum(-1) / n_S, (x_SL * v).sum(-1) / xx_S
        return mean, slope, w_SL * (v - mean[..., None]) - slope[..., None] * x_SL

    k = np.where(skew_K == 0, 1e-9, skew_K)
    g_KS, g_slope_KS, g_KSL = line(bowl(x_L, k[:, None, None]))
    y_S, y_slope_S, y_SL = line(y_SL)
    gg = (g_KSL**2).sum((1, 2))
    with np.errstate(all="ignore"):
        a = (g_KSL * y_SL).sum((1, 2)) / gg
        rss = ((y_SL - a[:, None, None] * g_KSL) ** 2).sum((1, 2))
        b_KS = y_slope_S - a[:, None] * g_slope_KS
        b = b_KS.mean(1)
        m = np.log1p(-b * k / (2 * a)) / k
        curvature = a * np.exp(k * m)
        by_curvature = -(2 * np.expm1(k * m) / k - g_slope_KS.mean(1)) * a / (2 * curvature)
        loss = (y_S - a[:, None] * g_KS + b_KS * (m[:, None] - x_S)).mean(1) + a * bowl(m, k)
        seeds_KS = centre + m[:, None] - (b_KS - b[:, None]) / (2 * curvature)[:, None]
        usable = (a > 0) & (curvature > a / 50) & (m >= x_L[0] - step / 2) & (m <= x_L[-1] + step / 2)
        rss = np.where(usable, np.maximum(rss, (EXACT * np.abs(curve.losses_SL[curve.finished_SL]).min()) ** 2), np.inf)
        dof = int(w_SL.sum()) - 2 * len(w_SL) - 1
        return Bowls(rss, centre + m, curvature, by_curvature, 1 / (gg * a**2), loss, seeds_KS, len(x_L), dof)


def weigh_skews(bowls: Sequence[Bowls]) -> tuple[np.ndarray, bool]:
    """Return (weights_JK of the skews of every size, whether the sizes differ in it)."""
    rss_JK, dof = np.array([b.rss_K for b in bowls]), sum(b.dof for b in bowls)
    able = [b.points > 3 for b in bowls]  # three points are met by a bowl of any skew
    common_K, own, within = rss_JK.sum(0), rss_JK.min(1).sum(), dof - max(sum(able), 1)
    differ = not np.isfinite(common_K).any()
    if sum(able) > 1 and within > 0 and not differ:
        f = (common_K.min() - own) / (sum(able) - 1) / (own / within)
        differ = bool(special.fdtrc(sum(able) - 1, within, f) < F_TEST)
    with np.errstate(all="ignore"):
        log_K = -dof / 2 * np.log(common_K) - SKEWS**2 / 2
        weights_K = _normalize(np.where(np.isfinite(common_K), log_K, -np.inf))
    if not differ:
        return np.tile(weights_K, (len(bowls), 1)), False
    centre, rest_J = weights_K @ SKEWS, own - rss_JK.min(1)
    with np.errstate(all="ignore"):
        log_JK = -within / 2 * np.log(rest_J[:, None] + rss_JK) - (SKEWS - centre) ** 2 / 2
    return np.array([_normalize(log_K) for log_K in log_JK]), True


def _normalize(log_K: np.ndarray) -> np.ndarray:
    weights_K = np.exp(log_K - log_K.max()) if np.isfinite(log_K).any() else np.ones(len(log_K))
    return weights_K / weights_K.sum()


class Shapes(NamedTuple):
    """The bowls of the sizes that have one, at every skew and at the chosen one, with the variance of a run (nats²)."""

    sizes: list[Any]
    every: list[Bowls]
    chosen: list[Bowls]
    weights_JK: np.ndarray
    differ: bool
    variance: float
    dof: int


def find_optima(curves: Mapping[Any, LossCurve]) -> tuple[dict[Any, Optimum], Shapes]:
    """Find the optimum of every curve with a finished lr, by whatever the curves are named, and the bowls behind them.

    Where no bowl can be fitted (an open side, fewer than three lrs, no minimum), the optimum is the best lr tested.
    """
    every = {size: bowls for size, curve in curves.items() if (bowls := fit_bowls(curve, SKEWS))}
    every = {size: bowls for size, bowls in every.items() if np.isfinite(bowls.rss_K).any()}
    weights_JK, differ = weigh_skews(list(every.values())) if every else (np.empty((0, len(SKEWS))), False)
    skew = dict(zip(every, weights_JK @ SKEWS, strict=True))
    chosen = {size: b for size, k in skew.items() if (b := fit_bowls(curves[size], np.array([k])))}
    optima = {}
    for size, curve in curves.items():
        if curve.best is None:
            continue
        best, (lo, hi) = curve.best, curve.neighbours
        o = Optimum(curve.log2_lrs[best], lo, hi, curve.mean_L[best], NAN, NAN, (), curve.open_sides, curve)
        if (b := chosen.get(size)) and np.isfinite(b.rss_K[0]):
            own = {"log2_lr": float(b.optimum_K[0]), "loss": float(b.loss_K[0]), "curvature": float(b.curvature_K[0])}
            o = replace(o, **own, skew=float(skew[size]), seeds=tuple(b.seeds_KS[0].tolist()))
            o = replace(o, lo=min(lo, o.log2_lr), hi=max(hi, o.log2_lr))  # it may lie half a step beyond its neighbours
        optima[size] = o
    sizes = [size for size in every if optima[size].fitted]
    kept, dof = [list(every).index(size) for size in sizes], sum(chosen[size].dof for size in sizes)
    dof -= sum(every[size].points > 3 for size in sizes) if differ else 1
    variance = sum(chosen[size].rss_K[0] for size in sizes) / max(dof, 1)
    shapes = Shapes(
        sizes, [every[s] for s in sizes], [chosen[s] for s in sizes], weights_JK[kept], differ, variance, max(dof, 0)
    )
    return optima, shapes


def losses_in_view(optima: Sequence[Optimum]) -> tuple[float, float]:
    """Return the best loss, and the highest that a figure of them shows: all optima, and the typical rise around one."""
    near = [o.curve.mean_L[np.abs(o.curve.log2_lrs - o.log2_lr) <= IN_VIEW] for o in optima]
    rises = [np.nanmax(around, initial=o.loss) - o.loss for o, around in zip(optima, near, strict=True)]
    losses = [o.loss for o in optima] or [1.0]
    best, worst = min(losses), max(losses)
    return best, worst + max(1.25 * float(np.median(rises or [1.0])), 0.25 * (worst - best), 0.002 * worst)
