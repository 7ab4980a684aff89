"""Laws of the batches: what they may depend on, and which numbers make none."""

import numpy as np
import pytest

from spectral_mup import data
from spectral_mup.data import DataError

PLACES = np.arange(5000, dtype=np.uint16)  # each token is its own position, so x[:, 0] are the starts


def starts(seed: int, step: int, batch_size: int = 8) -> list[int]:
    x, _ = data.batch(PLACES, seed=seed, step=step, batch_size=batch_size, context=16)
    return x[:, 0].tolist()


def test_a_batch_depends_on_seed_and_step_alone():
    steps = range(20)
    forward = {step: starts(1, step) for step in steps}
    backward = {step: starts(1, step) for step in reversed(steps)}
    assert forward == backward
    np.random.seed(0)  # the global generator has no part in it
    assert starts(1, 7) == forward[7]


def test_seeds_and_steps_are_different_streams():
    drawn = {tuple(starts(seed, step)) for seed in range(10) for step in range(10)}
    assert len(drawn) == 100  # also (1, 2) against (2, 1)


def test_the_stream_is_the_same_on_every_machine_and_numpy():
    assert starts(0, 0, 4) == PINNED[0, 0]
    assert starts(3, 17, 4) == PINNED[3, 17]


PINNED = {(0, 0): [1723, 562, 4353, 4772], (3, 17): [3223, 219, 3887, 4131]}


def test_y_is_x_shifted_by_one_token():
    for x, y in (
        data.batch(PLACES, seed=5, step=5, batch_size=6, context=32),
        data.eval_batch(PLACES, count=6, context=32),
        data.probe_batch(PLACES, count=6, context=32),
    ):
        assert x.shape == y.shape == (6, 32)
        assert x.dtype == y.dtype == np.int64
        assert (y == x + 1).all() and (x[:, 1:] == y[:, :-1]).all()
        y = y.copy()
        x[:] = 0  # they share no memory
        assert y.min() > 0


def test_micro_batches_are_the_whole_batch():
    whole = data.batch(PLACES, seed=2, step=9, batch_size=12, context=16)
    for k in (1, 2, 3, 12):
        parts = [data.batch(PLACES, seed=2, step=9, batch_size=12, context=16, microbatch=i, microbatches=k) for i in range(k)]
        for j in (0, 1):
            assert np.array_equal(np.concatenate([part[j] for part in parts]), whole[j])
    assert starts(2, 9, 4) == starts(2, 9, 12)[:4]


def test_starts_are_uniform_over_all_places():
    x, y = data.batch(PLACES[:10], seed=0, step=0, batch_size=6000, context=4)
    counts = np.bincount(x[:, 0])
    assert len(counts) == 6 and y.max() == 9  # the last token is used, and only as a target
    assert x.max() == 8
    assert (abs(counts - 1000) < 5 * np.sqrt(1000)).all()


def test_evaluation_is_fixed_spread_and_without_overlap():
    x, _ = data.eval_batch(PLACES, count=50, context=64)
    at = x[:, 0]
    assert np.array_equal(at, data.eval_batch(PLACES, count=50, context=64)[0][:, 0])
    assert np.ptp(np.diff(at)) <= 1 and (np.diff(at) >= 64).all()
    assert at[0] < 100 and at[-1] > 4800
    assert data.eval_batch(PLACES[:9], count=1, context=8)[0].tolist() == [list(range(8))]


def test_epochs_are_tokens_drawn_over_tokens_there():
    assert data.epochs_seen(PLACES, steps=100, batch_size=10, context=10) == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"microbatches": 5},
        {"microbatch": 2, "microbatches": 2},
        {"microbatch": -1},
        {"batch_size": 0},
        {"seed": -1},
        {"step": -1},
        {"context": 0},
    ],
)
def test_numbers_that_make_no_batch_are_refused(change: dict):
    good = {"seed": 0, "step": 0, "batch_size": 8, "context": 16}
    data.batch(PLACES, **good)
    with pytest.raises(ValueError):
        data.batch(PLACES, **(good | change))


def test_a_text_too_short_for_the_context_is_refused():
    data.batch(PLACES[:17], seed=0, step=0, batch_size=2, context=16)
    with pytest.raises(DataError, match="16 tokens are too few .* context 16"):
        data.batch(PLACES[:16], seed=0, step=0, batch_size=2, context=16)
    with pytest.raises(DataError, match="too few"):
        data.eval_batch(PLACES[:16], count=1, context=16)
    with pytest.raises(DataError, match="not 5"):
        data.eval_batch(PLACES[:20], count=5, context=16)
