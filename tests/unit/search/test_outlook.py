"""Laws of what is still to come of a search: it holds at every stage, and is nothing once the search has ended."""

import functools

import pytest
from support.searches import WIDTHS, simulated

from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.outlook import outlook
from spectral_mup.search.plan import make_plan

TURNS = ("optimizer=muon", "sweep.tune=[lr,optimizer.adamw.lr]")
CASES = [(0.0, 0.0, ()), (0.02, 0.2, ()), (0.05, -0.25, ()), (0.02, 0.2, TURNS), (0.02, 0.2, ("sweep.budget=60",))]


def stages(sweep, loss, at_once: int = 4):
    """The outlook in all, runs that are done included, from nothing done to the end: some runs at a time."""
    known: dict[str, float] = {}
    outcome = functools.partial(lambda known, run: known.get(run.run_id), known)
    while True:
        plan = make_plan(sweep, outcome)
        yield [len(known) + n for n in outlook(sweep, plan).counts]
        if not plan.todo:
            return
        known |= {run.run_id: loss(run) for run in plan.todo[:at_once]}


@pytest.mark.parametrize("noise, slope, more", CASES)
def test_it_holds_from_the_first_run_to_the_last(tiny, noise, slope, more):
    """No search takes fewer runs than the least that was said at its start, none ever more than the most."""
    seen = list(stages(open_sweep(tiny(*WIDTHS, *more)), simulated(slope, noise=noise, tilt=noise / 2)))
    least, usual, most = zip(*seen, strict=True)
    assert least[-1] == usual[-1] == most[-1] == (end := least[-1])
    assert least[0] <= end and all(a <= b <= c for a, b, c in seen) and all(n >= end for n in most)


def test_it_narrows_and_says_more_than_the_plan_alone(tiny):
    """Half-way the plan lists a part of what is to come, and what comes as a rule is within a third of what came."""
    sweep, loss = open_sweep(tiny(*WIDTHS)), simulated(0.2, noise=0.02, tilt=0.01)
    seen = list(stages(sweep, loss))
    half = seen[len(seen) // 2]
    end, start = seen[-1][0], seen[0]
    assert half[1] - half[0] < start[1] - start[0] and abs(half[1] - end) < end / 3 and half[0] <= end


def test_of_a_fixed_grid_it_is_what_is_to_do(tiny):
    sweep = open_sweep(tiny(*WIDTHS, "lr.adaptive=false"))
    plan = make_plan(sweep, lambda run: None)
    assert outlook(sweep, plan).counts == [len(plan.todo)] * 3
