"""How the optimum moves with size, what that costs, and how surely both are known.

m_j is the optimum of size j (log2: octaves) and A_j the curvature of its bowl (nats/octave²), μ_js that of its seed s: bowl.py.

Slope:
    Least squares of all N optima μ_js on log2 size. Of any linear combination Σ l·μ, such as the slope,
    V = max(s²·Σl², σ²·Σ(l/A)²) + Σ_j l_j²·(∂m_j/∂ln a)²·var(ln a_j) + var_k(Σ_j l_j·m_j), l_j = Σ_s l_js,
    s² = Σr²/(N - 2) and σ² = Σ(A·r)²/(N - 2) of the residuals r of the line. So every noise counts once, bends
    included, and neither a flat size nor an asymmetric one is trusted too much. Half width: Student's t, its degrees
    of freedom Satterthwaite's (1946) over N - 2, ν, ∞ (ν where skews differ). With one seed the first term alone.
    A size's own optimum takes residuals about the mean of its seeds in place of the line.
Regret:
    (L_W(m_base) - L_W(m_W)) / L_W(m_W) at the largest size W: the interval of m_base - m_W through W's bowl, the errors
    of curvature and skew in quadrature; if m_base is over half an octave off, corrected by what was measured there.

benchmarks/coverage.py simulates how often the intervals cover.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from spectral_mup.analysis.bowl import NEAR, SKEWS, Optimum, Shapes, bowl, find_optima
from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.stats import NAN, satterthwaite, slope_weights, t_quantile


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
        """Weights l of the slope."""
        return slope_weights(self.x_N)

    def at(self, x: float) -> np.ndarray:
        """Return l of the line at log2 size x."""
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
        return float(self.residual_N @ self.residual_N) / self.dof if self.dof > 0 else NAN

    @property
    def variance_N(self) -> np.ndarray:
        """σ²/A² of each optimum: its variance where seeds tilt the losses of all sizes equally (octaves²)."""
        return np.sum((self.curvature_N * self.residual_N) ** 2) / self.dof / self.curvature_N**2

    def variances(self, l_N: np.ndarray) -> tuple[float, float, float]:
        """Return the variance of Σ l·μ by the scatter of the optima, by curvature and by skew."""
        l_J = self.of_JN @ l_N
        moved_JK, weights_JK = l_J[:, None] * self.optimum_JK, self.weights_JK
        if not self.differ:  # one skew, so its error moves all sizes at once
            moved_JK, weights_JK = moved_JK.sum(0, keepdims=True), weights_JK[:1]
        by_skew = weights_JK * (moved_JK - (weights_JK * moved_JK).sum(1, keepdims=True)) ** 2
        scatter = float(max(self.variance * (l_N @ l_N), l_N**2 @ self.variance_N))
        return scatter, float(np.sum((l_J * self.curvature_error_J) ** 2)), float(by_skew.sum())

    def half_width(self, l_N: np.ndarray, alpha: float, more: float = 0.0) -> tuple[float, float]:
        """Return (half width of the interval of Σ l·μ at level 1 - alpha, its degrees of freedom); `more`: further variance."""
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
        """Predict (log2_lr, lo, hi) of the optimum that one more seed would have at another size; NaN without a slope."""
        if self.line is None or len(self.line.of_JN) < 2:
            return NAN, NAN, NAN
        at = self.line.at(float(np.log2(size)))
        best = float(at @ self.line.optimum_N)
        half, _ = self.line.half_width(at, self.alpha, more=self.line.variance)
        return best, best - half, best + half

    def predict_if_flat(self) -> tuple[float, float, float]:
        """Predict (log2_lr, lo, hi) of one more seed's optimum at another size, if nothing moves that of the base.

        The scatter is that about the line: about a mean, a drift would count as noise and none could contradict it.
        """
        at_base = np.zeros(0) if self.line is None else np.isclose(self.line.x_N, np.log2(self.base))
        if self.line is None or len(self.line.of_JN) < 2 or not at_base.any():
            return NAN, NAN, NAN
        best = self.optima[self.base].log2_lr
        half, _ = self.line.half_width(at_base / at_base.sum(), self.alpha, more=self.line.variance)
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
    """Fit the line through the optima of the sizes that have a bowl."""
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
    """Return the fields of Estimate on regret; `sizes`: of base and far."""
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
