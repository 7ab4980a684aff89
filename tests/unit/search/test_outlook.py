"""Laws of what is still to come of a search: it holds at every stage, and is nothing once the search has ended."""

import functools
import math
from types import SimpleNamespace
from typing import Any

import pytest
from support.searches import WIDTHS, simulated

from spectral_mup.cli.outlook import still_to_train
from spectral_mup.cluster.durations import Durations
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.curve_state import UNBRACKETED, curve_states
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


def test_a_budget_of_runs_is_the_most_that_is_said(tiny):
    """Those that are done count, what the plan lists stays, and once it is reached nothing comes."""
    loss = simulated(0.2, noise=0.02, tilt=0.01)
    free = next(stages(open_sweep(tiny(*WIDTHS)), loss))
    seen = [*stages(open_sweep(tiny(*WIDTHS, "sweep.budget=60")), loss, at_once=1000)]
    assert free[0] < 60 < free[1] < free[2] and {counts[2] for counts in seen[:-1]} == {60} and seen[0][0] == free[0]
    assert len({*seen[-1]}) == 1 and seen[-1][0] <= 60
    assert [*stages(open_sweep(tiny(*WIDTHS, "sweep.budget=10")), loss)] == [[0, 0, 0]]  # not even the first curve


@pytest.mark.parametrize("hours, cut", [(9.0, False), (0.01, True), (0.0001, True)])
def test_a_budget_of_hours_cuts_what_follows_to_what_is_left(tiny, hours, cut):
    """But not what the plan lists, which is trained also where it takes longer."""
    sweep = open_sweep(tiny(*WIDTHS, f"sweep.budget={hours}h"))
    durations, plan = Durations("cpu"), make_plan(sweep, lambda run: None)
    context: Any = SimpleNamespace(
        sweep=sweep, plan=plan, config=sweep.config, results=SimpleNamespace(seconds=lambda run: 0.0)
    )
    listed, left = durations.total([(run, 1.0) for run in plan.todo]), 3600 * hours
    found = [durations.total(runs) for runs in still_to_train(context, durations)]
    free = [durations.total(runs) for runs in outlook(sweep, plan)]
    assert found == pytest.approx([min(seconds, max(left, listed)) for seconds in free])
    assert (found[2] < free[2]) == cut and listed < free[0]


def test_a_search_that_found_nothing_but_divergence_is_shown(tiny):
    """Down to values that the key cannot have, of which there are no runs."""
    tune = "sweep.tune={optimizer.sophia.args.hessian_interval: [0,1,2]}"
    sweep = open_sweep(tiny("optimizer=sophia", tune, "sweep.lr=[-6]"))
    plan = make_plan(sweep, lambda run: math.inf)
    assert min(plan.found.values()) < 0  # an interval below 1
    states = curve_states(plan, lambda run: math.inf)
    assert states and all(
        state.best is None and state.state == UNBRACKETED and state.diverged == state.runs for state in states
    )


def test_of_a_fixed_grid_it_is_what_is_to_do(tiny):
    sweep = open_sweep(tiny(*WIDTHS, "lr.adaptive=false"))
    plan = make_plan(sweep, lambda run: None)
    assert outlook(sweep, plan).counts == [len(plan.todo)] * 3
