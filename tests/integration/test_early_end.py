"""Ending runs early: what benchmarks/early_end.py takes from the committed losses is what it says."""

import dataclasses
import importlib
import itertools

import pandas as pd
import pytest
from support import ROOT

TABLE = ROOT / "sweeps/results/early_end.csv"


@pytest.fixture
def early_end(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("early_end")


@pytest.fixture
def losses(early_end):
    return early_end.losses_of(pd.read_csv(TABLE))


def test_no_limit_ends_a_run_that_came_out_near_the_best(early_end, losses):
    margin = 0.03
    ending = early_end.Ending(early_end.limits_of(losses, margin), False, losses)
    ends = 0
    for run in losses:
        others = [other for other in losses if (other.curve, other.seed) == (run.curve, run.seed)]
        near = losses[run].final <= min(losses[other].final for other in others) * (1.05 + margin)
        ended = [ending.ends(run, [other], k) for other in others for k in range(7)]
        assert not (near and any(ended))
        ends += any(ended)
    assert ends > len(losses) / 4  # and it ends many others


def test_a_replay_brackets_by_octaves_and_takes_the_time_of_its_runs(early_end, losses):
    search = early_end.Search("adamw", ("spectral", "standard"))
    full = early_end.play(losses, search)
    lrs = {
        curve: sorted({run.log2_lr for run in full.trained if run.curve == curve}) for curve in {r.curve for r in full.trained}
    }
    assert {curve[1:] for curve in lrs} == {("base", 64), *itertools.product(("spectral", "standard"), (128, 256))}
    for curve, tested in lrs.items():
        best = min(tested, key=lambda lr: sum(losses[early_end.RunKey(*curve, lr, seed)].final for seed in (0, 1)))
        assert {best - 1, best + 1} <= {*tested}
    assert not full.ended and not search.wanted({run: losses[run].final for run in full.trained})
    assert full.seconds == pytest.approx(sum(losses[run].seconds for run in full.trained))


def test_a_run_that_ends_early_saves_its_other_steps_and_one_that_is_kept_does_not_end(early_end, losses):
    grid = early_end.Search("adamw", ("spectral",), tuple(range(-10, -2)), fixed=True)
    ending = early_end.Ending(early_end.limits_of(losses, 0.03), False, losses)
    full, short = early_end.play(losses, grid), early_end.play(losses, grid, ending)
    assert short.trained == full.trained and short.ended and short.seconds < full.seconds
    kept = early_end.play(losses, grid, dataclasses.replace(ending, kept=short.ended))
    assert not kept.ended & short.ended


def test_needed_are_the_best_its_neighbours_and_the_base_s_best(early_end):
    def run(width, lr):
        return early_end.RunKey("adamw", "r", width, lr, 0)

    lrs, best = (-9.0, -8.0, -7.0, -6.0, -5.0), {64: -6.0, 128: -8.0}
    losses = {run(w, lr): early_end.Losses(1.0, 2 + abs(lr - best[w]), ()) for w in best for lr in lrs}
    needed = early_end.needed(losses, set(losses))
    assert {r.log2_lr for r in needed if r.width == 64} == {-7, -6, -5}
    assert {r.log2_lr for r in needed if r.width == 128} == {-9, -8, -7, -6}
