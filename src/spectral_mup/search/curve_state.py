"""How far the search along each curve is."""

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import Outcome
from spectral_mup.search.plan import Plan

BRACKETED, UNBRACKETED, REFINING, SEARCHING = "bracketed", "not bracketed", "refining", "searching"


@dataclass(frozen=True)
class CurveState:
    """The runs of a curve that it wants so far, and the best of its log2 values, with the mean loss of the seeds there.

    `state`: searching, refining (something worse is known on both sides), bracketed, or not bracketed when it has ended.
    """

    curve: Curve
    done: int
    runs: int
    diverged: int
    best: float | None  # None: no run has finished
    loss: float
    state: str

    @property
    def ended(self) -> bool:
        return self.state in (BRACKETED, UNBRACKETED)

    def __str__(self) -> str:
        said = f"{self.curve}: {self.state}"
        return said if self.best is None else f"{said}, best {self.curve.tuned} 2^{self.best:g}, loss {self.loss:.4f}"


def curve_states(plan: Plan, outcome: Outcome) -> list[CurveState]:
    """Return a state per curve that the plan has begun, in its order."""
    found = []
    for curve, runs in plan.curves.items():
        losses: defaultdict[float, list[float]] = defaultdict(list)
        for run in runs:
            if (loss := outcome(run)) is not None:
                losses[run.value].append(loss)
        means = {value: fmean(of_seeds) for value, of_seeds in losses.items()}
        finite = [value for value, loss in means.items() if math.isfinite(loss)]
        best = plan.found.get(curve, min(finite, key=lambda value: means[value], default=None))  # noqa: B023
        if curve in plan.found:
            state = UNBRACKETED if curve in plan.unbracketed else BRACKETED
        else:
            state = REFINING if best is not None and min(means) < best < max(means) else SEARCHING
        known = [loss for of_seeds in losses.values() for loss in of_seeds]
        loss = math.nan if best is None else means.get(best, math.nan)  # a value that the key cannot have has no runs
        diverged = sum(map(math.isinf, known))
        found.append(CurveState(curve, len(known), len(runs), diverged, best if finite else None, loss, state))
    return found
