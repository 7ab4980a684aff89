"""Which learning rate to train a larger model with, from the verdicts of a sweep: the base's, or the base's with the drift."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectral_mup.analysis.bowl import Optimum, bowl
from spectral_mup.analysis.optimum import estimate
from spectral_mup.analysis.results import ResultsError
from spectral_mup.analysis.stats import NAN
from spectral_mup.analysis.verdict import Verdict, format_slope
from spectral_mup.util.text import wrap

WORST_FIRST = ("drifts", "costs", "undecided", "transfers")
TAKE = {"transfers": "base", "drifts": "with_drift", "costs": "with_drift", "undecided": "both", "not measured": "base"}
ADVICE = {
    "base": "Take the base's lr.",
    "with_drift": "Take the lr with the drift. The rule does not transfer: the further the target, the less such a line is "
    "worth, and under another rule the optimum may stay.",
    "unknown": "The optimum moves, but where to is not known: no two sizes have it inside the lrs tested. Test further ones; "
    "the groups are at the base's lr.",
    "both": "Whether the optimum moves is undecided: try both. The groups are at the base's lr; for another, multiply theirs.",
}
ADDS_UP = (
    " But it lies outside the drift's interval: a slope within the verdict's tolerance adds up over that many doublings. "
    "Run the lr with the drift beside it."
)
INDEPENDENT = " With train.weight_decay=independent divide their λ by the same, as torch multiplies it by the lr."


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; NaN where nothing is known."""

    estimate: float
    lo: float
    hi: float


UNKNOWN = Interval(NAN, NAN, NAN)


@dataclass(frozen=True)
class Drift:
    """Octaves of lr per doubling of one axis, the sizes it was measured between, and how far beyond them the target lies."""

    axis: str
    slope: Interval
    smallest: int
    largest: int
    doublings_measured: float
    doublings_further: float


@dataclass(frozen=True)
class Forecast:
    """What one rule's verdicts say of the optimum (log2 lr) at the target.

    Attributes:
        verdict: The worst over the axes on which the target differs, 'not measured' where no line was.
        take: 'base', 'with_drift', 'both' where it is undecided whether the optimum moves, 'unknown' where it does, and no
            line says where to.
        base: Optimum of the base model, with its own interval.
        if_flat: The same, with the interval of the target's optimum if nothing moves it.
        with_drift: The optimum by the lines.
        regret: Of the base's lr at the target, a fraction, by the bowl of the largest size.
        unmeasured: Axes on which the target differs, but no line was measured.
    """

    rule: str
    verdict: str
    reasons: list[str]
    take: str
    base: Interval
    if_flat: Interval
    with_drift: Interval
    regret: Interval
    drifts: list[Drift]
    unmeasured: list[str]

    @property
    def log2_lr(self) -> float:
        """The lr to take; where that is 'both', the base's, which is what the rule promises."""
        return self.with_drift.estimate if self.take == "with_drift" else self.base.estimate


def forecast(verdicts: Sequence[Verdict], target: Mapping[str, int], base: Mapping[str, int]) -> Forecast:
    """Forecast the optimum at `target`, {axis: size}, from one rule's verdicts, one per axis.

    Over width and depth together the octaves add: the line over the first axis, plus slope · doublings of the other, half
    widths of the intervals in quadrature. Raises ResultsError if nothing finished at the base.
    """
    tuned = verdicts[0].optima.get(verdicts[0].base)
    if tuned is None:
        where = f"{verdicts[0].axis} {verdicts[0].base}"
        raise ResultsError(f"rule {verdicts[0].rule}: no run finished at the base, {where}; train and analyse it first")
    own = Interval(tuned.log2_lr, tuned.lo, tuned.hi)
    moved = [v for v in verdicts if target[v.axis] != v.base and len(sizes := measured(v)) > 1 and v.base in sizes]
    asked = [axis for axis in target if target[axis] != base[axis]]
    unmeasured = [axis for axis in asked if axis not in [v.axis for v in moved]]
    predicted = [predictions(v, target[v.axis]) for v in moved]
    if_flat, with_drift, regret = own, UNKNOWN, UNKNOWN
    if moved:
        further = sum(v.slope * math.log2(target[v.axis] / v.base) for v in moved[1:])
        if_flat = _around(own.estimate, [flat for _, flat in predicted])
        with_drift = _around(predicted[0][0].estimate + further, [line for line, _ in predicted])
        regret = _regret(moved[0], own.estimate, with_drift)
    verdict = next((word for word in WORST_FIRST if word in [v.verdict for v in moved]), "not measured")
    reasons = [v.reason for v in verdicts if v.axis in asked and v.reason]
    drifts = [drift_of(v, target[v.axis]) for v in moved]
    take = "unknown" if TAKE[verdict] == "with_drift" and math.isnan(with_drift.estimate) else TAKE[verdict]
    return Forecast(verdicts[0].rule, verdict, reasons, take, own, if_flat, with_drift, regret, drifts, unmeasured)


def measured(v: Verdict) -> dict[int, Optimum]:
    """Return the optima that are known on one side at least."""
    return {size: o for size, o in v.finished.items() if len(o.open_sides) < 2}


def predictions(v: Verdict, target: int) -> tuple[Interval, Interval]:
    """Predict the optimum at the target by the line through those of one axis, and if it stays as at the base.

    Both with 95 % intervals.
    """
    found = estimate({size: o.curve for size, o in measured(v).items()}, v.base)
    return Interval(*found.predict(target)), Interval(*found.predict_if_flat())


def drift_of(v: Verdict, target: int) -> Drift:
    """Return the drift as the verdict has it."""
    smallest, largest = min(measured(v)), max(measured(v))
    doublings = math.log2(largest / smallest), math.log2(target / largest)
    return Drift(v.axis, Interval(v.slope, v.slope_lo, v.slope_hi), smallest, largest, *doublings)


def _around(estimate: float, parts: Sequence[Interval]) -> Interval:
    """Return an interval whose half width is that of the parts in quadrature."""
    half = math.hypot(*(p.hi - p.estimate for p in parts))
    return Interval(estimate, estimate - half, estimate + half)


def _regret(v: Verdict, base: float, target: Interval) -> Interval:
    """Return what the base's lr costs at the target, a fraction, in the bowl of the largest size that was measured."""
    largest = measured(v)[max(measured(v))]
    if not largest.fitted:
        return UNKNOWN
    lo, at, hi = (
        float(largest.curvature * bowl(base - x, largest.skew) / abs(largest.loss))
        for x in (target.lo, target.estimate, target.hi)
    )
    return Interval(at, 0.0 if target.lo <= base <= target.hi else min(lo, hi), max(lo, hi))


def format_forecast(f: Forecast, target: Mapping[str, int], independent: bool = False) -> list[str]:
    """Format for the screen what is known of the lr at the target, and which to take; `independent`: λ is so of the lr."""
    lines = [f"Rule {f.rule}: {f.verdict}"]
    lines.append(f"  lr tuned at the base  {power(f.base)}, known to {ends(f.base)}")
    if f.drifts:
        lines.append(f"  lr with the drift     {power(f.with_drift)}")
        lines.append(f"  optimum at {at_size(target)}: in {ends(f.if_flat)} if it does not move,")
        lines.append(f"    in {ends(f.with_drift)} if it keeps drifting (95 % prediction intervals)")
    lines += [line for drift in f.drifts for line in drift_lines(drift)]
    if len(f.drifts) > 1:
        lines.append("  The octaves of the axes add.")
    lines += [f"  Drift over {axis}: not measured, so the rule alone speaks for it." for axis in f.unmeasured]
    if f.drifts:
        lines += wrap(
            f"Regret of the base's lr at the target, by the bowl of the largest {f.drifts[0].axis} and the distance to the "
            f"drift's optimum: {percent(f.regret.estimate)} [{percent(f.regret.lo)}, {percent(f.regret.hi)}].",
            2,
        )
    lines += [line for reason in f.reasons for line in wrap(f"Undecided: {reason}", 2)]
    outside = f.base.estimate < f.with_drift.lo or f.base.estimate > f.with_drift.hi
    advice = ADVICE[f.take] + ADDS_UP * (outside and f.take == "base") + INDEPENDENT * (independent and f.take == "both")
    return lines + wrap(advice, 2)


def drift_lines(drift: Drift) -> list[str]:
    """Say how far the optimum has moved, and how far that is from the target."""
    return [
        f"  Drift over {drift.axis}: {_slope(drift.slope)} octaves a doubling, {drift.smallest} to {drift.largest}",
        f"    ({drift.doublings_measured:.3g} doublings measured, the target lies {drift.doublings_further:.3g} further)",
    ]


def _slope(slope: Interval) -> str:
    """Format a slope with its interval, or with the one bound that is known."""
    half_known = math.isfinite(slope.lo) != math.isfinite(slope.hi)
    return format_slope(slope.estimate, slope.lo, slope.hi) if half_known else f"{slope.estimate:+.2f} {ends(slope, '+')}"


def at_size(sizes: Mapping[str, int]) -> str:
    """Format sizes as 'width 8192, depth 32'."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def power(lr: Interval) -> str:
    """Format an lr as 2^-6.27 = 0.01297."""
    return "unknown" if math.isnan(lr.estimate) else f"2^{lr.estimate:.2f} = {2.0**lr.estimate:.4g}"


def ends(interval: Interval, sign: str = "") -> str:
    known = math.isfinite(interval.hi - interval.lo)
    return f"[{interval.lo:{sign}.2f}, {interval.hi:{sign}.2f}]" if known else "[unknown]"


def percent(regret: float) -> str:
    """Format a regret; a bowl says nothing of losses twice its own."""
    return "unknown" if math.isnan(regret) else "over 100%" if regret > 1 else f"{regret:.2%}"
