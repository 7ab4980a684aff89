"""Laws of the verdict, on sweeps whose truth is known: what is decided, and the one thing that would decide the rest."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import sweep

from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.verdict import by_rule, curves_of, format_slope, judge, judge_curves, tabulate

LONG = np.arange(-12.0, -5.9, 0.5)


def test_drift_transfer_and_doubt():
    assert judge(sweep(0.0)).verdict == "transfers"
    drifts = judge(sweep(-0.5, grid=LONG))
    assert drifts.verdict == "drifts" and drifts.slope == pytest.approx(-0.5, abs=0.05) and drifts.reason == ""
    noisy = judge(sweep(0.0, noise=0.02, tilt=0.3, rng=np.random.default_rng(3)))
    assert noisy.verdict == "undecided" and "crosses the ±0.25 threshold" in noisy.reason
    assert judge(sweep(0.0, sizes=(2, 4, 8), axis="depth"), axis="depth").verdict == "transfers"


def test_tolerance_and_level_decide():
    points = sweep(-0.15, noise=0.004, tilt=0.05, grid=LONG, rng=np.random.default_rng(1))
    assert judge(points, tolerance=0.5).verdict == "transfers" and judge(points, tolerance=0.15).verdict == "undecided"
    assert judge(points, tolerance=0.5, alpha=1e-6).verdict == "undecided" and judge(points, tolerance=0.01).verdict == "drifts"


def test_an_optimum_beyond_the_grid_decides_on_the_side_to_which_it_drifts():
    """At width 512 the best lr is the lowest tested: where the optimum lies is not known, but that it fell far is."""
    points = sweep(-1.0, grid=np.arange(-10.5, -5.9, 0.5))
    v = judge(points)
    assert v.verdict == "drifts" and v.optima[512].open_sides == ("lower",)
    assert format_slope(v.slope, v.slope_lo, v.slope_hi).startswith("< -0.")
    near = judge(sweep(-0.25, grid=np.arange(-9.5, -5.9, 0.5)))  # control: it may lie just there
    assert near.verdict == "undecided" and near.remedy[:3] == ("lr", (256,), -10.0)
    assert "test lower lr at width 256, 512" in near.reason


def test_an_optimum_that_costs_too_much_costs_whatever_the_slope():
    """Flat in the middle and steep at last: the slope is undecided, what the base's lr costs is not."""
    points = pd.concat([sweep(best=best, sizes=(s,), grid=LONG) for s, best in ((128, -9.0), (256, -9.0), (512, -9.8))])
    v = judge(points)
    assert v.verdict == "costs" and v.regret_lo > 0.005 and v.slope_lo < -0.25 < v.slope_hi and v.reason == ""
    assert judge(points, regret_limit=0.05).verdict == "undecided"
    assert judge(sweep(-0.8, grid=LONG)).verdict == "drifts"  # which is known too, and says more


def test_regret_is_the_cost_of_the_base_optimum():
    points = sweep(0.25, noise=1e-5, seeds=3, grid=LONG)
    v = judge(points, tolerance=0.3, regret_limit=0.01)
    floor = v.optima[512].loss
    assert v.regret == pytest.approx(0.05 * 0.5**2 / floor, rel=0.05) and v.regret_lo <= v.regret <= v.regret_hi
    assert v.verdict == "transfers" and judge(points, tolerance=0.3, regret_limit=0.001).verdict == "costs"
    assert judge(points, base=256, tolerance=0.3).regret < v.regret
    down = judge(points, base=512, tolerance=0.3)  # tuned at the largest: the cost is that at the smallest
    assert down.regret == pytest.approx(0.05 * 0.5**2 / down.optima[128].loss, rel=0.05)


def test_a_cost_that_may_be_too_high_asks_for_seeds_at_its_two_sizes():
    points = sweep(0.1, noise=0.002, tilt=0.1, grid=LONG, rng=np.random.default_rng(3))
    v = judge(points, tolerance=2.0, regret_limit=0.9 * judge(points).regret)
    assert v.verdict == "undecided" and v.remedy[:2] == ("seed", (128, 512)) and "more seeds" in v.reason


def test_regret_beyond_what_finished_asks_for_that_lr():
    points = sweep(-0.3, noise=1e-4, grid=LONG)
    points.loc[(points["width"] == 512) & (points["log2_lr"] > -9.4), ["status", "loss"]] = ["diverged", np.nan]
    v = judge(points, tolerance=0.5, regret_limit=0.05)
    assert v.verdict == "undecided" and v.regret_at_least and v.remedy[:2] == ("lr", (512,))
    assert v.remedy.log2_lr == pytest.approx(-9, abs=0.01) and "at least" in v.reason


def test_doubt_asks_for_what_would_narrow_it():
    blurred = sweep(0.0, noise=1e-4, tilt=0.3, rng=np.random.default_rng(3))
    v = judge(blurred)
    assert v.verdict == "undecided" and v.remedy.kind == "seed" and set(v.remedy.sizes) == {128, 512}
    assert "more seeds (now 2), first at width 128, 512" in v.reason
    exact = judge(sweep(-0.25, noise=2e-4, grid=LONG))
    assert exact.remedy.kind == "size" and "a longer range of width than ×4" in exact.reason


def test_a_hidden_side_asks_for_points_between():
    """The lr above the best diverges, or is a wall, an octave away: the shape of the bowl is not seen."""
    octaves = np.arange(-12.0, -5.9)
    points = sweep(0.0, sizes=(64, 128, 256), grid=octaves, best=-8.9, noise=1e-4)
    points.loc[(points["log2_lr"] > -9) & (points["width"] == 128), ["status", "loss"]] = ["diverged", np.nan]
    v = judge(points)
    assert v.verdict == "undecided" and v.remedy[:3] == ("lr", (128,), -8.5)
    assert "too few lrs near the optimum at width 128" in v.reason
    steep = sweep(0.1, sizes=(64, 128, 256), grid=octaves, best=-8.9, noise=1e-4, curvature=0.3)
    v = judge(steep, tolerance=0.1)
    assert v.remedy.kind == "lr" and v.remedy.sizes[0] in (64, 256) and "the shape of the curve" in v.reason
    assert judge(sweep(0.1, sizes=(64, 128, 256), best=-8.9, noise=1e-4), tolerance=0.1).remedy.kind != "lr"  # half octaves


def test_missing_runs_are_counted_and_too_few_sizes_decide_nothing():
    points = sweep(0.0)
    points.loc[points.index[:3], ["status", "loss"]] = ["missing", np.nan]
    points.loc[points.index[3:4], ["status", "loss"]] = ["diverged", np.nan]
    verdict = judge(points)
    assert verdict.counts == {"done": 26, "diverged": 1, "missing": 3}
    two = judge(sweep(0.0, sizes=(128, 256)))
    assert two.verdict == "undecided" and "only 2 of the 3 widths" in two.reason and np.isfinite(two.slope)
    assert two.remedy.kind == "size"
    assert judge(sweep(-1.0, sizes=(128, 256), grid=LONG)).verdict == "undecided"
    nothing = judge(sweep(0.0).assign(status="missing", loss=np.nan))
    assert nothing.verdict == "undecided" and "no lr finished at width 128, 256, 512" in nothing.reason
    assert "no runs at the base width 64" in judge(sweep(0.0), base=64).reason


def test_larger_is_better_is_reported():
    assert judge(sweep()).larger_is_better is True
    worse = sweep()
    worse.loc[worse["width"] == 512, "loss"] += 0.5
    assert judge(worse).larger_is_better is False


def test_one_seed_says_so():
    assert judge(sweep(seeds=1)).basis == "1 seed" and judge(sweep(seeds=2)).basis == "2 seeds"
    points = sweep(seeds=3)
    assert judge(points[(points["width"] == 512) | (points["seed"] < 2)]).basis == "2 to 3 seeds"


def test_rows_in_any_order_give_the_same_numbers():
    points = sweep(noise=0.003)
    one, two = judge(points), judge(points.sample(frac=1, random_state=3))
    assert (one.slope, one.slope_lo, one.regret_hi) == (two.slope, two.slope_lo, two.regret_hi)


def test_two_runs_in_one_cell_are_refused():
    with pytest.raises(ValueError, match="one size and one rule"):
        judge(pd.concat([sweep(), sweep()]))


def test_a_table_becomes_a_curve():
    points = sweep(sizes=(64,), seeds=2, grid=np.array([-9.0, -8.0, -7.0]))
    points.loc[0, ["status", "loss"]] = ["diverged", np.nan]
    points.loc[1, ["status", "loss"]] = ["missing", np.nan]
    c = tabulate(points.iloc[::-1])
    assert isinstance(c, LossCurve) and c.log2_lrs.tolist() == [-9, -8, -7] and c.losses_SL.shape == (2, 3)
    assert c.losses_SL[0, 0] == np.inf and np.isnan(c.losses_SL[0, 1]) and np.isfinite(c.losses_SL[1]).all()


def test_a_judgement_of_curves_is_that_of_the_table_and_needs_no_pandas():
    points = sweep(-0.1, grid=LONG)
    v, judged = judge(points), judge_curves(curves_of(points, "width"), 128)
    assert (judged.verdict, judged.estimate.slope, judged.remedy) == (v.verdict, v.slope, v.remedy)
    code = "import sys, spectral_mup.analysis.verdict; print(sorted({'pandas', 'torch', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_rules_keep_their_order_and_other_axes_enter_the_name():
    points = pd.concat([sweep().assign(rule=r, family="f", optimizer=o) for o in ("adamw", "muon") for r in ("z", "a")])
    assert list(by_rule(points)) == ["adamw z", "adamw a", "muon z", "muon a"]
    assert list(by_rule(points[points["optimizer"] == "muon"])) == ["z", "a"]
