"""Does the best learning rate stay the same as the model grows? One verdict per rule, with its numbers."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.analysis.optimum import MeanCurve, Optimum, find_optimum, tabulate
from spectral_mup.analysis.stats import NAN, rows, satterthwaite, slope_weights, t975
from spectral_mup.util.text import pluralize

MIN_SIZES = 3  # through two sizes a line always fits, whatever the noise


@dataclass(frozen=True, eq=False)
class Verdict:
    """How the optimum of one rule moves over one axis; slope = d log2 η* / d log2 size, regret a fraction of the loss."""

    rule: str
    axis: str
    base: int
    verdict: str  # 'transfers', 'drifts', 'undecided'
    reason: str  # of 'undecided': what would decide it; else empty
    tolerance: float
    regret_limit: float
    slope: float
    slope_lo: float
    slope_hi: float
    max_residual: float  # octaves: largest distance of an optimum from the fitted line
    regret: float  # of the base's optimum at the largest size
    regret_lo: float
    regret_hi: float
    regret_at_least: bool  # the base's optimum lies beyond the lrs that the largest size finished
    larger_is_better: bool | None  # the best loss falls from each size to the next
    basis: str
    optima: dict[int, Optimum | None] = field(repr=False)
    counts: dict[str, int] = field(repr=False)  # runs by status
    features: FeatureCheck | None = field(default=None, repr=False)

    @property
    def finished(self) -> dict[int, Optimum]:
        """Optima of the sizes at which some lr finished."""
        return {size: o for size, o in self.optima.items() if o is not None}


def by_rule(points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split points into the sets that are judged one by one, named by rule (and by what else varies)."""
    keys = [k for k in ("family", "optimizer") if len(set(points[k])) > 1] + ["rule"]
    names = [" ".join(map(str, row)) for row in points[keys].to_numpy()]
    return {name: rows(points, [n == name for n in names]) for name in dict.fromkeys(names)}


def what_was_run(points: pd.DataFrame) -> str:
    """Describe the points in one line: family, optimizer, steps, tokens, epochs, seeds, missing runs."""

    def span(column: str, form: str, unit: float = 1) -> str:
        values = points[column].to_numpy(float) / unit
        values = values[np.isfinite(values)]
        return "–".join(dict.fromkeys(form.format(v) for v in (values.min(), values.max()))) if len(values) else "?"

    named = ["/".join(map(str, dict.fromkeys(points[column]))) for column in ("family", "optimizer")]
    named += [f"{axis} {points[axis].iloc[0]}" for axis in ("width", "depth") if len(set(points[axis])) == 1]
    length = f"{span('steps', '{:.0f}')} steps, {span('tokens', '{:.3g}', 1e6)} M tokens, {span('epochs', '{:.2g}')} epochs"
    parts = [", ".join(named), length, pluralize(len(set(points["seed"])), "seed")]
    parts += ["/".join(sorted(set(points["precision"].dropna())))] if "precision" in points else []
    missing = list(points["status"]).count("missing")
    return "; ".join(parts + [f"{missing} of {len(points)} runs missing"] * (missing > 0))


def judge(
    points: pd.DataFrame, axis: str = "width", base: int | None = None, tolerance: float = 0.25, regret_limit: float = 0.005,
    *, label: str = "", n_boot: int = 2000,
) -> Verdict:  # fmt: skip
    """Judge the points of one rule.

    'transfers': the slope's 95 % interval lies within ±tolerance and the regret is at most `regret_limit`. 'drifts': the
    interval lies outside ±tolerance. Else 'undecided', and always so with fewer than three sizes or an optimum that is not
    bracketed; `reason` names what failed and what would decide it.

    Slope: least squares over the sizes; interval slope ± t(0.975, ν)·sd over the bootstrap draws of the optima (independent
    between sizes), ν by Satterthwaite. Regret: L_W(η*_base) / L_W(η*_W) - 1 at the largest size W (the smallest if the base is
    the largest), judged by the estimate; its interval holds W's curve fixed and draws the distance between the two optima.
    `base` is the size that was tuned, by default the smallest.
    """
    sizes = sorted(int(s) for s in points[axis].unique())
    base = sizes[0] if base is None else int(base)
    far = sizes[-1] if base != sizes[-1] else sizes[0]
    curves = curves_of(points, axis, sizes)
    rich = [c for c in curves.values() if c is not None and c.n_points > 3]
    pooled = (np.concatenate([c.residuals_K for c in rich]), sum(c.n_points - 3 for c in rich)) if rich else None
    # one stream a size: with one for all, every size would draw the same seeds and the slope look too sure
    seeded = enumerate(curves.items())
    optima = {size: c and find_optimum(c, seed=[0, i], n_boot=n_boot, pooled=pooled) for i, (size, c) in seeded}
    finished = {s: o for s, o in optima.items() if o is not None}
    tried = {s: o for s, o in finished.items() if len(o.open_sides) < 2}  # of a single lr nothing is known
    rule, status = label or str(points["rule"].iloc[0]), list(points["status"])
    losses = [o.loss for o in finished.values()]
    larger_is_better = all(b < a for a, b in pairwise(losses)) if len(losses) > 1 else None
    basis = ", ".join(sorted({o.basis for o in finished.values()}))
    counts = {s: status.count(s) for s in ("done", "diverged", "missing")}
    numbers = (tolerance, regret_limit, *_slope(tried), *_regret(tried.get(base), tried.get(far)))
    v = Verdict(rule, axis, base, "undecided", "", *numbers, larger_is_better, basis, optima, counts)
    verdict, reason = _decide(v, far)
    return replace(v, verdict=verdict, reason=reason)


def curves_of(points: pd.DataFrame, axis: str, sizes: list[int]) -> dict[int, MeanCurve | None]:
    """The curve of every size under one rule; None where no lr finished."""
    return {s: tabulate(rows(points, points[axis] == s)) for s in sizes}


def _decide(v: Verdict, far: int) -> tuple[str, str]:
    """Verdict and reason from the numbers of `v`; `far`: the size at which the regret is taken."""
    if unmeasured := _unmeasured(v):
        return "undecided", "; ".join(unmeasured)
    if v.slope_lo > v.tolerance or v.slope_hi < -v.tolerance:
        return "drifts", ""
    if max(v.slope_hi, -v.slope_lo) > v.tolerance:
        return "undecided", _too_wide(v)
    if not v.regret_at_least and v.regret <= v.regret_limit:
        return "transfers", ""
    reason = f"the slope is within ±{v.tolerance:g}, but the optimum of {v.axis} {v.base} costs "
    reason += f"{'at least ' * v.regret_at_least}{v.regret:.2%} at {v.axis} {far} (limit {v.regret_limit:.2%}); "
    further = f"a further {v.axis} would show whether the cost keeps growing"
    return "undecided", reason + ("no run at that lr finished there" if v.regret_at_least else further)


def _slope(optima: dict[int, Optimum]) -> tuple[float, float, float, float]:
    """Slope over the sizes that have an optimum, its 95 % interval, and the largest residual."""
    if len(optima) < 2:
        return NAN, NAN, NAN, NAN
    x, best = np.log2(list(optima)), np.array([o.log2_lr for o in optima.values()])
    weight = slope_weights(x)
    draws = weight @ np.stack([o.draws.samples for o in optima.values()])
    variances = [w * w * o.draws.variance for w, o in zip(weight, optima.values(), strict=True)]
    slope, half = float(weight @ best), t975(satterthwaite(variances, [o.dof for o in optima.values()])) * float(draws.std())
    return slope, slope - half, slope + half, float(np.abs(best - best.mean() - slope * (x - x.mean())).max())


def _regret(base: Optimum | None, wide: Optimum | None) -> tuple[float, float, float, bool]:
    """Regret of the base's optimum at the far size, its 95 % interval, and whether it is a lower bound."""
    if base is None or wide is None:
        return NAN, NAN, NAN, False
    regret, at_least = wide.regret_at(base.log2_lr)
    dof = satterthwaite([base.draws.variance, wide.draws.variance], [base.dof, wide.dof])
    distance = base.log2_lr - wide.log2_lr
    drawn = (base.draws.samples - wide.draws.samples - distance) * t975(dof) / t975(np.inf)
    lo, hi = np.quantile(wide.regret_at(wide.log2_lr + distance + drawn)[0], [0.025, 0.975])
    return float(regret), float(lo), float(hi), bool(at_least)


def _unmeasured(v: Verdict) -> list[str]:
    """Reasons not to judge a slope at all: sizes without runs, too few sizes, open brackets."""
    beyond = {side: [f"{s}" for s, o in v.finished.items() if side in o.open_sides] for side in ("lower", "higher")}
    empty = [f"{size}" for size, o in v.optima.items() if o is None]
    reasons = [f"no runs at the base {v.axis} {v.base}"] if v.base not in v.optima else []
    reasons += [f"no lr finished at {v.axis} {', '.join(empty)}"] if empty else []
    reasons += [f"only {len(v.optima)} of the {MIN_SIZES} {v.axis}s that a slope needs"] if len(v.optima) < MIN_SIZES else []
    reasons += [f"not bracketed: test {side} lr at {v.axis} {', '.join(sizes)}" for side, sizes in beyond.items() if sizes]
    return reasons


def _too_wide(v: Verdict) -> str:
    """What would narrow the slope's interval: the larger of its two sources of variance decides."""
    optima, half = v.finished, (v.slope_hi - v.slope_lo) / 2
    weight = dict(zip(optima, slope_weights(np.log2(list(optima))), strict=True))
    by_seed = {s: weight[s] ** 2 * o.draws.seed_variance for s, o in optima.items()}
    by_fit = {s: weight[s] ** 2 * o.draws.fit_variance for s, o in optima.items()}
    longer = f"a longer range of {v.axis} than ×{max(optima) / min(optima):g}"
    if half < v.tolerance / 2:
        advice = f"the slope is too close to the threshold: only {longer} or a finer one can decide"
    elif sum(by_seed.values()) > sum(by_fit.values()):
        worst = max(by_seed, key=lambda s: by_seed[s])
        advice = f"more seeds (now {min(o.curve.n_seeds for o in optima.values())}), first at {v.axis} {worst}, or {longer}"
    else:
        worst = max(by_fit, key=lambda s: by_fit[s])
        advice = f"more lr points within an octave of the optimum at {v.axis} {worst} (now {optima[worst].curve.n_points})"
        advice += ", or a second seed" * (optima[worst].curve.n_seeds == 1) + f", or {longer}"
    return f"the 95 % interval of the slope ({v.slope:+.2f} ± {half:.2f}) crosses the ±{v.tolerance:g} threshold: {advice}"
