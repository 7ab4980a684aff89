"""Laws of what can be tuned: names, the values that a search starts from, and a line about each mistake."""

import json

import pytest
from support import ROOT
from support.runs import composed

from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.config.tune import held_at, named, start_of
from spectral_mup.config.validate import varied
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import open_sweep

HELD = "sweep.lr=[-7]"
BAD = {
    ("sweep.tune=optimizer.weight_decay.hiden", HELD): "hiden: unknown key; did you mean optimizer.weight_decay.hidden",
    ("sweep.tune=optimizer.muon.lr", HELD): "optimizer.muon.lr: unknown key; did you mean optimizer.adamw.lr",
    ("sweep.tune=paths.runs", HELD): "paths.runs: no run depends on it; known: lr, ",
    ("sweep.tune=cluster.threads", HELD): "cluster.threads: no run depends on it",
    ("sweep.tune=train.devices", HELD): "train.devices: no run depends on it",
    ("sweep.tune=optimizer.muon.lr", HELD, "optimizer=muon", "optimizer.hidden=adamw"): "muon.lr: no run depends on it",
    ("sweep.tune=train.steps", HELD): r"train.steps is a size; .* 'sweep.steps=\[100,200,400\]'",
    ("sweep.tune=train.batch_size", HELD): "train.batch_size is a size; .* 'sweep.batch_size=",
    ("sweep.tune=optimizer.weight_decay.vector", HELD): r"no log2, being 0.0; give .*{optimizer.weight_decay.vector:\[",
    ("sweep.tune=train.clip", HELD): r"it has no log2, being null; give .* 'sweep.tune={train.clip:\[-4,-2,0\]}'",
    ("sweep.tune=optimizer.adamw.args.betas", HELD): r"its value \[0.9, 0.95\] is not a number; tune another",
    ("sweep.tune={model.tied:[0]}", HELD): "its value False is not a number",
    ("sweep.tune=[lr,lr]",): "sweep.tune=.*a key is named twice; name each once",
    ("sweep.tune=[optimizer.adamw.lr,optimizer.algorithms.adamw.lr]", HELD): "these are the same key; name it once",
    ("sweep.tune=[]",): "sweep.tune=.*: give one key, or two to be tuned by turns, as in 'sweep.tune=.lr,",
    ("sweep.tune=[lr,train.warmup,optimizer.adamw.lr]",): "give one key, or two",
    ("sweep.tune=3",): "sweep.tune=3: give a key, two of them, or {name: .log2 values.}, as in sweep.tune=lr",
    ("sweep.tune={lr:[a]}",): "sweep.tune.lr=a: must be a number",
    ("sweep.tune={lr:[-7.1]}",): "sweep.tune: lr: -7.1 is not a multiple of 1/4; values are log2",
    ("sweep.tune={lr:[-7,-7]}",): r"sweep.tune: lr: \[-7, -7\] lists a value twice",
    ("sweep.tune=optimizer.adamw.lr",): r"sweep.lr=.*: lr is not tuned .*=optimizer.adamw.lr\) but held; give one value, as in",
    ("sweep.tune=optimizer.muon.args.momentum", "optimizer=muon", HELD): r"at 2\^0: .*momentum=1.0 must be in \[0, 1\)",
    ("sweep.tune={train.warmup:[2,9]}", HELD): r"train.warmup at 2\^9: train.warmup=512: not below train.steps=400",
    ("sweep.tune={model.heads:[0.5]}", HELD): r"model.heads at 2\^0.5: model.heads=1.4.*: must be a whole number",
    ("sweep.tune={train.warmup:[1,2,3]}", HELD, "lr.budget=2"): "lr.budget=2: below the 3 values .* of train.warmup",
    ("sweep.tune=[lr,optimizer.adamw.lr]", "sweep.base_width=32"): "base_width=32: two keys are tuned by turns at the base",
    ("sweep.steps=[100]", "sweep.base_depth=1"): "base_depth=1: steps and batch sizes vary at the base, which must be one of",
    ("sweep.steps=[100,100]",): "sweep.steps=.*listed twice",
    ("sweep.steps=[0]",): "sweep.steps=0: must be at least 1",
    ("sweep.steps=[10]", "train.warmup=399"): "sweep.steps: at 10, train.warmup=10: not below train.steps=10",
    ("sweep.batch_size=[3]", "train.accumulate=2"): "sweep.batch_size: at 3, train.accumulate=2: .* not a multiple of it",
}  # fmt: skip


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_a_mistake_names_key_and_fix(overrides):
    with pytest.raises(ConfigError, match=BAD[overrides]) as error:
        load_config(list(overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, overrides, start",
    [
        ("lr", (), [-9, -7, -5]),
        ("optimizer.adamw.lr", ("optimizer=muon",), [-2, 0, 2]),
        ("optimizer.algorithms.adamw.lr", ("optimizer=muon",), [-2, 0, 2]),
        ("optimizer.weight_decay.hidden", (), [-5.25, -3.25, -1.25]),  # 0.1 is 2^-3.32
        ("train.warmup", (), [3.25, 5.25, 7.25]),  # 40 is 2^5.32
        ("model.init_std.embedding", (), [-3, -1, 1]),  # the family's embedding_std
        ("model.init_std.embedding", ("model=llama2",), [-2, 0, 2]),
        ("model.init_std.embedding", ("model.tied=true",), [-5, -3, -1]),  # a readout of width 64
        ("model.init_std.position", (), [-3, -1, 1]),
        ("model.init_std.position", ("model.init_std.embedding=0.25",), [-4, -2, 0]),
        ("model.init_std.hidden", (), [-5, -3, -1]),
        ("model.init_std.hidden", ("model.init_std.hidden=0.5",), [-3, -1, 1]),
    ],
)
def test_a_search_starts_around_what_a_key_is(name, overrides, start):
    config = composed(f"sweep.tune={name}", *overrides, *([] if name == "lr" else [HELD]))
    assert start_of(config, name) == start and held_at(config, name) == start[1]
    given = composed(f"sweep.tune={{{name}:[-1,-3.5]}}", *overrides, HELD)
    if name != "train.warmup":
        assert start_of(given, name) == [-3.5, -1]


def test_a_key_without_a_log2_is_held_in_the_middle_of_what_was_given():
    config = composed("sweep.tune={lr:[],train.clip:[-4,0,1]}")
    assert (held_at(config, "train.clip"), held_at(config, "lr")) == (0, -7)


def test_a_key_at_its_own_value_leaves_the_config_as_it_is():
    config = composed("optimizer=muon", "model=llama2", "cluster=slurm")
    assert varied(config, {}) == config == varied(config, {"optimizer.adamw.lr": 0})
    assert varied(config, {"optimizer.adamw.lr": -1}) != config


@pytest.mark.parametrize(
    "warmup, steps, resolved",
    [
        (None, 400, 40), (None, 30, 3), (None, 29, 2), (None, 5, 1), (None, 1, 0), (0.29, 100, 29), ("0.05", 1026, 51),
        (0, 30, 0), ("0.0", 30, 0), (1, 30, 1), (7, 30, 7), ("7.0", 30, 7),
    ],
)  # fmt: skip
def test_a_warmup_below_one_is_a_fraction_of_the_steps(warmup, steps, resolved):
    """None: the default, a tenth. What a run is made of has whole steps, so that its id does not tell how they were given."""
    given = composed(f"train.steps={steps}", *([] if warmup is None else [f"train.warmup={warmup}"]))
    assert type(given.train.warmup) is int and given.train.warmup == resolved
    assert given.train == composed(f"train.steps={steps}", f"train.warmup={resolved}").train


def test_the_default_warmup_is_that_of_the_runs_on_record():
    sweep, known = open_sweep(composed()), json.loads((ROOT / "sweeps/results/default/verdicts.json").read_text())["run_ids"]
    first = sweep.run(Curve("spectral", 64, 2), -7, 0)
    assert first.train.warmup == 40 and first.run_id in known


def test_warmup_keeps_its_share_of_the_steps():
    assert [varied(composed(), {}, steps=n).train.warmup for n in (20, 800)] == [2, 80]  # of a fraction, too
    config = composed("train.steps=400", "train.warmup=40")
    assert [varied(config, {}, steps=n).train.warmup for n in (100, 400, 845)] == [10, 40, 84]
    t = varied(config, {"train.warmup": 6}, steps=800, batch_size=32).train
    assert (t.steps, t.batch_size, t.warmup) == (800, 32, 64)  # what is tuned is itself set


def test_what_is_said_of_lr_is_said_of_what_was_tuned():
    said = "too few lrs near the best learning rate: test a higher lr"
    assert named(said, "lr") == said
    assert (
        named(said, "train.warmup") == "too few values of train.warmup near the best train.warmup: test a higher train.warmup"
    )
    assert named("the lr", "optimizer.adamw.lr") == "the optimizer.adamw.lr" and named("all rules", "x") == "all rules"
