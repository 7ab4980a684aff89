"""Does the best learning rate stay the same as the model grows? One verdict per rule, with its numbers.

`judge_curves` is a pure function of curves; `judge` tabulates the points of a rule and adds what a report says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spectral_mup.analysis.bowl import Optimum
from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.names import printed
from spectral_mup.analysis.optimum import Estimate, estimate
from spectral_mup.analysis.stats import rows
from spectral_mup.config.tune import LR
from spectral_mup.runs.sweep import SIZES_FOR_A_SLOPE
from spectral_mup.util.text import pluralize

if TYPE_CHECKING:  # a search judges without them
    import pandas as pd

    from spectral_mup.analysis.feature_check import FeatureCheck


class Remedy(NamedTuple):
    """The one thing that would decide a verdict: kind 'seed', 'lr' or 'size'."""

    kind: str
    sizes: tuple[int, ...]  # where: of another seed or lr; empty for 'size', which is a further one
    log2_lr: float | None  # of 'lr': the one to test at sizes[0]
    text: str  # why, and what to do


class Judgement(NamedTuple):
    """What curves say: 'transfers', 'drifts', 'costs', or 'undecided' and what would decide it."""

    verdict: str
    remedy: Remedy | None
    estimate: Estimate


@dataclass(frozen=True, eq=False)
class Verdict:
    """How the optimum of one rule moves over one axis; slope = d log2 η* / d log2 size, regret a fraction of the loss."""

    rule: str
    axis: str
    base: int
    verdict: str  # 'transfers', 'drifts', 'costs', 'undecided'
    reason: str  # of 'undecided': what would decide it; else empty
    tolerance: float
    regret_limit: float
    alpha: float  # intervals are at level 1 - alpha
    slope: float
    slope_lo: float  # -inf or inf: known on the other side only
    slope_hi: float
    regret: float  # of the base's optimum at the largest size
    regret_lo: float
    regret_hi: float
    regret_at_least: bool  # the base's optimum lies beyond the lrs that the largest size finished
    larger_is_better: bool | None  # the best loss falls from each size to the next
    basis: str  # of the intervals: '2 seeds', '2 to 5 seeds' where sizes differ
    optima: dict[int, Optimum | None] = field(repr=False)
    counts: dict[str, int] = field(repr=False)  # runs by status
    remedy: Remedy | None = field(default=None, repr=False)
    features: FeatureCheck | None = field(default=None, repr=False)
    tuned: str = LR  # the key that was tuned

    @property
    def is_control(self) -> bool:
        """Whether its rule claims no transfer."""
        return is_control(self.rule)

    @property
    def finished(self) -> dict[int, Optimum]:
        """Optima of the sizes at which some lr finished."""
        return {size: o for size, o in self.optima.items() if o is not None}


def format_slope(slope: float, lo: float, hi: float, number: Callable[[float], str] = "{:+.2f}".format) -> str:
    """Format a slope with its interval, or the one bound that is known; empty without any."""
    bounds = [f"{sign} {number(x)}" for sign, x in (("<", hi), (">", lo)) if np.isfinite(x)]
    if len(bounds) == 2:
        return f"{number(slope)} [{number(lo)}, {number(hi)}]"
    return bounds[0] if bounds else number(slope) if np.isfinite(slope) else ""


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

    named = ["/".join(printed(str(name)) for name in dict.fromkeys(points[column])) for column in ("family", "optimizer")]
    named += [f"{axis} {points[axis].iloc[0]}" for axis in ("width", "depth") if len(set(points[axis])) == 1]
    length = f"{span('steps', '{:.0f}')} steps"
    if of_text(points):
        length += f", {span('tokens', '{:.3g}', 1e6)} M tokens, {span('epochs', '{:.2g}')} epochs"
    parts = [", ".join(named), length, pluralize(len(set(points["seed"])), "seed")]
    parts += ["/".join(sorted(set(points["precision"].dropna())))] if "precision" in points else []
    held = sorted(set(points["held"].dropna()) - {""}) if "held" in points else []
    parts += [f"held: {' or '.join(held)}"] if held else []
    missing = list(points["status"]).count("missing")
    return "; ".join(parts + [f"{missing} of {len(points)} runs missing"] * (missing > 0))


def of_text(points: pd.DataFrame) -> bool:
    """Return whether runs were trained on a text; those on batches of the user's own end without a number of tokens."""
    return bool(points["tokens"].notna().any()) or "done" not in set(points["status"])


def loss_name(points: pd.DataFrame) -> str:
    """Return what figures call the loss, with its unit where it has one."""
    return "validation loss (nats/token)" if of_text(points) else "validation loss"


def is_control(rule: str) -> bool:
    """Return whether a rule, standard*, claims no transfer and serves as a comparison; an optimizer may be named before it."""
    return rule.rpartition(" ")[2].startswith("standard")


def tabulate(points: pd.DataFrame) -> LossCurve:
    """Return the curve of one size (columns log2_lr, seed, loss, status; missing runs are ignored).

    Raises ValueError on two runs in one cell.
    """
    started = rows(points, points["status"] != "missing")
    if started.duplicated(["log2_lr", "seed"]).any():
        raise ValueError("several runs with one (log2_lr, seed): give the runs of one size and one rule")
    losses = np.where(started["status"] == "diverged", np.inf, started["loss"].to_numpy(float))
    return LossCurve.of_runs(started["log2_lr"].to_numpy(), started["seed"].to_numpy(), losses)


def curves_of(points: pd.DataFrame, axis: str) -> dict[int, LossCurve]:
    """Return the curve of every size under one rule."""
    return {s: tabulate(rows(points, points[axis] == s)) for s in sorted(int(s) for s in points[axis].unique())}


def judge(
    points: pd.DataFrame, axis: str = "width", base: int | None = None, tolerance: float = 0.25, regret_limit: float = 0.005,
    *, label: str = "", alpha: float = 0.05,
) -> Verdict:  # fmt: skip
    """Judge the points of one rule over `axis`; `base` is the size that was tuned, by default the smallest."""
    curves = curves_of(points, axis)
    base = min(curves) if base is None else int(base)
    verdict, remedy, found = judge_curves(curves, base, tolerance, regret_limit, alpha, axis)
    optima, status = found.optima, list(points["status"])
    losses = [o.loss for o in optima.values()]
    n_seeds = [o.curve.n_seeds for o in optima.values()] or [0]
    few, many = min(n_seeds), max(n_seeds)
    seeds = pluralize(few, "seed") if few == many else f"{few} to {many} seeds"
    return Verdict(
        label or str(points["rule"].iloc[0]), axis, base, verdict, remedy.text if remedy else "",
        tolerance, regret_limit, alpha, found.slope, found.slope_lo, found.slope_hi,
        found.regret, found.regret_lo, found.regret_hi, found.regret_at_least,
        larger_is_better=all(b < a for a, b in pairwise(losses)) if len(losses) > 1 else None, basis=seeds,
        optima={size: optima.get(size) for size in curves},
        counts={s: status.count(s) for s in ("done", "diverged", "missing")}, remedy=remedy,
    )  # fmt: skip


def judge_curves(
    curves: Mapping[int, LossCurve], base: int, tolerance: float = 0.25, regret_limit: float = 0.005, alpha: float = 0.05,
    axis: str = "size",
) -> Judgement:  # fmt: skip
    """Judge the curves of one rule.

    'drifts': the slope's interval lies outside ±tolerance; a bound on one side is enough, from an optimum beyond the lrs
    tested. 'costs': it does not, but the regret's lower bound exceeds `regret_limit`. 'transfers': the slope's interval lies
    within ±tolerance and the regret is at most `regret_limit`. Else 'undecided', and so always with fewer than three sizes.
    """
    found = estimate(curves, base, alpha)
    if missing := _missing(curves, base, found, axis):
        return Judgement("undecided", missing, found)
    known = all(o.fitted or len(o.open_sides) == 1 for o in found.optima.values())
    if known and (found.slope_lo > tolerance or found.slope_hi < -tolerance):
        return Judgement("drifts", None, found)
    if found.regret_lo > regret_limit:
        return Judgement("costs", None, found)
    if remedy := _unseen(found, axis) or _too_wide(found, tolerance, axis) or _too_dear(found, regret_limit, axis):
        return Judgement("undecided", remedy, found)
    return Judgement("transfers", None, found)


def percent(alpha: float) -> str:
    """Format the level of an interval: '95 %'."""
    return f"{100 * (1 - alpha):.3g} %"


def level_marks(verdicts: Sequence[Verdict]) -> dict[float, str]:
    """Return the alpha of every level of intervals, the commonest first, and what marks it: nothing, '†', '††'."""
    alphas = [v.alpha for v in verdicts]
    return {alpha: "†" * i for i, alpha in enumerate(sorted(set(alphas), key=lambda a: (-alphas.count(a), -a)))}


def _missing(curves: Mapping[int, LossCurve], base: int, found: Estimate, axis: str) -> Remedy | None:
    """Return what adds the sizes that a verdict needs; None if it has them."""
    if base not in curves:
        return Remedy("size", (base,), None, f"no runs at the base {axis} {base}")
    if len(curves) < SIZES_FOR_A_SLOPE:
        return Remedy("size", (), None, f"only {len(curves)} of the {SIZES_FOR_A_SLOPE} {axis}s that a slope needs")
    if empty := [size for size in curves if size not in found.optima]:
        return Remedy("lr", tuple(empty), None, f"no lr finished at {axis} {_listed(empty)}")
    return None


def _unseen(found: Estimate, axis: str) -> Remedy | None:
    """Return what would show an optimum that is not seen: nothing worse tested beyond it, too few points, or no minimum."""
    for side, sign in (("lower", -1), ("higher", 1)):
        if open_here := [size for size, o in found.optima.items() if side in o.open_sides]:
            o = found.optima[open_here[0]]
            to_edge = [abs(o.log2_lr - lr) for lr in o.curve.neighbours if np.isfinite(lr)]
            text = f"not bracketed: test {side} lr at {axis} {_listed(open_here)}"
            return Remedy("lr", (open_here[0],), float(o.log2_lr + sign * min([*to_edge, 1.0])), text)
    for size, o in found.optima.items():
        if not o.fitted and len(o.curve.window) < 3:
            lr = _midpoint(o)
            return Remedy("lr", (size,), lr, f"too few lrs near the optimum at {axis} {size}: test log2 {lr:g} there")
    blurred = [size for size, o in found.optima.items() if not o.fitted]
    text = f"no minimum is seen at {axis} {_listed(blurred)}: more seeds there"
    return Remedy("seed", tuple(blurred), None, text) if blurred else None


def _too_wide(found: Estimate, tolerance: float, axis: str) -> Remedy | None:
    """Return what would narrow the slope's interval, where it crosses the threshold.

    The largest part of its variance decides.
    """
    if max(found.slope_hi, -found.slope_lo) <= tolerance:
        return None
    line, sizes, half = found.line, list(found.optima), (found.slope_hi - found.slope_lo) / 2
    assert line is not None
    crosses = f"the {percent(found.alpha)} interval of the slope ({found.slope:+.2f} ± {half:.2f}) crosses the ±{tolerance:g} "
    crosses += "threshold: "
    if half < tolerance / 4:
        longer = f"it is too close to it, only a longer range of {axis} than ×{max(sizes) / min(sizes):g} can decide"
        return Remedy("size", (), None, crosses + longer)
    scatter, by_curvature, by_skew = line.variances(line.weights)
    weight_J = np.abs(line.of_JN @ line.weights)
    walled = [j for j, size in enumerate(sizes) if found.optima[size].curve.walled or len(found.optima[size].curve.window) < 4]
    if by_curvature + by_skew > scatter and walled and line.dof > 1:
        size = sizes[max(walled, key=lambda j: weight_J[j])]
        lr = _midpoint(found.optima[size])
        return Remedy(
            "lr", (size,), lr, f"{crosses}the shape of the curve at {axis} {size} is not seen, test log2 {lr:g} there"
        )
    by_size = line.of_JN @ (line.weights**2 * np.maximum(line.variance, line.variance_N))
    heavy = tuple(size for size, share in zip(sizes, by_size, strict=True) if share >= by_size.max() / 2)
    seeds = min(found.optima[size].curve.n_seeds for size in heavy)
    return Remedy("seed", heavy, None, f"{crosses}more seeds (now {seeds}), first at {axis} {_listed(heavy)}")


def _too_dear(found: Estimate, limit: float, axis: str) -> Remedy | None:
    """Return what would decide on a cost that is above the limit, but not surely."""
    if found.regret <= limit and not found.regret_at_least:
        return None
    far = max(found.optima) if found.base != max(found.optima) else min(found.optima)
    text = f"the slope is within the tolerance, but the optimum of {axis} {found.base} costs "
    if found.regret_at_least:
        at = found.optima[found.base].log2_lr
        text += f"at least {found.regret:.2%} at {axis} {far} (limit {limit:.2%}): no run at that lr finished there"
        return Remedy("lr", (far,), at, text)
    text += f"{found.regret:.2%} [{found.regret_lo:.2%}, {found.regret_hi:.2%}] at {axis} {far} (limit {limit:.2%}): more seeds"
    return Remedy("seed", (found.base, far), None, f"{text} at {axis} {found.base}, {far}")


def _midpoint(o: Optimum) -> float:
    """Return the lr half way from the best one to its neighbour: to the wall if one is, else to the further one."""
    best = o.curve.log2_lrs[o.curve.best]
    to = max(o.curve.walled or o.curve.neighbours, key=lambda lr: abs(lr - best))
    return float((best + to) / 2)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
