"""Where the loss of each size is least, how that optimum moves with size, and how surely both are known.

x is log2 of the learning rate, or of whatever was tuned (octaves), y the final validation loss (nats/token), s a seed, j a
size.

Window   The connected lrs less than 5 % above the best and within two octaves of it, and its two neighbours.
Bowl     Per size, least squares over all seeds: y_s(x) = α_s + b_s·x + a·g_k(x), g_k(x) = 2/k²·(e^{kx} - kx - 1), x² at
         k = 0: convex, with one minimum, steeper to the right for skew k > 0 (linex: Varian 1975). The optimum of the mean
         over seeds is m = ln(1 - b̄k/2a)/k, its curvature there A = a·e^{km}, and each seed's own optimum
         μ_s = m - (b_s - b̄)/2A: one curvature a size, so that a flat bowl does not blow up single seeds.
Skew     One k for all sizes: the mean of -3 … 3, weighed by RSS^(-ν/2)·e^{-k²/2} with ν the residual degrees of freedom.
         Where an F test rejects one k for all (5 %), each size has its own, shrunk to the common one.
Slope    Least squares of all N optima μ_js on log2 size. Of any linear combination Σ l·μ, such as the slope,
         V = max(s²·Σl², σ²·Σ(l/A)²) + Σ_j l_j²·(∂m_j/∂ln a)²·var(ln a_j) + var_k(Σ_j l_j·m_j), l_j = Σ_s l_js,
         s² = Σr²/(N - 2) and σ² = Σ(A·r)²/(N - 2) of the residuals r of the line. So every noise counts once, bends
         included, and neither a flat size nor an asymmetric one is trusted too much. Half width: Student's t, its degrees
         of freedom Satterthwaite's (1946) over N - 2, ν, ∞. With one seed the first term alone, over N - 2.
         A size's own optimum takes residuals about the mean of its seeds in place of the line.
Regret   (L_W(m_base) - L_W(m_W)) / L_W(m_W) at the largest size W: the interval of m_base - m_W through W's bowl, the errors
         of curvature and skew in quadrature; if m_base is over half an octave off, corrected by what was measured there.

benchmarks/coverage.py simulates how often the intervals cover.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from spectral_mup.analysis.stats import NAN, satterthwaite, slope_weights, t_quantile

WALL = 0.05  # a point whose loss exceeds the best by more than this fraction is a wall: it would bend the bowl
REACH = 2.0  # octaves on each side of the best point that a bowl may span
NEAR = 0.5  # octaves from the optimum within which the bowl says what an lr costs; beyond, the points do
SIDES = "lower", "higher"
SKEWS = np.linspace(-3, 3, 25)  # per octave; a side is steeper than its opposite by e^{2k} an octave away
F_TEST = 0.05  # level at which sizes are taken to differ in skew
EXACT = 1e-9  # nats: smaller residuals are rounding


def bowl(x: Any, skew: Any) -> np.ndarray:
    """g_k(x) = 2/k²·(e^{kx} - kx - 1): 0 at x = 0 and second derivative 2 there."""
    kx = np.asarray(skew * x, float)
    small = np.abs(kx) < 1e-3
    kx_ = np.where(small, 1.0, kx)
    return np.square(x) * np.where(small, 1 + kx / 3 + kx**2 / 12, 2 * (np.expm1(kx_) - kx_) / kx_**2)


@dataclass(frozen=True, eq=False)
class LossCurve:
    """Losses of one size over lr and seed; NaN: not run, inf: diverged. lrs in log2, ascending; S: seeds, L: lrs.

    An lr is part of the curve if at least half of the seeds that ran it finished; else it is a wall: tested, and worse.
    """

    log2_lrs: np.ndarray
    losses_SL: np.ndarray

    @cached_property
    def finished_SL(self) -> np.ndarray:
        finished_SL, diverged_SL = np.isfinite(self.losses_SL), np.isposinf(self.losses_SL)
        return finished_SL & (finished_SL.sum(0) >= np.maximum(diverged_SL.sum(0), 1))

    @cached_property
    def mean_L(self) -> np.ndarray:
        """Mean loss over the seeds, the level of a seed that lacks some lrs allowed for; NaN where too few finished.

        Least squares of y_sl = level_s + mean_l over the finished runs, the levels summing to zero.
        """
        w_SL = self.finished_SL.astype(float)
        y_SL, n_L = np.where(self.finished_SL, self.losses_SL, 0.0), np.maximum(w_SL.sum(0), 1)
        mean_L = y_SL.sum(0) / n_L
        if w_SL.min(initial=1.0) < w_SL.max(initial=0.0):
            laplacian_SS = np.diag(w_SL.sum(1)) - w_SL / n_L @ w_SL.T
            level_S = np.linalg.pinv(laplacian_SS, rcond=1e-9) @ (w_SL * (y_SL - mean_L)).sum(1)
            mean_L = mean_L - level_S @ w_SL / n_L
        return np.where(self.finished_SL.any(0), mean_L, NAN)

    @cached_property
    def best(self) -> int | None:
        """Index of the best lr tested; None where none finished."""
        return int(np.nanargmin(self.mean_L)) if self.finished_SL.any() else None

    @property
    def n_seeds(self) -> int:
        return int(self.finished_SL.any(1).sum())

    @cached_property
    def neighbours(self) -> tuple[float, float]:
        """The tested lrs next to the best one, below and above; -inf and inf where there is none."""
        tested = self.log2_lrs[~np.isnan(self.losses_SL).all(0)]
        at = self.log2_lrs[self.best] if self.best is not None else NAN
        return float(tested[tested < at].max(initial=-np.inf)), float(tested[tested > at].min(initial=np.inf))

    @property
    def open_sides(self) -> tuple[str, ...]:
        """'lower', 'higher': where no lr was tested beyond the best one, so that the optimum may lie anywhere there."""
        return tuple(side for side, lr in zip(SIDES, self.neighbours, strict=True) if np.isinf(lr))

    @cached_property
    def window(self) -> np.ndarray:
        """Indices of the lrs under the bowl."""
        use = np.flatnonzero(self.finished_SL.any(0))
        x, y = self.log2_lrs[use], self.mean_L[use]
        j = int(y.argmin())
        inside = (y <= y[j] * (1 + WALL)) & (np.abs(x - x[j]) <= REACH)
        outside = np.flatnonzero(~inside)
        lo = int(outside[outside < j].max(initial=-1)) + 1
        hi = int(outside[outside > j].min(initial=len(x))) - 1
        return use[max(min(lo, j - 1), 0) : max(hi, j + 1) + 1]

    @cached_property
    def walled(self) -> tuple[float, ...]:
        """The neighbours of the best lr that diverged or lie over 5 % above it: they hide the bowl's side."""
        if self.best is None:
            return ()
        loss = dict(zip(self.log2_lrs, self.mean_L, strict=True))
        limit = loss[self.log2_lrs[self.best]] * (1 + WALL)
        return tuple(lr for lr in self.neighbours if np.isfinite(lr) and not loss[lr] <= limit)


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
        """Of an optimum open on one side, how far it may lie on the other: where the steepest bowl has two equal points."""
        lo, hi = self.curve.neighbours
        step = hi - self.log2_lr if self.open_sides == ("lower",) else self.log2_lr - lo
        k = SKEWS[-1]
        beyond = -float(np.log(k * step / np.expm1(k * step))) / k
        return self.log2_lr + (beyond if self.open_sides == ("lower",) else -beyond)

    def loss_at(self, log2_lr: Any) -> tuple[np.ndarray, np.ndarray]:
        """(loss, at_least) at any log2 lr: the bowl, and over half an octave from the optimum what the points add to it.

        Between points straight lines; beyond the lrs that finished the last loss stands, marked `at_least`.
        """
        x, more_L = self.beyond_bowl
        near = (self.log2_lr - NEAR, self.log2_lr + NEAR) if self.fitted else (x[0], x[-1])
        at = np.clip(log2_lr, min(x[0], near[0]), max(x[-1], near[1]))
        return self.bowl_at(at) + np.interp(at, x, more_L), at != log2_lr

    def bowl_at(self, log2_lr: Any) -> np.ndarray:
        """Loss of the bowl; 0 without one."""
        x = np.asarray(log2_lr, float)
        return self.loss + self.curvature * bowl(x - self.log2_lr, self.skew) if self.fitted else np.zeros_like(x)

    @cached_property
    def beyond_bowl(self) -> tuple[np.ndarray, np.ndarray]:
        """The lrs that finished, and what their mean loss adds to the bowl over half an octave from the optimum."""
        use = self.curve.finished_SL.any(0)
        x, more = self.curve.log2_lrs[use], self.curve.mean_L[use] - self.bowl_at(self.curve.log2_lrs[use])
        return x, np.where((np.abs(x - self.log2_lr) <= NEAR) & self.fitted, 0.0, more)

    def regret_at(self, log2_lr: Any) -> tuple[np.ndarray, np.ndarray]:
        """((loss_at - loss) / loss, at least 0, and the flag `at_least`)."""
        loss, at_least = self.loss_at(log2_lr)
        return np.maximum(0.0, (loss - self.loss) / self.loss), at_least


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
    """Fit y_s(x) = α_s + b_s·x + a·g_k(x) for every skew; None with an open side or fewer than three lrs in the window.

    Seeds' levels and slopes on x are projected out, which leaves one unknown, a; K: skews, S: seeds, L: lrs of the window.
    """
    if curve.best is None or curve.open_sides or len(curve.window) < 3:
        return None
    seen_SL = curve.finished_SL[:, curve.window]
    kept = seen_SL.sum(1) >= 2
    w_SL, y_SL = seen_SL[kept].astype(float), np.where(seen_SL, curve.losses_SL[:, curve.window], 0.0)[kept]
    centre = curve.log2_lrs[curve.window].mean()
    x_L, n_S = curve.log2_lrs[curve.window] - centre, w_SL.sum(1)
    x_S = w_SL @ x_L / n_S
    x_SL = w_SL * (x_L - x_S[:, None])
    xx_S, step = (x_SL**2).sum(1), (x_L[-1] - x_L[0]) / (len(x_L) - 1)

    def line(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, slope on x and residuals of each seed."""
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
        rss = np.where(usable, np.maximum(rss, EXACT**2), np.inf)
        dof = int(w_SL.sum()) - 2 * len(w_SL) - 1
        return Bowls(rss, centre + m, curvature, by_curvature, 1 / (gg * a**2), loss, seeds_KS, len(x_L), dof)


def weigh_skews(bowls: Sequence[Bowls]) -> tuple[np.ndarray, bool]:
    """(weights_JK of the skews of every size, whether the sizes differ in it)."""
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
    """The optimum of every curve with a finished lr, by whatever the curves are named, and the bowls behind them.

    Where there is no bowl (an open side, fewer than three lrs, no minimum), the optimum is the best lr tested.
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
        optima[size] = o
    sizes = [size for size in every if optima[size].fitted]
    kept, dof = [list(every).index(size) for size in sizes], sum(chosen[size].dof for size in sizes)
    dof -= sum(every[size].points > 3 for size in sizes) if differ else 1
    variance = sum(chosen[size].rss_K[0] for size in sizes) / max(dof, 1)
    shapes = Shapes(
        sizes, [every[s] for s in sizes], [chosen[s] for s in sizes], weights_JK[kept], differ, variance, max(dof, 0)
    )
    return optima, shapes


@dataclass(frozen=True, eq=False)
class Line:
    """Least squares of all seeds' optima on log2 size, and how surely any combination Σ l·μ of them is known.

    N: optima, J: sizes, K: skews.
    """

    x_N: np.ndarray  # log2 size
    optimum_N: np.ndarray
    curvature_N: np.ndarray
    of_JN: np.ndarray  # whether optimum n is of size j
    curvature_error_J: np.ndarray  # octaves that one standard error of ln a moves the optimum by
    optimum_JK: np.ndarray
    weights_JK: np.ndarray
    differ: bool
    dof_of_runs: int
    bends: bool = True  # whether a size's distance from the line counts as noise, as for a slope, or its own optimum is meant

    @cached_property
    def weights(self) -> np.ndarray:
        """l of the slope."""
        return slope_weights(self.x_N)

    def at(self, x: float) -> np.ndarray:
        """l of the line at log2 size x."""
        return 1 / len(self.x_N) + (x - self.x_N.mean()) * self.weights

    @property
    def dof(self) -> int:
        return len(self.x_N) - (min(len(self.of_JN), 2) if self.bends else len(self.of_JN))

    @cached_property
    def residual_N(self) -> np.ndarray:
        if not self.bends:
            return self.optimum_N - (self.of_JN @ self.optimum_N / self.of_JN.sum(1)) @ self.of_JN
        y = self.optimum_N - self.optimum_N.mean()
        return y - (self.weights @ y) * (self.x_N - self.x_N.mean())

    @property
    def variance(self) -> float:
        """s² of one seed's optimum (octaves²)."""
        return float(self.residual_N @ self.residual_N) / self.dof

    @property
    def variance_N(self) -> np.ndarray:
        """σ²/A² of each optimum: its variance where seeds tilt the losses of all sizes alike (octaves²)."""
        return np.sum((self.curvature_N * self.residual_N) ** 2) / self.dof / self.curvature_N**2

    def variances(self, l_N: np.ndarray) -> tuple[float, float, float]:
        """Variance of Σ l·μ by the scatter of the optima, by curvature and by skew."""
        l_J = self.of_JN @ l_N
        moved_JK, weights_JK = l_J[:, None] * self.optimum_JK, self.weights_JK
        if not self.differ:  # one skew, so its error moves all sizes at once
            moved_JK, weights_JK = moved_JK.sum(0, keepdims=True), weights_JK[:1]
        by_skew = weights_JK * (moved_JK - (weights_JK * moved_JK).sum(1, keepdims=True)) ** 2
        scatter = float(max(self.variance * (l_N @ l_N), l_N**2 @ self.variance_N))
        return scatter, float(np.sum((l_J * self.curvature_error_J) ** 2)), float(by_skew.sum())

    def half_width(self, l_N: np.ndarray, alpha: float, more: float = 0.0) -> tuple[float, float]:
        """(half width of the interval of Σ l·μ at level 1 - alpha, its degrees of freedom); `more`: further variance."""
        if self.dof < 1:
            return NAN, NAN
        scatter, *shape = self.variances(l_N)
        if len(self.x_N) == len(self.of_JN):  # one seed: t is so wide that the errors of the shape do not show
            return t_quantile(self.dof, alpha) * (scatter + more) ** 0.5, float(self.dof)
        runs = max(self.dof_of_runs, 1)
        dof = satterthwaite([scatter + more, *shape], [self.dof, runs, runs if self.differ else np.inf])
        return t_quantile(dof, alpha) * (scatter + more + sum(shape)) ** 0.5, dof


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the curves of all sizes say; `slope` is d log2 η* / d log2 size, `regret` a fraction of the loss."""

    optima: dict[Any, Optimum]  # of the sizes at which some lr finished
    base: int
    alpha: float  # intervals are at level 1 - alpha
    slope: float = NAN
    slope_lo: float = -np.inf
    slope_hi: float = np.inf
    dof: float = NAN
    regret: float = NAN  # of the base's optimum at the largest size, or at the smallest where the base is the largest
    regret_lo: float = -np.inf
    regret_hi: float = np.inf
    regret_at_least: bool = False  # the base's optimum lies beyond the lrs that finished there
    skews_differ: bool = False
    line: Line | None = field(default=None, repr=False)

    def predict(self, size: float) -> tuple[float, float, float]:
        """(log2_lr, lo, hi) of the optimum that one more seed would have at another size; NaN without a slope."""
        if self.line is None or self.line.dof < 1 or len(self.line.of_JN) < 2:
            return NAN, NAN, NAN
        at = self.line.at(float(np.log2(size)))
        best = float(at @ self.line.optimum_N)
        half, _ = self.line.half_width(at, self.alpha, more=self.line.variance)
        return best, best - half, best + half


def estimate(curves: Mapping[int, LossCurve], base: int, alpha: float = 0.05) -> Estimate:
    """Estimate every size's optimum, its slope over log2 size, and what the optimum of the base costs at the largest size.

    Where no worse lr was tested on one side, the optimum is bounded on the other: such a size bounds the slope on one side.
    """
    optima, shapes = find_optima(curves)
    if not shapes.sizes:
        return Estimate(optima, base, alpha)
    line = _line(optima, shapes)
    own = replace(line, bends=False) if len(line.x_N) > len(line.of_JN) else line  # with one seed, there is only the line
    for size, of_N in zip(shapes.sizes, line.of_JN, strict=True):
        half, _ = own.half_width(of_N / of_N.sum(), alpha)
        if np.isfinite(half):
            optima[size] = replace(optima[size], lo=optima[size].log2_lr - half, hi=optima[size].log2_lr + half)
    far = min(curves) if base == max(curves) else max(curves)
    found = Estimate(optima, base, alpha, skews_differ=shapes.differ, line=line)
    found = replace(found, **_regret(optima.get(base), optima.get(far), own, shapes, (base, far), alpha))
    bounds = {size: o.bound for size, o in optima.items() if len(o.open_sides) == 1}
    if len(shapes.sizes) + len(bounds) < 2:
        return found
    n, weight_N = len(line.x_N), slope_weights(np.append(line.x_N, np.log2(list(bounds))))
    slope = float(weight_N @ np.append(line.optimum_N, list(bounds.values())))
    half, dof = (line if len(shapes.sizes) > 1 else own).half_width(weight_N[:n], alpha)  # a bound has no error of its own
    if not np.isfinite(half):
        return replace(found, slope=slope)
    moves = [(optima[size].open_sides[0] == "lower") == (w > 0) for size, w in zip(bounds, weight_N[n:], strict=True) if w]
    falls, rises = any(moves), not all(moves)  # whether the slope may be lower, or higher, than with the bounds for optima
    lo, hi = -np.inf if falls else slope - half, np.inf if rises else slope + half
    return replace(found, slope=slope, slope_lo=lo, slope_hi=hi, dof=dof)


def _line(optima: Mapping[int, Optimum], shapes: Shapes) -> Line:
    """The line through the optima of the sizes that have a bowl."""
    of_size = [optima[size] for size in shapes.sizes]
    n = [len(o.seeds) for o in of_size]
    errors = [abs(b.by_curvature_K[0]) * (b.ln_a_K[0] * shapes.variance) ** 0.5 for b in shapes.chosen]
    return Line(
        np.repeat(np.log2(shapes.sizes), n), np.concatenate([o.seeds for o in of_size]),
        np.repeat([o.curvature for o in of_size], n), np.repeat(np.eye(len(n)), n, axis=1), np.array(errors),
        np.nan_to_num([b.optimum_K for b in shapes.every]), shapes.weights_JK, shapes.differ, shapes.dof,
    )  # fmt: skip


def _regret(
    base: Optimum | None, far: Optimum | None, line: Line, shapes: Shapes, sizes: tuple[int, int], alpha: float
) -> dict[str, Any]:
    """The fields of Estimate on regret; `sizes`: of base and far."""
    if base is None or far is None or len(base.open_sides) == 2 or len(far.open_sides) == 2:
        return {}
    (regret, at_least), distance = far.regret_at(base.log2_lr), base.log2_lr - far.log2_lr
    found = {"regret": float(regret), "regret_at_least": bool(at_least) or not far.bracketed}
    if not (base.fitted and far.fitted):
        return found
    i, j = map(shapes.sizes.index, sizes)
    l_N = line.of_JN[i] / line.of_JN[i].sum() - line.of_JN[j] / line.of_JN[j].sum()
    half, _ = line.half_width(l_N, alpha)
    if not np.isfinite(half):
        return found
    among = far.regret_at(base.log2_lr + np.linspace(-half, half, 41))[0]
    t = t_quantile(max(shapes.dof, 1), alpha)
    if abs(distance) > NEAR:  # measured: the noise of the points, and what may hide between two of them
        x, more = far.beyond_bowl
        between = np.interp(base.log2_lr, x, np.arange(len(x))) % 1
        jump = np.interp(base.log2_lr, x[1:], np.abs(np.diff(more)))
        error = np.hypot(t * (shapes.variance / len(far.seeds)) ** 0.5, 2 * between * (1 - between) * jump) / far.loss
    else:
        bowls, weights_K = shapes.every[j], shapes.weights_JK[j]
        cost_K = np.nan_to_num(bowls.curvature_K * bowl(distance, SKEWS)) / far.loss
        by_skew = weights_K @ (cost_K - weights_K @ cost_K) ** 2
        by_curvature = regret**2 * shapes.chosen[j].ln_a_K[0] * shapes.variance
        error = np.hypot(t_quantile(np.inf, alpha) * by_skew**0.5, t * by_curvature**0.5)
    lo = 0.0 if abs(distance) <= half else max(0.0, float(regret - np.hypot(regret - among.min(), error)))
    return found | {"regret_lo": lo, "regret_hi": float(regret + np.hypot(among.max() - regret, error))}
