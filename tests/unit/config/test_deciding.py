"""What decides a sweep: differences that count, those that do not, and how a recorded config is resumed."""

import json

import pytest
from support.runs import composed

from spectral_mup.config.compose import load_config
from spectral_mup.config.deciding import decides, differences, resumed
from spectral_mup.config.schema import to_plain

BEFORE = ["optimizer=muon", "sweep.width=[64,128]"]
COUNT = {
    ("train.steps=300",): [("train.steps", 400, 300), ("train.warmup", 40, 30)],
    ("sweep.seed=[0,1,2]",): [("sweep.seed", [0, 1], [0, 1, 2])],
    ("sweep.lr=[-9,-7]",): [("sweep.lr", [-9, -7, -5], [-9, -7])],
    ("rule=[spectral]",): [("rule", ["spectral", "standard"], ["spectral"])],
    ("optimizer=adamw",): [("optimizer", "muon", "adamw")],
    ("model=llama2",): [("model", "nanogpt", "llama2")],
    ("data=pydoc",): [("data", "shakespeare", "pydoc")],
    ("verdict.slope=0.5",): [("verdict.slope", 0.25, 0.5)],
    ("sweep.budget=2h",): [("sweep.budget", None, "2h")],
    ("probe.steps=[1]",): [("probe.steps", [1, 5, 20], [1])],
    ("optimizer.algorithms.muon.lr=0.5",): [("optimizer.algorithms.muon.lr", 1, 0.5)],
}
DO_NOT = [
    "cluster=slurm", "cluster.workers=3", "paths.runs=elsewhere", "wandb.mode=offline", "figures.width=3.25", "action=plan",
    "yes=true", "target.width=512", "train.devices=2", "train.graph=false", "sweep.name=other", "sweep.width=[128,64]",
    "sweep.seed=[1,0]", "rule=[standard,spectral]", "derive.steps=9",
]  # fmt: skip


def recorded(*overrides: str) -> dict:
    return json.loads(json.dumps(to_plain(composed(*overrides))))


@pytest.mark.parametrize("words", COUNT, ids=" ".join)
def test_what_decides_is_named_with_both_values(words):
    before = [word for word in BEFORE if word.partition("=")[0] != words[0].partition("=")[0]]
    found = differences(recorded(*BEFORE), composed(*before, *words))
    assert [f for f in found if f[0] != "sweep.name"] == COUNT[words]
    assert not differences(recorded(*BEFORE), composed(*BEFORE))


def test_which_of_two_keys_is_tuned_first_decides():
    first, second = ("sweep.tune=[lr,optimizer.adamw.lr]", "sweep.tune=[optimizer.adamw.lr,lr]")
    keys = ["lr", "optimizer.adamw.lr"]
    assert differences(recorded(*BEFORE, first), composed(*BEFORE, second)) == [("sweep.tune", keys, keys[::-1])]
    assert not differences(recorded(*BEFORE, second), composed(*BEFORE, second))


@pytest.mark.parametrize("word", DO_NOT)
def test_what_decides_nothing_is_no_difference(word):
    assert not differences(recorded(*BEFORE), composed(*BEFORE, word))


def test_a_sweep_is_resumed_as_recorded_whatever_the_words_make_now():
    """The words stand for less than the config: a file of presets may have changed since."""
    record = recorded(*BEFORE, "train.steps=300", "rule=[zheng]", "model.dropout=0.1")
    config = load_config([*BEFORE, "cluster=slurm", "sweep.name=again"], record)
    assert (config.train.steps, [*config.rule], config.model.dropout) == (300, ["zheng"], 0.1)
    assert (config.cluster.scheduler, config.sweep.name) == ("slurm", "again")
    assert not differences(record, config) and differences(record, composed(*BEFORE))


def test_a_key_that_is_newer_than_a_record_has_its_value_of_today():
    record, now = recorded(*BEFORE), recorded(*BEFORE)
    del record["train"]["clip"]
    assert resumed(record, now)["train"] == now["train"] and not differences(record, composed(*BEFORE))


def test_a_key_decides_as_its_part_does():
    assert decides("optimizer") and decides("sweep.lr") and decides("train.steps")
    assert not any(decides(key) for key in ("cluster", "cluster.gpus", "train.devices", "model.code", "rule.mine.differences"))
