"""Laws of the optimum and the slope, on curves whose truth is known, each with a control that must come out otherwise."""

import numpy as np
import pytest
from scipy import stats

from spectral_mup.analysis.bowl import bowl, find_optima
from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.optimum import estimate
from spectral_mup.analysis.stats import fit_line, log_slope, satterthwaite, t_quantile

OCTAVES, HALVES = np.arange(-12.0, -5.9), np.arange(-11.0, -6.9, 0.5)
SIZES = (64, 128, 256)


def curve(best=-9.0, *, skew=0.0, seeds=2, noise=0.0, tilt=0.0, grid=HALVES, curvature=0.05, floor=3.0, rng=None):
    """Bowls with known optimum: floor + level of the seed + curvature·g_k(x - best) + tilt of the seed·x + noise (nats)."""
    rng = rng or np.random.default_rng(0)
    level_S, tilt_S = rng.normal(0, 0.02, seeds), rng.normal(0, tilt, seeds)
    losses = floor + level_S[:, None] + curvature * bowl(grid - best, skew) + tilt_S[:, None] * (grid - best)
    return LossCurve(grid, losses + rng.normal(0, noise, losses.shape))


def curves(slope=0.0, best=-9.0, sizes=SIZES, **options):
    rng = options.pop("rng", None) or np.random.default_rng(0)
    at = np.log2(np.array(sizes) / sizes[0])
    return {s: curve(best + slope * x, floor=3 - 0.1 * x, rng=rng, **options) for s, x in zip(sizes, at, strict=True)}


def changed(c, cells):
    losses_SL = c.losses_SL.copy()
    for (seed, lr), loss in cells.items():
        losses_SL[seed, c.log2_lrs == lr] = loss
    return LossCurve(c.log2_lrs, losses_SL)


def numbers(e):
    own = [(o.log2_lr, o.lo, o.hi, o.curvature) for o in e.optima.values()]
    return np.array([e.slope, e.slope_lo, e.slope_hi, *np.ravel(own)])


# --- exact where the truth is a bowl -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [0.0, 1.0, -1.5])
@pytest.mark.parametrize("slope", [0.0, -0.2])
def test_a_bowl_without_noise_is_found_exactly(skew, slope):
    e = estimate(curves(slope, -9.2, skew=skew), 64)
    assert e.slope == pytest.approx(slope, abs=1e-4) and e.slope_hi - e.slope_lo < 1e-3
    for j, o in enumerate(e.optima.values()):
        assert (o.log2_lr, o.curvature, o.skew) == pytest.approx((-9.2 + slope * j, 0.05, skew), abs=1e-3)
        assert o.seeds == pytest.approx([o.log2_lr] * 2, abs=1e-3) and o.bracketed and not e.skews_differ
        cost = float(o.loss_at(o.log2_lr + 0.4)[0] - o.loss)
        assert cost == pytest.approx(0.05 * bowl(0.4, skew), rel=1e-2)
    cost = 0.05 * bowl(-2 * slope, skew) / e.optima[256].loss
    assert e.regret == pytest.approx(cost, abs=1e-5) and e.regret_lo - 1e-6 <= cost <= e.regret_hi + 1e-6
    assert e.predict(1024)[0] == pytest.approx(-9.2 + 4 * slope, abs=1e-3)


def test_a_tilted_seed_has_its_own_optimum():
    """A tilt t moves the minimum of curvature·x² by -t/2·curvature."""
    rng = np.random.default_rng(1)
    o = find_optima({64: curve(tilt=0.01, rng=rng)})[0][64]
    rng = np.random.default_rng(1)
    rng.normal(0, 0.02, 2)
    assert o.seeds == pytest.approx(-9 - rng.normal(0, 0.01, 2) / 0.1, abs=1e-3)


def test_skews_that_differ_are_seen():
    rng = np.random.default_rng(0)
    same = {s: curve(skew=1.0, noise=1e-3, seeds=3, rng=rng) for s in SIZES}
    other = {s: curve(skew=k, noise=1e-3, seeds=3, rng=rng) for s, k in zip(SIZES, (-1.5, 0.0, 1.5), strict=True)}
    assert not estimate(same, 64).skews_differ
    found = estimate(other, 64)
    assert found.skews_differ and [o.skew for o in found.optima.values()] == pytest.approx([-1.5, 0, 1.5], abs=0.3)
    assert found.slope == pytest.approx(0, abs=0.02)


# --- what must not matter ----------------------------------------------------------------------------------------------


def noisy(**options):
    return curves(-0.1, noise=0.003, tilt=0.003, skew=0.5, seeds=3, rng=np.random.default_rng(4), **options)


def test_a_shift_of_all_lrs_shifts_the_optima_alone():
    e, moved = (estimate({s: LossCurve(c.log2_lrs + by, c.losses_SL) for s, c in noisy().items()}, 64) for by in (0, 5))
    assert (e.slope, e.slope_lo, e.regret, e.regret_hi) == pytest.approx(
        (moved.slope, moved.slope_lo, moved.regret, moved.regret_hi), abs=1e-9
    )
    assert [o.log2_lr + 5 for o in e.optima.values()] == pytest.approx([o.log2_lr for o in moved.optima.values()])


def test_the_level_of_a_seed_does_not_matter():
    """Within the 5 % that choose the window, which is of the mean's level; also where the seed lacks some lrs."""
    levels = np.array([[0.0], [0.02], [-0.02]])
    for cells in ({}, {(0, -7.0): np.nan, (0, -10.0): np.nan, (2, -8.5): np.inf}):
        table = {s: changed(c, cells) for s, c in noisy().items()}
        raised = {s: LossCurve(c.log2_lrs, c.losses_SL + levels) for s, c in table.items()}
        assert numbers(estimate(raised, 64)) == pytest.approx(numbers(estimate(table, 64)), abs=1e-7)
        tilted = {s: LossCurve(c.log2_lrs, c.losses_SL + levels * c.log2_lrs) for s, c in table.items()}
        assert numbers(estimate(tilted, 64)) != pytest.approx(numbers(estimate(table, 64)), abs=1e-4)  # control


def test_the_order_of_seeds_does_not_matter():
    mixed = {s: LossCurve(c.log2_lrs, c.losses_SL[[2, 0, 1]]) for s, c in noisy().items()}
    assert numbers(estimate(mixed, 64)) == pytest.approx(numbers(estimate(noisy(), 64)), abs=1e-9)


def test_sizes_enter_by_their_ratios():
    e, larger = estimate(noisy(), 64), estimate({8 * s: c for s, c in noisy().items()}, 512)
    assert numbers(larger) == pytest.approx(numbers(e), abs=1e-9) and larger.predict(4096) == pytest.approx(e.predict(512))
    wide = estimate({s**2: c for s, c in noisy().items()}, 64**2)  # control: twice the octaves, half the slope
    assert wide.slope == pytest.approx(e.slope / 2)


def test_the_loss_scale_only_matters_to_curvature():
    half = {s: LossCurve(c.log2_lrs, c.losses_SL / 2) for s, c in noisy().items()}
    e, scaled = estimate(noisy(), 64), estimate(half, 64)
    assert (scaled.slope, scaled.slope_hi, scaled.regret) == pytest.approx((e.slope, e.slope_hi, e.regret), rel=1e-6)
    assert scaled.optima[64].curvature == pytest.approx(e.optima[64].curvature / 2)


# --- cells that are missing or diverged --------------------------------------------------------------------------------


def test_missing_cells_leave_the_truth_where_it_is():
    cells = {(0, -10.5): np.nan, (1, -9.0): np.nan, (1, -8.0): np.nan}
    e = estimate({s: changed(c, cells) for s, c in curves(-0.2, skew=1.0, seeds=3).items()}, 64)
    assert e.slope == pytest.approx(-0.2, abs=1e-4) and e.optima[64].log2_lr == pytest.approx(-9, abs=1e-3)
    few = changed(curve(seeds=3), {(2, lr): np.nan for lr in HALVES if lr != -9})  # a seed of one lr has no slope of its own
    assert len(find_optima({64: few})[0][64].seeds) == 2


def test_a_diverged_neighbour_brackets_and_one_not_run_does_not():
    c = curve(-8.8, grid=np.arange(-11.0, -8.4, 0.5))
    edge = changed(c, {(s, -8.5): np.nan for s in (0, 1)})
    assert edge.open_sides == ("higher",) and edge.neighbours == (-9.5, np.inf)
    wall = changed(c, {(s, -8.5): np.inf for s in (0, 1)})
    o = find_optima({64: wall})[0][64]
    assert o.bracketed and o.fitted and o.log2_lr == pytest.approx(-8.8, abs=1e-3) and wall.walled == (-8.5,)
    assert not find_optima({64: edge})[0][64].fitted


def test_an_lr_counts_if_half_of_its_seeds_finished():
    half = changed(curve(seeds=2), {(0, -8.5): np.inf})
    assert half.finished_SL[:, HALVES == -8.5].sum() == 1
    assert find_optima({64: half})[0][64].log2_lr == pytest.approx(-9, abs=1e-3)
    most = changed(curve(seeds=3), {(0, -8.5): np.inf, (1, -8.5): np.inf})
    assert not most.finished_SL[:, HALVES == -8.5].any() and most.walled == (-8.5,)
    later = changed(curve(seeds=3), {(0, -11.0): np.nan, (1, -11.0): np.nan})  # seeds that were added at other lrs
    assert later.finished_SL[2, 0]


def test_a_wall_is_kept_out_of_the_bowl():
    c = changed(curve(), {(s, -8.0): 5.0 for s in (0, 1)})
    assert -8.0 not in c.log2_lrs[c.window] and find_optima({64: c})[0][64].log2_lr == pytest.approx(-9, abs=1e-3)
    assert curve(grid=OCTAVES, curvature=0.03).window.tolist() == [1, 2, 3, 4, 5]  # two octaves on each side


def test_a_finished_point_far_above_the_best_says_no_more_than_one_that_diverged():
    """A run that went wrong, though its loss is finite, must not shape the bowl: here it would put the loss below zero."""
    lrs, losses = np.array([-2.0, 0, 2, 3, 4, 5]), np.array([5.779, 4.797, 3.899, 3.661, 3.643, np.nan])
    found = {last: find_optima({64: LossCurve(lrs, np.append(losses[:-1], last)[None])})[0][64] for last in (4650.5, np.inf)}
    assert found[4650.5].loss == found[np.inf].loss > 3 and found[4650.5].bracketed
    near = find_optima({64: LossCurve(lrs, np.append(losses[:-1], 3.7)[None])})[0][64]
    assert near.fitted and near.loss != found[np.inf].loss  # control


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("gap", [(1, -11.0), (1, -9.5), (0, -11.0)])
@pytest.mark.parametrize("wall", [4.0, 12.0])
def test_a_seed_that_almost_diverged_moves_no_optimum_though_runs_are_missing(sign, gap, wall):
    """Its loss says nothing of its level at other lrs; a loss below 0, as of a density, is judged by its size."""
    whole = {s: LossCurve(c.log2_lrs, c.losses_SL - 6.0 * (sign < 0)) for s, c in curves(noise=0.002).items()}
    hot = {s: changed(c, {(0, HALVES[-1]): c.losses_SL[0, -1] + wall}) for s, c in whole.items()}
    gaps = {s: changed(c, {gap: np.nan}) for s, c in hot.items()}
    expected, found = estimate(whole, 64), estimate(gaps, 64)
    for size in SIZES:
        assert found.optima[size].log2_lr == pytest.approx(expected.optima[size].log2_lr, abs=0.1)
        assert found.optima[size].loss == pytest.approx(expected.optima[size].loss, abs=0.02) and found.optima[size].fitted
    assert found.slope == pytest.approx(expected.slope, abs=0.05) and found.slope_hi - found.slope_lo < 0.3


def test_a_seed_of_two_lrs_tells_no_curvature():
    """Of seeds at lrs of their own each has its level and slope: two points are met by any bowl. Three tell it."""
    gaps = {(0, -10): np.nan, (0, -8): np.nan, (0, -7): np.nan}
    for draw in range(40):
        rng = np.random.default_rng(draw)
        three = curves(grid=np.arange(-11.0, -6.9), noise=0.002, rng=rng, curvature=0.02)
        three[256] = changed(three[256], gaps)
        two = three | {256: changed(three[256], {(1, lr): np.nan for lr in (-11, -9, -7)})}
        assert [find_optima(c)[0][256].fitted for c in (two, three)] == [False, True]


def test_an_interval_holds_its_optimum():
    """With one seed there is no interval but the lrs beside the best one, and the bowl's minimum may lie beyond them."""
    losses = 3 + 0.02 * (HALVES + 9.3) ** 2
    losses[np.isclose(HALVES, -8.5)] = losses.min() - 1e-4
    o = find_optima({64: LossCurve(HALVES, losses[None])})[0][64]
    assert o.lo <= o.log2_lr <= o.hi and o.log2_lr < -9.0


@pytest.mark.parametrize("losses", [[3.0, 2.9, 3.0], [3.0, 3.0, 3.0, 3.0]])
def test_few_points_and_no_minimum_know_their_bracket_alone(losses):
    c = LossCurve(
        np.arange(float(len(losses))), np.array([losses[:1] + [np.inf] * (len(losses) == 3) + losses[1 + (len(losses) == 3) :]])
    )
    o = find_optima({64: c})[0][64]
    assert not o.fitted and (o.lo, o.hi) == c.neighbours and o.log2_lr == c.log2_lrs[c.best]


def test_nothing_that_finished_is_no_optimum():
    c = LossCurve(HALVES, np.full((2, len(HALVES)), np.inf))
    assert c.best is None and estimate({64: c, 128: curve(), 256: curve()}, 64).optima.keys() == {128, 256}
    assert np.isnan(estimate({64: c}, 64).slope)


# --- how sure ----------------------------------------------------------------------------------------------------------


def test_one_seed_has_an_interval_of_one_degree_of_freedom():
    e = estimate(curves(noise=0.003, seeds=1, rng=np.random.default_rng(2)), 64)
    x, y = np.log2(SIZES), [o.log2_lr for o in e.optima.values()]
    slope, variance, dof = fit_line(x, y)
    half = (e.slope_hi - e.slope_lo) / 2
    assert (e.slope, e.dof) == (pytest.approx(slope), dof) and half >= t_quantile(1) * variance**0.5 * (1 - 1e-9)


def test_the_slope_is_the_line_through_all_seeds():
    e = estimate(noisy(), 64)
    x = np.repeat(np.log2(SIZES), 3)
    slope, variance, dof = fit_line(x, np.concatenate([o.seeds for o in e.optima.values()]))
    assert e.slope == pytest.approx(slope) and (e.slope_hi - e.slope_lo) / 2 >= stats.t.ppf(0.975, dof) * variance**0.5 * 0.9


def test_a_smaller_alpha_is_a_wider_interval():
    one, other = (estimate(noisy(), 64, alpha) for alpha in (0.05, 0.0158))
    assert other.slope_lo < one.slope_lo < one.slope == other.slope and other.regret_hi > one.regret_hi


def test_a_prediction_is_less_sure_further_away():
    e = estimate(noisy(), 64)
    lo_hi = [e.predict(size)[1:] for size in (128, 1024, 8192)]
    widths = [hi - lo for lo, hi in lo_hi]
    assert widths == sorted(widths) and widths[2] > 1.5 * widths[0]
    assert np.isnan(estimate({64: curve()}, 64).predict(128)).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Octave points, two seeds, an asymmetric bowl; the control takes normal quantiles of the same standard errors."""
    rng, found, predicted = np.random.default_rng(7), [], []
    for _ in range(150):
        best, slope = -9 + rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3)
        table = curves(slope, best, sizes=(*SIZES, 512), skew=0.6, noise=0.004, tilt=0.004, grid=OCTAVES, rng=rng)
        e = estimate({s: table[s] for s in SIZES}, 64)
        own = [o.lo <= best + slope * j <= o.hi for j, o in enumerate(e.optima.values())]
        half = (e.slope_hi - e.slope_lo) / 2
        found.append((abs(e.slope - slope) <= half, np.mean(own), abs(e.slope - slope) <= half * 0.5))
        _, lo, hi = e.predict(512)
        predicted.append(lo <= best + 3 * slope <= hi)
    slope, own, control = np.mean(found, axis=0)
    assert slope >= 0.92 and own >= 0.92 and np.mean(predicted) >= 0.92 and control < 0.85


# --- regret and bounds -------------------------------------------------------------------------------------------------


def test_regret_far_from_the_optimum_is_what_was_measured():
    """A steep side that no bowl has: the loss at the base's optimum, which was tested at the largest size, is what counts."""
    table = curves(-0.5, noise=1e-4)
    c = table[256]
    steep = LossCurve(c.log2_lrs, c.losses_SL + 0.2 * (c.log2_lrs > -9.1))
    e, plain = estimate(table | {256: steep}, 64), estimate(table, 64)
    assert plain.regret == pytest.approx(0.05 / 2.8, rel=0.02)
    assert e.regret == pytest.approx(0.25 / 2.8, rel=0.02) and e.regret_lo > plain.regret_hi


def test_regret_beyond_what_finished_is_a_lower_bound():
    table = curves(-0.5, noise=1e-4)
    wall = changed(table[256], {(s, lr): np.inf for s in (0, 1) for lr in HALVES if lr > -9.6})
    e = estimate(table | {256: wall}, 64)
    assert e.regret_at_least and 0 < e.regret < 0.05 / 2.8 and not estimate(table, 64).regret_at_least


def test_an_optimum_beyond_the_grid_bounds_the_slope_on_the_side_to_which_it_drifts():
    e = estimate(curves(-1.0, -9.0, noise=1e-3, grid=np.arange(-10.5, -5.9, 0.5)), 64)
    assert e.optima[256].open_sides == ("lower",) and e.slope_lo == -np.inf and -1.0 <= e.slope_hi < -0.25
    up = estimate(curves(1.0, -9.0, noise=1e-3, grid=np.arange(-12, -7.4, 0.5)), 64)
    assert up.slope_hi == np.inf and 0.25 < up.slope_lo <= 1.0
    small = {s: curve(best, grid=np.arange(-10.5, -5.9, 0.5)) for s, best in zip(SIZES, (-11.0, -9.0, -9.0), strict=True)}
    assert estimate(small, 64).slope_hi == np.inf  # lower at the smallest size: the slope may be larger still
    both = small | {256: curve(-11.0, grid=np.arange(-10.5, -5.9, 0.5))}
    assert (estimate(both, 64).slope_lo, estimate(both, 64).slope_hi) == (-np.inf, np.inf)


# --- statistics --------------------------------------------------------------------------------------------------------


def test_student_quantiles():
    for dof, quantile in ((1, 12.706), (1.5, 6.017), (4, 2.776), (6, 2.447), (12, 2.179), (30, 2.042), (np.inf, 1.960)):
        assert t_quantile(dof) == pytest.approx(quantile, rel=1e-3)
    assert np.isnan(t_quantile(0)) and t_quantile(6, 0.0158) == pytest.approx(stats.t.ppf(1 - 0.0079, 6))
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
