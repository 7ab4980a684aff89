"""Laws of the plan: a function of config and results alone, which ends at a verdict, or at its budget, and says why."""

import random

import numpy as np
import pytest
from scipy import stats
from support.searches import WIDTHS, finish, simulated

from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import Sweep, open_sweep
from spectral_mup.search import plan as plans
from spectral_mup.search.plan import ALPHA, LOOKS, make_plan


@pytest.mark.parametrize("more", [[], ["sweep.budget=60"], ["sweep.depth=[2,3]"]], ids=["alone", "budget", "joint"])
def test_it_does_not_depend_on_the_order_of_results(tiny, more):
    """Runs come one by one, in random order, and noisy enough for seeds to be added; in the end they are always the same."""
    sweep, loss = open_sweep(tiny(*WIDTHS, *more)), simulated(0.1, noise=0.02, tilt=0.01)
    ends = []
    for order in range(3):
        rng = random.Random(order)
        plan, known = finish(sweep, loss, lambda todo, rng=rng: [rng.choice(todo)])
        ends.append({run.run_id for run in plan.runs})
        assert ends[-1] == set(known) and not plan.open
    assert all(end == ends[0] for end in ends)
    assert more or any(run.seed > 1 for run in plan.runs)


def test_it_goes_on_from_any_state_to_the_same_runs(tiny):
    """A launcher that dies at any moment leaves a subset of results; the next one ends where an unbroken one does."""
    sweep, loss, rng = open_sweep(tiny(*WIDTHS)), simulated(0.1, noise=0.02, tilt=0.01), random.Random(0)
    whole, known = finish(sweep, loss)
    for _ in range(10):
        kept = {run_id: known[run_id] for run_id in known if rng.random() < rng.random()}
        while todo := make_plan(sweep, lambda run: kept.get(run.run_id)).todo:  # noqa: B023
            kept |= {run.run_id: loss(run) for run in todo}
        assert kept == known
    assert not whole.open


def test_it_ends_at_a_verdict_or_after_its_looks(tiny):
    """Clear curves are decided at the first look; a slope on the threshold is not; what is far off drifts."""
    plan, _ = finish(open_sweep(tiny(*WIDTHS)), simulated(noise=0.001))
    by_rule = {end.curves[0].rule: end for end in plan.endings}
    assert {rule: (end.judgement.verdict, end.looks, end.why) for rule, end in by_rule.items()} == {
        "spectral": ("transfers", 1, "decided"), "standard": ("drifts", 1, "decided"),
    }  # fmt: skip
    assert {run.seed for run in plan.runs} == {0, 1} and "spectral, lr over width: transfers after 1 look" in str(
        by_rule["spectral"]
    )

    plan, _ = finish(open_sweep(tiny(*WIDTHS, "rule=[spectral]")), simulated(-0.25, noise=0.02, tilt=0.01, a=0.02))
    (end,) = plan.endings
    assert end.judgement.verdict == "undecided" and end.looks == plans.LOOKS and end.why == plans.ALL_LOOKS
    seeds = {width: len({run.seed for run in plan.curves[Curve("spectral", width, 2)]}) for width in (32, 64, 128)}
    assert seeds[32] > 2 and seeds[128] > 2  # the sizes at the ends weigh most


def test_added_seeds_are_trained_within_an_octave_of_the_best(tiny):
    plan, _ = finish(open_sweep(tiny(*WIDTHS, "rule=[spectral]")), simulated(noise=0.02, tilt=0.02))
    added = [run for run in plan.runs if run.seed > 1]
    assert added and all(abs(run.value - plan.found[Curve("spectral", run.width, 2)]) <= 1 for run in added)


def test_two_sizes_get_no_further_seeds(tiny):
    plan, _ = finish(open_sweep(tiny("sweep.seed=[0,1]", "rule=[spectral]")), simulated(noise=0.02))
    assert {run.seed for run in plan.runs} == {0, 1} and plan.endings[0].why == plans.NO_REMEDY


def test_a_budget_of_runs_is_never_exceeded(tiny):
    loss, whole = simulated(noise=0.02, tilt=0.02, a=0.02), {}
    for runs in (8, 20, 30, 1000):
        plan, known = finish(open_sweep(tiny(*WIDTHS, "rule=[spectral]", f"sweep.budget={runs}")), loss)
        assert len(known) <= runs
        whole[runs] = len(known), [end.why for end in plan.endings]
    assert whole[8][1] == [plans.BUDGET] and whole[30][1] == [plans.BUDGET] and whole[1000][0] > 30


def test_a_budget_of_hours_starts_nothing_once_it_is_used_up(tiny):
    sweep, loss, known = open_sweep(tiny(*WIDTHS, "rule=[spectral]", "sweep.budget=0.5h")), simulated(noise=0.02, tilt=0.02), {}
    while todo := make_plan(sweep, lambda run: known.get(run.run_id), lambda run: 100.0 * (run.run_id in known)).todo:
        known[todo[0].run_id] = loss(todo[0])
    assert 18 <= len(known) <= 18 + 10  # 1800 s of 100 s each, and the values that had been asked for together


def test_sizes_above_a_base_in_the_middle_run_its_best_lr(tiny):
    sweep = open_sweep(tiny("sweep.width=[32,64,128,256]", "sweep.base_width=64", "sweep.seed=[0]"))
    plan, _ = finish(sweep, simulated(slope=-2, drifts=()))
    at_base = plan.found[Curve("standard", 64, 2)]
    largest = {run.log2_lr for run in plan.curves[Curve("standard", 256, 2)]}
    assert at_base in largest and plan.found[Curve("standard", 32, 2)] not in largest


def test_diverged_runs_bracket_and_do_not_stop_the_search(tiny):
    plan, _ = finish(open_sweep(tiny(*WIDTHS, "rule=[spectral]")), simulated(noise=0.001, diverges=1.2))
    assert plan.endings[0].judgement.verdict == "transfers" and not plan.unbracketed


def test_a_fixed_grid_is_trained_as_given_and_not_judged(tiny):
    plan, known = finish(open_sweep(tiny(*WIDTHS, "lr.adaptive=false")), simulated(noise=0.05))
    assert len(known) == 3 * 2 * (1 + 2 * 2) and not plan.endings


def test_the_default_sweep_shares_its_base_runs_between_rules():
    sweep = Sweep(load_config([]), "text")
    plan, _ = finish(sweep, simulated(noise=0.001))
    by_rule = sum(len(runs) for runs in plan.curves.values())
    assert by_rule - len(plan.runs) == len(plan.curves[Curve("spectral", 64, 2)]) == 10


def test_all_looks_together_err_as_often_as_one_look_at_five_percent():
    """Sums of a normal draw a look, each judged at ALPHA (Pocock 1977)."""
    steps = np.random.default_rng(0).standard_normal((40_000, LOOKS))
    z = steps.cumsum(axis=1) / np.sqrt(np.arange(1, LOOKS + 1))
    erred = (np.abs(z) > stats.norm.isf(ALPHA / 2)).any(axis=1)
    assert erred.mean() == pytest.approx(0.05, abs=0.004)  # three standard errors, and ALPHA is rounded
