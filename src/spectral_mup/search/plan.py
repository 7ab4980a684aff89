"""The plan of a sweep: the runs that its search wants so far, and the verdict at which it ends."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.verdict import Judgement, Remedy, format_slope, judge_curves
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.sweep import Chain, Outcome, Sweep
from spectral_mup.search.bracket import HALF, bracket
from spectral_mup.util.text import pluralize

LOOKS = 5  # at most, while a verdict is undecided
ALPHA = 0.0158  # of each look: so often do five looks err that together err in 5 % (Pocock 1977)
DECIDED, ALL_LOOKS, BUDGET, NO_REMEDY = "decided", "all looks taken", "sweep.budget used up", "no run would decide it"


@dataclass(frozen=True)
class Ending:
    """How the search for one verdict ended: what its last look found, and why it was the last."""

    axis: str
    curves: list[Curve]
    judgement: Judgement | None  # None: before the first look
    looks: int
    why: str

    def __str__(self) -> str:
        where = f"{self.curves[0].rule}, {self.curves[0].tuned} over {self.axis.replace('_', ' ')}"
        if self.judgement is None:
            return f"{where}: undecided, {self.why} before all sizes were reached"
        verdict, remedy, e = self.judgement
        slope = f"slope {format_slope(e.slope, e.slope_lo, e.slope_hi)}"
        after = f"after {pluralize(self.looks, 'look')}" + f" ({self.why})" * (self.why != DECIDED)
        return f"{where}: {verdict} {after}, " + (remedy.text if remedy else slope)


@dataclass
class Plan:
    """The runs of every curve begun so far, and those to do, largest first. `open` curves may need more once these are done.

    `found` holds the best log2 value of every curve that is bracketed or out of budget; `turns` are the curves of chains that
    are turns; `endings` are the verdicts of chains that need no more.
    """

    curves: dict[Curve, list[RunConfig]] = field(default_factory=dict)
    todo: list[RunConfig] = field(default_factory=list)
    open: list[Curve] = field(default_factory=list)
    unbracketed: list[Curve] = field(default_factory=list)
    found: dict[Curve, float] = field(default_factory=dict)
    turns: list[Curve] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def judged(self, tuned: str) -> dict[Curve, list[RunConfig]]:
        """Return the curves of a key from which verdicts are made."""
        return {c: runs for c, runs in self.curves.items() if c.tuned == tuned and c not in self.turns}

    @property
    def runs(self) -> list[RunConfig]:
        """All of them, each once though curves of several rules share those of the base size."""
        return list(dict.fromkeys(run for runs in self.curves.values() for run in runs))


def make_plan(sweep: Sweep, outcome: Outcome, seconds: Callable[[RunConfig], float] = lambda run: 0.0) -> Plan:
    """Replay the search with the results so far. Runs that `outcome` does not know are to do, largest first.

    `seconds` that runs took are read where sweep.budget is in hours.
    """
    plan, config = Plan(), sweep.config
    for chain in sweep.chains(plan.found):
        purse = Purse(sweep, outcome, seconds)
        if bracket_all(sweep, chain, outcome, plan, purse) and config.lr.adaptive and not chain.turn:
            for axis, curves in lines(sweep, chain).items():
                if not decide(sweep, axis, curves, outcome, plan, purse):
                    break  # what the next axis lacks depends on the seeds that this one has added
    todo = [run for run in plan.runs if outcome(run) is None]
    plan.todo = sorted(todo, key=lambda run: run.cost, reverse=True)
    return plan


@dataclass
class Purse:
    """What a chain may still train of sweep.budget, which is divided evenly among the chains of a sweep."""

    sweep: Sweep
    outcome: Outcome
    seconds: Callable[[RunConfig], float]
    runs: set[RunConfig] = field(default_factory=set)

    def take(self, runs: list[RunConfig]) -> bool:
        """Take these runs, all of them or none, and return whether they may be trained; what is done costs no more hours."""
        most, hours = self.sweep.budget
        new = self.runs.union(runs)
        unpaid = any(self.outcome(run) is None for run in runs) and sum(map(self.seconds, self.runs)) >= 3600 * hours
        if len(new) > most or unpaid:
            return False
        self.runs = new
        return True


def bracket_all(sweep: Sweep, chain: Chain, outcome: Outcome, plan: Plan, purse: Purse) -> bool:
    """Plan the values of every curve of a chain, each around the best of the one before; return whether none wants more."""
    lr, seeds = sweep.config.lr, sweep.config.sweep.seed
    best, at_base = None, None  # of the curve before, and of the base, which larger sizes run too, for the regret
    complete = True
    for curve in chain.curves:
        start = chain.start if best is None else [best - 1, best, best + 1, best if at_base is None else at_base]

        def runs_of(value: float, curve: Curve = curve) -> list[RunConfig]:
            return [sweep.run(curve, value, seed) for seed in seeds] if sweep.possible(curve, value) else []

        def loss(value: float, curve: Curve = curve) -> float | None:
            losses = [outcome(run) for run in runs_of(value, curve)]
            known = [x for x in losses if x is not None]
            return (float(np.mean(known)) if known else math.inf) if len(known) == len(losses) else None

        def affordable(values: list[float], wanted: int, curve: Curve = curve) -> list[float]:
            room = lr.budget - wanted if lr.adaptive else 0
            return [value for value in values[: max(0, room)] if purse.take(runs_of(value, curve))]

        if not purse.take([run for value in start for run in runs_of(value)]):
            plan.endings += [Ending(axis, list(on.values()), None, 0, BUDGET) for axis, on in lines(sweep, chain).items()]
            return False
        found = bracket(start, loss, affordable, min(HALF, lr.resolution) if chain.turn else lr.resolution)
        plan.curves[curve] = [run for value in found.wanted for run in runs_of(value)]
        plan.turns.extend([curve] * chain.turn)
        if found.best is None:
            plan.open.append(curve)
            complete = False
            if lr.adaptive:
                break  # the next size's search starts where this one ends
            continue
        plan.found[curve] = found.best
        if not found.bracketed:
            plan.unbracketed.append(curve)
        if lr.adaptive:
            best = found.best
            if sweep.is_base(curve):
                at_base = best
    return complete


def lines(sweep: Sweep, chain: Chain) -> dict[str, dict[int, Curve]]:
    """Return the curves of a chain from which each axis is judged, by size: those at the base of the other axes."""
    base, found = sweep.base, {}
    for axis in sweep.axes:
        on_axis = {
            getattr(curve, axis) or base[axis]: curve
            for curve in chain.curves
            if all(getattr(curve, other) in (None, size) for other, size in base.items() if other != axis)
        }
        if len(on_axis) > 1:
            found[axis] = on_axis
    return found


def decide(sweep: Sweep, axis: str, curves: Mapping[int, Curve], outcome: Outcome, plan: Plan, purse: Purse) -> bool:
    """Judge, and while undecided plan what would decide it, at most LOOKS times; return whether nothing more is wanted."""
    v, base = sweep.config.verdict, sweep.base[axis]
    for look in range(1, LOOKS + 1):
        tables = {size: loss_curve(plan.curves[curve], outcome) for size, curve in curves.items()}
        judgement = judge_curves(tables, base, v.slope, v.regret, ALPHA, axis)
        remedy = judgement.remedy
        more = {size: wanted(sweep, curves[size], remedy, plan) for size in remedy.sizes if size in curves} if remedy else {}
        new = {size: [run for run in runs if run not in plan.curves[curves[size]]] for size, runs in more.items()}
        why = _end(judgement, look, new, purse)
        if why:
            plan.endings.append(Ending(axis, list(curves.values()), judgement, look, why))
            return True
        for size, runs in new.items():
            plan.curves[curves[size]] += runs
        if any(outcome(run) is None for runs in new.values() for run in runs):
            plan.open += [curves[size] for size, runs in new.items() if runs]
            return False
    raise AssertionError("the last look ends the search")


def _end(judgement: Judgement, look: int, new: Mapping[int, list[RunConfig]], purse: Purse) -> str | None:
    """Return why this look is the last, or None if the search continues with these runs."""
    if judgement.verdict != "undecided":
        return DECIDED
    if not any(new.values()):
        return NO_REMEDY
    if look == LOOKS:
        return ALL_LOOKS
    return None if purse.take([run for runs in new.values() for run in runs]) else BUDGET


def wanted(sweep: Sweep, curve: Curve, remedy: Remedy, plan: Plan) -> list[RunConfig]:
    """Return the runs that a remedy wants at one size.

    A value for all seeds, or a seed at the values within an octave of the best.
    """
    seeds = sorted({run.seed for run in plan.curves[curve]})
    if remedy.kind == "lr" and remedy.log2_lr is not None:
        value = round(4 * remedy.log2_lr) / 4
        return [sweep.run(curve, value, seed) for seed in seeds if sweep.possible(curve, value)]
    if remedy.kind == "seed":
        values = sorted({run.value for run in plan.curves[curve] if abs(run.value - plan.found[curve]) <= 1})
        return [sweep.run(curve, value, seeds[-1] + 1) for value in values]
    return []


def loss_curve(runs: Sequence[RunConfig], outcome: Outcome) -> LossCurve:
    """Return the losses of one size as the estimator takes them: NaN where a run is not done, inf where it diverged."""
    losses = [math.nan if (loss := outcome(run)) is None else loss for run in runs]
    return LossCurve.of_runs([run.value for run in runs], [run.seed for run in runs], losses)


def remaining_curves(sweep: Sweep, plan: Plan) -> int:
    """Count the curves that the plan has not reached yet; of turns, which end when they do, only the one that comes next."""
    chains = list(sweep.chains(plan.found))
    curves = [curve for chain in chains for curve in chain.curves]
    if all(chain.turn for chain in chains):
        curves += [curve for name in sweep.config.sweep.tune for of in sweep.over_sizes(name, {}) for curve in of]
    return sum(curve not in plan.curves for curve in curves)
