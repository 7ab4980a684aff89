"""Does the best learning rate stay put as the model grows? One verdict per rule, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.analysis.optimum import Optimum, find_optimum, rows, satterthwaite, t975

NAN = float("nan")

MIN_SIZES = 3  # two sizes give a slope but no sign of how far to trust it


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one rule did over one axis; slope = d log2 η* / d log2 size, regret a fraction of the loss."""

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
    bend: float  # octaves: largest distance of an optimum from the fitted line
    regret: float  # of the base's optimum at the largest size
    regret_lo: float
    regret_hi: float
    regret_at_least: bool  # the base's optimum lies beyond what the largest size finished
    larger_is_better: bool | None  # the best loss falls from each size to the next
    basis: str
    optima: dict[int, Optimum | None] = field(repr=False)
    counts: dict[str, int] = field(repr=False)  # runs by status
    features: FeatureCheck | None = field(default=None, repr=False)


def by_rule(points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split points into the sets that are judged one by one, named by rule (and by what else varies)."""
    keys = [k for k in ("family", "optimizer") if len(set(points[k])) > 1] + ["rule"]
    names = [" ".join(map(str, row)) for row in points[keys].to_numpy()]
    return {name: rows(points, [n == name for n in names]) for name in dict.fromkeys(names)}


def what_was_run(points: pd.DataFrame) -> str:
    """Say in one line what the points are: family, optimizer, steps, tokens, epochs, seeds, missing runs."""

    def span(column: str, form: str, unit: float = 1) -> str:
        values = points[column].to_numpy(float) / unit
        values = values[np.isfinite(values)]
        return "–".join(dict.fromkeys(form.format(v) for v in (values.min(), values.max()))) if len(values) else "?"

    named = ", ".join("/".join(map(str, dict.fromkeys(points[column]))) for column in ("family", "optimizer"))
    fixed = [f"{axis} {points[axis].iloc[0]}" for axis in ("width", "depth") if len(set(points[axis])) == 1]
    named = ", ".join([named, *fixed])
    missing, seeds = list(points["status"]).count("missing"), len(set(points["seed"]))
    text = f"{named}; {span('steps', '{:.0f}')} steps, {span('tokens', '{:.3g}', 1e6)} M tokens, "
    text += f"{span('epochs', '{:.2g}')} epochs; {seeds} seed{'s' * (seeds > 1)}"
    if "precision" in points:
        text += "; " + "/".join(sorted(set(points["precision"].dropna())))
    return text + (f"; {missing} of {len(points)} runs missing" if missing else "")


def judge(
    points: pd.DataFrame,
    axis: str = "width",
    base: int | None = None,
    tolerance: float = 0.25,
    regret_limit: float = 0.005,
    *,
    label: str = "",
    seed: int = 0,
    n_boot: int = 2000,
) -> Verdict:
    """Judge the points of one rule.

    'transfers': the slope's 95 % interval lies within ±tolerance and the regret is at most `regret_limit`.
    'drifts': the interval lies outside ±tolerance. Else 'undecided', and always so with fewer than three
    sizes or an optimum that is not bracketed; `reason` names what failed and what would decide it.

    Slope: least squares over the sizes; interval slope ± t(0.975, ν)·sd over the bootstrap draws of the
    optima (independent between sizes), ν by Satterthwaite. Regret: L_W(η*_base) / L_W(η*_W) - 1 at the
    largest size W (the smallest if the base is the largest), judged by the estimate; its interval holds W's
    curve fixed and draws the distance between the two optima. `base` is the size that was tuned, by default
    the smallest.
    """
    label = label or str(points["rule"].iloc[0])
    sizes = sorted(int(s) for s in points[axis].unique())
    base = sizes[0] if base is None else int(base)
    far = sizes[-1] if base != sizes[-1] else sizes[0]
    optima = _optima(points, axis, sizes, seed, n_boot)
    found = {size: optimum for size, optimum in optima.items() if optimum is not None}
    tried = {size: o for size, o in found.items() if len(o.open_sides) < 2}  # a single lr has no neighbour to be better than
    slope, half, bend = _slope(tried)
    regret, regret_lo, regret_hi, at_least = _regret(tried.get(base), tried.get(far))
    losses = [o.loss for o in found.values()]

    unmeasured = _unmeasured(optima, base, axis)
    if unmeasured:
        verdict, reason = "undecided", "; ".join(unmeasured)
    elif slope - half > tolerance or slope + half < -tolerance:
        verdict, reason = "drifts", ""
    elif max(slope + half, half - slope) > tolerance:
        verdict, reason = "undecided", _too_wide(found, axis, slope, half, tolerance)
    elif at_least or not regret <= regret_limit:
        reason = f"the slope is within ±{tolerance:g}, but the optimum of {axis} {base} costs "
        reason += f"{'at least ' * at_least}{regret:.2%} at {axis} {far} (limit {regret_limit:.2%}); "
        reason += "its lr did not finish there" if at_least else f"a further {axis} would show whether it goes on"
        verdict = "undecided"
    else:
        verdict, reason = "transfers", ""

    status = list(points["status"])
    return Verdict(
        rule=label,
        axis=axis,
        base=base,
        verdict=verdict,
        reason=reason,
        tolerance=tolerance,
        regret_limit=regret_limit,
        slope=slope,
        slope_lo=slope - half,
        slope_hi=slope + half,
        bend=bend,
        regret=regret,
        regret_lo=regret_lo,
        regret_hi=regret_hi,
        regret_at_least=at_least,
        larger_is_better=all(b < a for a, b in zip(losses, losses[1:], strict=False)) if len(losses) > 1 else None,
        basis=", ".join(sorted({o.basis for o in found.values()})),
        optima=optima,
        counts={s: status.count(s) for s in ("done", "diverged", "missing")},
    )


def curves_of(points: pd.DataFrame, axis: str, sizes: list[int]) -> dict[int, pd.DataFrame]:
    """Split the runs of one rule that were begun by size, for find_optimum."""
    diverged = points["status"] == "diverged"
    started = rows(points.assign(diverged=diverged), points["status"] != "missing")
    return {s: rows(started, started[axis] == s) for s in sizes}


def _optima(points: pd.DataFrame, axis: str, sizes: list[int], seed: int, n_boot: int) -> dict[int, Optimum | None]:
    """Fit every size, then again with the residuals of all sizes pooled."""
    curves = curves_of(points, axis, sizes)
    # one stream a size: with one for all, every size would draw the same seeds and the slope look too sure
    streams = {s: [seed, i] for i, s in enumerate(sizes)}
    optima = {s: find_optimum(c, seed=streams[s], n_boot=n_boot) for s, c in curves.items()}
    rich = [o for o in optima.values() if o is not None and o.n_points > 3]
    if not rich:
        return optima
    pooled = np.concatenate([o.residuals for o in rich]), sum(o.n_points - 3 for o in rich)
    return {s: find_optimum(c, seed=streams[s], n_boot=n_boot, pooled=pooled) for s, c in curves.items()}


def _slope(found: dict[int, Optimum]) -> tuple[float, float, float]:
    """Return slope, half width of its 95 % interval, and bend, over the sizes that have an optimum."""
    if len(found) < 2:
        return NAN, NAN, NAN
    weight = _weights(found)
    best = np.array([o.log2_lr for o in found.values()])
    draws = weight @ np.stack([o.samples for o in found.values()])
    dof = satterthwaite([w * w * o.variance for w, o in zip(weight, found.values(), strict=True)],
                        [o.dof for o in found.values()])  # fmt: skip
    slope, x = float(weight @ best), np.log2(list(found))
    bend = float(np.abs(best - best.mean() - slope * (x - x.mean())).max())
    return slope, t975(dof) * float(draws.std()), bend


def _weights(found: dict[int, Optimum]) -> np.ndarray:
    """Return the weights w with slope = w · log2_lr, of least squares on log2 size."""
    x = np.log2(list(found))
    return (x - x.mean()) / ((x - x.mean()) ** 2).sum()


def _regret(base: Optimum | None, wide: Optimum | None) -> tuple[float, float, float, bool]:
    """Return regret of the base's optimum at the far size, its 95 % interval, and 'at least'."""
    if base is None or wide is None:
        return NAN, NAN, NAN, False
    regret, at_least = wide.regret_at(base.log2_lr)
    dof = satterthwaite([base.variance, wide.variance], [base.dof, wide.dof])
    distance = base.log2_lr - wide.log2_lr
    drawn = (base.samples - wide.samples - distance) * t975(dof) / t975(np.inf)
    lo, hi = np.quantile(wide.regret_at(wide.log2_lr + distance + drawn)[0], [0.025, 0.975])
    return float(regret), float(lo), float(hi), bool(at_least)


def _unmeasured(optima: dict[int, Optimum | None], base: int, axis: str) -> list[str]:
    """Say what keeps a slope from being judged at all: sizes without runs, too few, open brackets."""
    reasons = []
    empty = [size for size, o in optima.items() if o is None]
    if base not in optima:
        reasons.append(f"no runs at the base {axis} {base}")
    if empty:
        reasons.append(f"no lr finished at {axis} {_join(empty)}")
    if len(optima) < MIN_SIZES:
        reasons.append(f"only {len(optima)} of the {MIN_SIZES} {axis}s that a slope needs")
    for side in ("lower", "higher"):
        beyond = [size for size, o in optima.items() if o is not None and side in o.open_sides]
        if beyond:
            reasons.append(f"not bracketed: test {side} lr at {axis} {_join(beyond)}")
    return reasons


def _too_wide(found: dict[int, Optimum], axis: str, slope: float, half: float, tolerance: float) -> str:
    """Say what would narrow the slope's interval: the larger of its two sources of variance decides."""
    weight = dict(zip(found, _weights(found), strict=True))
    by_seed = {s: weight[s] ** 2 * o.seed_variance for s, o in found.items()}
    by_fit = {s: weight[s] ** 2 * o.fit_variance for s, o in found.items()}
    said = f"slope {slope:+.2f} ± {half:.2f} reaches across the tolerance ±{tolerance:g}"
    if sum(by_seed.values()) > sum(by_fit.values()):
        n, worst = min(o.n_seeds for o in found.values()), max(by_seed, key=lambda s: by_seed[s])
        advice = f"more seeds (now {n}), first at {axis} {worst}"
    else:
        worst = max(by_fit, key=lambda s: by_fit[s])
        k, seeds = found[worst].n_points, found[worst].n_seeds
        advice = f"more lr points within an octave of the optimum at {axis} {worst} (now {k})"
        advice += ", or a second seed" if seeds == 1 else ""
    longer = f"a longer range of {axis} than ×{max(found) / min(found):g}"
    if half < tolerance / 2:
        return f"{said}: it lies so near to it that only {longer} or a finer one decides"
    return f"{said}: {advice}, or {longer}"


def _join(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
