"""Laws of the prediction: its intervals cover, and one that leaves out a source of error does not."""

import math

import numpy as np
import pytest

from spectral_mup.analysis.prediction import expected_regret, predict

SIZES = np.repeat([64, 128, 256], 2)


def simulated(slope, target, sd=0.2, sizes=SIZES, n=1500):
    """Predictions from noisy optima around a line, and the optimum of one new model of the target's size."""
    rng = np.random.default_rng(1)
    truth = -6 + slope * np.log2(target / 64)
    for _ in range(n):
        yield (
            predict(sizes, -6 + slope * np.log2(sizes / 64) + rng.normal(0, sd, len(sizes)), target),
            truth + rng.normal(0, sd),
            truth,
        )


@pytest.mark.parametrize("slope", [0.0, -1.0])
@pytest.mark.parametrize("target", [512, 8192])
def test_intervals_cover(slope, target):
    inside = [
        (p.line.lo <= truth <= p.line.hi, p.optimum.lo <= new <= p.optimum.hi, p.flat.lo <= new <= p.flat.hi)
        for p, new, truth in simulated(slope, target)
    ]
    line, optimum, flat = np.mean(inside, axis=0)
    assert 0.93 <= line <= 0.97 and 0.93 <= optimum <= 0.97
    assert (
        (0.93 <= flat <= 0.975) if slope == 0 else flat < 0.05
    )  # the control: what transfer promises, of an optimum that drifts


def test_the_lines_own_interval_is_too_narrow_for_a_new_model():
    inside = [p.line.lo <= new <= p.line.hi for p, new, _ in simulated(0.0, 512)]
    assert np.mean(inside) < 0.92


def test_it_is_the_line_through_points_without_noise():
    p = predict([64, 128, 256, 512], [-6, -6.5, -7, -7.5], 8192)
    assert p.slope == pytest.approx(-0.5)
    for interval in (p.line, p.optimum):
        assert (interval.estimate, interval.lo, interval.hi) == pytest.approx((-9.5,) * 3, abs=1e-6)
    assert p.flat.estimate == -6 and predict([64, 128, 256], [-6, -6.5, -7], 512, base=128).flat.estimate == -6.5


def test_further_is_less_certain_and_more_optima_are_more():
    optima = np.array([-6.0, -6.2, -6.1, -6.3, -6.2, -6.0])
    width = {target: predict(SIZES, optima, target).optimum for target in (512, 8192)}
    assert width[8192].hi - width[8192].lo > 1.5 * (width[512].hi - width[512].lo)
    mean = predict([64, 128, 256], optima.reshape(3, 2).mean(1), 512).optimum
    assert mean.hi - mean.lo > width[512].hi - width[512].lo  # t = 12.7 in place of 2.8
    strict = predict(SIZES, optima, 512, alpha=0.01).optimum
    assert strict.lo < width[512].lo and strict.hi > width[512].hi


def test_two_points_have_a_line_without_an_interval_and_one_size_has_none():
    p = predict([64, 128], [-6, -6.5], 256)
    assert p.optimum.estimate == pytest.approx(-7) and math.isnan(p.optimum.lo) and math.isnan(p.flat.hi)
    for sizes, base in (([64, 64], None), ([64, 128], 32)):
        with pytest.raises(ValueError, match="a line needs two"):
            predict(sizes, [-6, -6.5], 256, base=base)


def test_regret_is_the_height_of_the_bowl():
    regret = expected_regret(0.05, 2.0, -1.0, (-2.0, 0.5))
    assert (regret.estimate, regret.lo, regret.hi) == pytest.approx((0.025, 0.0, 0.1))  # the optimum itself is in the interval
    assert expected_regret(0.05, 2.0, -1.0, (-2.0, -0.5)).lo == pytest.approx(0.05 * 0.25 / 2)
