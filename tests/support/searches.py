"""Searches over losses that nobody trained."""

import functools
import math

import numpy as np

from spectral_mup.analysis.bowl import bowl
from spectral_mup.runs.sweep import Sweep
from spectral_mup.search.plan import Plan, make_plan

WIDTHS = ("sweep.width=[32,64,128]", "sweep.seed=[0,1]")


def simulated(
    slope: float = 0.0, noise: float = 0.0, tilt: float = 0.0, a: float = 0.05, drifts=("standard",), diverges: float = 9.0
):
    """Loss of a run: a bowl whose optimum moves by `slope` a doubling, for `drifts` by one octave less, with noise that is the
    run's own."""

    def loss(run) -> float:
        own, of_seed = np.random.default_rng(int(run.run_id, 16)), np.random.default_rng(run.seed * 10_000 + run.width)
        doublings = math.log2(run.width / 32) + math.log2(run.depth / 2)
        x = run.value + 6.3 - (slope - (run.rule.name in drifts)) * doublings
        if x > diverges:
            return math.inf
        return 2 + a * float(bowl(x, 0.3)) + tilt * of_seed.standard_normal() * x + noise * own.standard_normal()

    return loss


def finish(sweep: Sweep, loss, choose=lambda todo: todo) -> tuple[Plan, dict[str, float]]:
    """Train what the plan wants, as `choose` picks from it, until it wants nothing."""
    known: dict[str, float] = {}
    outcome = functools.partial(lambda known, run: known.get(run.run_id), known)
    while todo := make_plan(sweep, outcome).todo:
        known |= {run.run_id: loss(run) for run in choose(todo)}
    return make_plan(sweep, outcome), known
