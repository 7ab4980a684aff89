"""Where the best learning rate of a larger model lies, by the line through the optima that were measured."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from spectral_mup.analysis.stats import NAN, fit_line


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; NaN where nothing is known."""

    estimate: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Prediction:
    """Optima in log2 lr at the target, and the line that they follow from.

    slope    octaves of lr a doubling of the size
    line     height of the line at the target, with the interval of that height
    optimum  the same estimate with the interval in which the optimum of one new model of that size lies
    flat     optimum of the base, with the interval in which that of a new model lies if the slope is 0
    """

    slope: float
    line: Interval
    optimum: Interval
    flat: Interval


def predict(
    sizes_N: ArrayLike, optima_N: ArrayLike, target: float, alpha: float = 0.05, base: float | None = None
) -> Prediction:
    """Extrapolate optima (log2 lr; one or several a size) to `target` by least squares on x = log2 size.

    With s² = RSS/(N-2) the scatter about the line, Sxx = Σ (x - x̄)², and t = t(1 - α/2, N-2):

        line     ȳ + slope·(x* - x̄) ± t·s·√(1/N + (x* - x̄)²/Sxx)
        optimum  the same           ± t·s·√(1 + 1/N + (x* - x̄)²/Sxx)
        flat     ȳ_base             ± t·s·√(1 + 1/n_base)

    s is about the line in `flat` too: about a mean, a drift would count as noise and no drift could contradict it. `base` is
    the size that was tuned, by default the smallest. Two points leave no degrees of freedom, so intervals are NaN.
    Raises ValueError with fewer than two sizes, or without the base among them.
    """
    size, y = np.asarray(sizes_N, float), np.asarray(optima_N, float)
    base = float(size.min()) if base is None else base
    if len(np.unique(size)) < 2 or base not in size:
        raise ValueError(f"sizes {sorted(set(size.tolist()))}: a line needs two, the base {base:g} among them")
    x, far = np.log2(size), float(np.log2(target) - np.log2(size).mean())
    slope, slope_variance, dof = fit_line(x, y)
    scatter = slope_variance * ((x - x.mean()) ** 2).sum()  # s²
    level = scatter / len(y) + slope_variance * far**2
    t = float(special.stdtrit(dof, 1 - alpha / 2)) if dof > 0 else NAN

    def around(estimate: float, variance: float) -> Interval:
        half = t * float(variance) ** 0.5
        return Interval(estimate, estimate - half, estimate + half)

    at_target, at_base = float(y.mean()) + slope * far, y[size == base]
    flat = around(float(at_base.mean()), scatter * (1 + 1 / len(at_base)))
    return Prediction(slope, around(at_target, level), around(at_target, level + scatter), flat)


def expected_regret(curvature: float, loss: float, distance: float, interval: tuple[float, float]) -> Interval:
    """Regret a·d²/L of an lr that is d octaves from the optimum, a fraction, and its range over the interval of d.

    curvature  a of the bowl L + a·d², nats per octave²; loss: L at its optimum, nats
    """
    ends = [curvature * d**2 / loss for d in interval]
    low = 0.0 if interval[0] <= 0 <= interval[1] else min(ends)
    return Interval(curvature * distance**2 / loss, low, max(ends))
