"""Laws of the optimum and the verdict, on curves whose truth is known, each with a control that must come out otherwise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.analysis_data import sweep

from spectral_mup.analysis import optimum as module
from spectral_mup.analysis.optimum import find_optimum, tabulate
from spectral_mup.analysis.stats import fit_line, log_slope, satterthwaite, t975
from spectral_mup.analysis.verdict import by_rule, judge


def optimum(points, **options):
    curve = tabulate(points)
    return curve and find_optimum(curve, **options)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(("noise", "tilt"), [(0.004, 0.0), (0.001, 0.1)])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, noise, tilt):
    rng = np.random.default_rng(7)
    vertex, slope = [], []
    for _ in range(80):
        best, true = -9 + rng.uniform(-0.1, 0.1), rng.uniform(-0.15, 0.15)
        points = sweep(true, sizes=(64, 128, 256), seeds=seeds, noise=noise, tilt=tilt, best=best, rng=rng)
        verdict = judge(points, n_boot=300)
        slope.append(verdict.slope_lo <= true <= verdict.slope_hi)
        at = zip(verdict.optima.values(), (best, best + true, best + 2 * true), strict=True)
        vertex += [o is not None and o.lo <= true_vertex <= o.hi for o, true_vertex in at]
    assert np.mean(vertex) >= 0.88 and np.mean(slope) >= 0.88


def test_percentiles_of_two_seeds_would_not_cover():
    """Control: the interval without Student's t misses the truth far too often, so the law above can fail."""
    rng, covered = np.random.default_rng(7), []
    for _ in range(100):
        o = optimum(sweep(sizes=(64,), noise=0.001, tilt=0.1, rng=rng), n_boot=300)
        lo, hi = np.quantile(o.draws.samples, [0.025, 0.975])
        covered.append(lo <= -9 <= hi)
    assert np.mean(covered) < 0.85


def test_student_quantiles():
    for dof, quantile in ((1, 12.706), (1.5, 6.017), (4, 2.776), (6, 2.447), (12, 2.179), (30, 2.042), (np.inf, 1.960)):
        assert t975(dof) == pytest.approx(quantile, rel=1e-3)
    assert np.isnan(t975(0))
    assert satterthwaite([1, 1], [3, 3]) == pytest.approx(6)
    assert satterthwaite([1, 0], [3, 0]) == pytest.approx(3)


def test_slopes_have_the_interval_of_a_reference_implementation():
    rng = np.random.default_rng(0)
    x = np.repeat([6.0, 7.0, 8.0, 9.0], 2)
    y = 0.3 * x + rng.normal(0, 0.1, 8)
    expected, *_, stderr = stats.linregress(x, y)
    slope, variance, dof = fit_line(x, y)
    assert (slope, variance**0.5, dof) == pytest.approx((expected, stderr, 6))
    half = stats.t.ppf(0.975, 6) * stderr
    assert log_slope(2**x, 2**y) == pytest.approx((slope, slope - half, slope + half))
    assert np.isnan(log_slope([64, 128], [0.0, 1.0])).all() and np.isnan(log_slope([64, 64], [1.0, 2.0])).all()
    assert np.isnan(log_slope([64, 128], [1.0, 2.0])[1])  # two points have a slope and no interval


def test_the_bootstrap_is_drawn_once_a_size(monkeypatch):
    drawn, bootstrap = [], module._bootstrap
    monkeypatch.setattr(module, "_bootstrap", lambda curve, *rest: drawn.append(curve) or bootstrap(curve, *rest))
    judge(sweep(0.0))
    assert len(drawn) == 3


def test_vertex_lies_between_the_points():
    o = optimum(sweep(sizes=(64,), noise=0, best=-9.2, grid=np.arange(-12.0, -6, 1)))
    assert o is not None and o.bracketed
    assert o.log2_lr == pytest.approx(-9.2) and o.curve.grid_log2_lr == -9
    assert o.loss_at(-9.7)[0] == pytest.approx(o.loss + 0.05 * 0.25)
    assert o.loss_at(-10.5)[0] == pytest.approx(o.curve.mean_L[1:3].mean())  # outside the window: a straight line
    assert not o.loss_at(-10.5)[1] and o.loss_at(-13)[1] and o.loss_at(-13)[0] == o.curve.mean_L[0]


def test_same_seed_same_numbers():
    points = sweep(sizes=(64,))
    one, two, other = (optimum(points, seed=s) for s in (0, 0, 1))
    assert (one.lo, one.hi) == (two.lo, two.hi) != (other.lo, other.hi)
    shuffled = optimum(points.sample(frac=1, random_state=3))
    assert (one.lo, one.log2_lr) == (shuffled.lo, shuffled.log2_lr)


def test_drift_transfer_and_doubt():
    assert judge(sweep(0.0)).verdict == "transfers"
    drifts = judge(sweep(-0.5, grid=np.arange(-12.0, -7.9, 0.5)))
    assert drifts.verdict == "drifts" and drifts.slope == pytest.approx(-0.5, abs=0.05) and drifts.reason == ""
    noisy = judge(sweep(0.0, noise=0.02, rng=np.random.default_rng(3)))
    assert noisy.verdict == "undecided" and "crosses the ±0.25 threshold" in noisy.reason
    assert judge(sweep(0.0, sizes=(2, 4, 8), axis="depth"), axis="depth").verdict == "transfers"


def test_doubt_names_its_larger_source():
    shifted_seeds = judge(sweep(0.0, noise=1e-4, tilt=0.3, rng=np.random.default_rng(3)))
    assert shifted_seeds.verdict == "undecided" and "more seeds (now 2)" in shifted_seeds.reason
    one_seed = judge(sweep(0.0, noise=0.02, seeds=1, rng=np.random.default_rng(5)))
    assert one_seed.verdict == "undecided" and "more lr points" in one_seed.reason


def test_edge_is_not_bracketed_and_names_the_width():
    points = sweep(-0.5)  # at width 512 the vertex lies on the lowest lr
    verdict = judge(points)
    assert verdict.verdict == "undecided" and "test lower lr at width 512" in verdict.reason
    assert [o.bracketed for o in verdict.optima.values()] == [True, True, False]


def test_diverged_neighbour_brackets_and_a_missing_one_does_not():
    points = sweep(sizes=(64,), grid=np.arange(-11.0, -8.9, 0.5), noise=1e-4)  # best at the highest lr, -9
    assert optimum(points).open_sides == ("higher",)
    for status, bracketed in (("diverged", True), ("missing", False)):
        wall = pd.DataFrame([{"width": 64, "log2_lr": -8.5, "seed": 0, "status": status, "rule": "r"}])
        o = optimum(pd.concat([points, wall], ignore_index=True))
        assert o.bracketed is bracketed
        assert -9.5 <= o.log2_lr <= -8.5


def test_partly_diverged_lr_is_not_averaged():
    points = sweep(sizes=(64,), seeds=3, noise=1e-4)
    best = (points["log2_lr"] == -9) & (points["seed"] == 1)
    points.loc[best, ["status", "loss"]] = ["diverged", np.nan]
    o = optimum(points)
    assert -9 not in o.curve.log2_lrs and o.curve.n_seeds == 3


def test_one_seed_says_so():
    one, two = judge(sweep(seeds=1)), judge(sweep(seeds=2))
    assert one.basis == "fit" and two.basis == "seeds and fit"
    assert np.isnan(one.optima[128].curve.loss_sd) and two.optima[128].curve.loss_sd > 0


def test_three_points_of_one_seed_know_only_their_bracket():
    coarse = np.arange(-13.0, -4, 2)
    o = optimum(sweep(sizes=(64,), seeds=1, grid=coarse))
    assert (o.basis, o.lo, o.hi) == ("bracket", -11, -7)
    assert judge(sweep(seeds=1, grid=coarse)).verdict == "undecided"
    octaves = pd.concat([sweep(seeds=1, grid=np.arange(-12.0, -6)), sweep(sizes=(1024,), seeds=1)])
    assert judge(octaves).optima[128].basis == "fit"  # residuals borrowed from width 1024, which has five points


def test_wall_is_kept_out_of_the_parabola():
    points = sweep(sizes=(64,), noise=1e-4)
    points.loc[points["log2_lr"] == -8, "loss"] += 1.5
    o = optimum(points)
    assert o.curve.n_points == 4 and o.log2_lr == pytest.approx(-9, abs=0.02)


def test_seeds_that_hardly_ran_are_left_out():
    points = sweep(sizes=(64,), seeds=3)
    o = optimum(points[(points["seed"] < 2) | (points["log2_lr"] == -9)])
    assert o.curve.n_seeds == 2 and o.curve.n_points == 5
    assert optimum(points.assign(status="diverged", loss=np.nan)) is None


def test_regret_is_the_cost_of_the_base_optimum():
    points = sweep(0.25, noise=1e-5, seeds=3, grid=np.arange(-10.5, -6.9, 0.5))
    verdict = judge(points, tolerance=0.3)
    floor = verdict.optima[512].loss
    assert verdict.regret == pytest.approx(0.05 * 0.5**2 / floor, rel=0.05) and not verdict.regret_at_least
    assert verdict.regret_lo <= verdict.regret <= verdict.regret_hi
    assert verdict.verdict == "transfers"
    dear = judge(points, tolerance=0.3, regret_limit=0.001)  # control: the same slope, a stricter limit
    assert dear.verdict == "undecided" and "costs" in dear.reason
    assert judge(points, base=256, tolerance=0.3).regret < verdict.regret
    down = judge(points, base=512, tolerance=0.3)  # tuned at the largest: the cost is that at the smallest
    assert down.regret == pytest.approx(0.05 * 0.5**2 / down.optima[128].loss, rel=0.05)


def test_regret_beyond_what_finished_is_a_lower_bound():
    points = sweep(-0.5, noise=1e-4, grid=np.arange(-12.0, -7.9, 0.5))
    wall = (points["width"] == 512) & (points["log2_lr"] > -9.5)
    points.loc[wall, ["status", "loss"]] = ["diverged", np.nan]
    assert judge(points).regret_at_least and judge(points).regret > 0


def test_missing_runs_are_counted_and_too_few_sizes_decide_nothing():
    points = sweep(0.0)
    points.loc[points.index[:3], ["status", "loss"]] = ["missing", np.nan]
    points.loc[points.index[3:4], ["status", "loss"]] = ["diverged", np.nan]
    verdict = judge(points)
    assert verdict.counts == {"done": 26, "diverged": 1, "missing": 3}
    two = judge(sweep(0.0, sizes=(128, 256)))
    assert two.verdict == "undecided" and "only 2 of the 3 widths" in two.reason and np.isfinite(two.slope)
    nothing = judge(sweep(0.0).assign(status="missing", loss=np.nan))
    assert nothing.verdict == "undecided" and "no lr finished at width 128, 256, 512" in nothing.reason
    assert "no runs at the base width 64" in judge(sweep(0.0), base=64).reason


def test_larger_is_better_is_reported():
    assert judge(sweep()).larger_is_better is True
    worse = sweep()
    worse.loc[worse["width"] == 512, "loss"] += 0.5
    assert judge(worse).larger_is_better is False


def test_two_runs_in_one_cell_are_refused():
    with pytest.raises(ValueError, match="one size and one rule"):
        judge(pd.concat([sweep(), sweep()]))


def test_rules_keep_their_order_and_other_axes_enter_the_name():
    points = pd.concat([sweep().assign(rule=r, family="f", optimizer=o) for o in ("adamw", "muon") for r in ("z", "a")])
    assert list(by_rule(points)) == ["adamw z", "adamw a", "muon z", "muon a"]
    assert list(by_rule(points[points["optimizer"] == "muon"])) == ["z", "a"]
