"""Laws of the bracket: the best value ends inside, octaves apart, half an octave from a wall."""

import math

import pytest

from spectral_mup.search.bracket import bracket


def bowl(best: float, wall: float = math.inf, a: float = 0.03):
    """A loss curve with its minimum at `best`, diverging (inf) above `wall`."""
    return lambda x: math.inf if x > wall else 2.0 + a * (x - best) ** 2


def search(start, loss, resolution=1.0, most=30):
    return bracket(start, loss, lambda new, wanted: new[: max(0, most - wanted)], resolution)


@pytest.mark.parametrize("resolution", [0.5, 1.0])
@pytest.mark.parametrize("best", [-12.3, -9, -7.2, -6.5, -5, -2.1, 1.0])
def test_it_brackets_the_best_and_refines_around_it(best, resolution):
    found = search([-9, -7, -5], bowl(best), resolution)
    assert found.bracketed and abs(found.best - best) <= resolution / 2 + 1e-9
    assert {found.best - resolution, found.best + resolution} <= set(found.wanted)


def test_a_fixed_grid_is_taken_as_it_is():
    for best in (-10.0, -7.0):
        found = search([-9, -7, -5], bowl(best), most=3)
        assert found.wanted == [-9, -7, -5] and found.bracketed == (best == -7)


def test_it_stops_where_nothing_more_can_be_afforded_and_says_so():
    found = search([-9, -7, -5], bowl(4), most=6)
    assert not found.bracketed and len(found.wanted) == 6


def test_divergence_brackets_from_above_and_if_all_diverged_it_goes_down():
    found = search([-9, -7, -5], bowl(-4, wall=-6.4))
    assert found.bracketed and found.best == -6.5
    found = search([-3, -2, -1], bowl(-8, wall=-6))
    assert found.bracketed and found.best == -8


def test_beside_a_wall_the_next_value_is_half_an_octave_away():
    """On the side that diverged, or is over 5 % worse, and not on the other."""
    for loss in (bowl(-6.1, wall=-5.2), lambda x: 2 + 0.03 * (x + 6.1) ** 2 + 0.2 * (x > -5.4)):
        found = search([-7, -6, -5], loss)
        assert found.best == -6 and found.wanted == [-7, -6, -5.5, -5]
    assert search([-7, -6, -5], bowl(-6.1)).wanted == [-7, -6, -5]  # control


def test_an_unknown_loss_leaves_it_open():
    found = search([-9, -7, -5], lambda x: None if x == -7 else 2.0)
    assert found.best is None and found.wanted == [-9, -7, -5]
