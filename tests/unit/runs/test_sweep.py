"""Laws of runs: their identity, and which curves share them."""

import json
import math

import pytest
import rfc8785
from support.cli import DIVERGED
from support.runs import first_point

from spectral_mup.runs.run_config import Curve, hash_of
from spectral_mup.runs.sweep import Sweep, open_sweep, result_reader
from spectral_mup.search.plan import make_plan


def test_largest_first_and_nothing_twice(tiny):
    config = tiny("lr.adaptive=false", "sweep.width=[32,128,64]")
    sweep = open_sweep(config)
    todo = make_plan(sweep, lambda p: None).todo
    assert [p.curve.width for p in todo] == sorted((p.curve.width for p in todo), reverse=True)
    assert len({p.run_id for p in todo}) == len(todo) == 3 + 2 * 2 * 3  # the base is no rule's own


def test_identity_is_what_decides_the_numbers_and_nothing_else(tiny):
    base = first_point(tiny())
    same = ["cluster.workers=7", "cluster.threads=2", "wandb.mode=offline", "sweep.name=other", "paths.runs=elsewhere",
            "sweep.width=[32,64,128]", "sweep.lr=[-6,-4,-2]", "sweep.seed=[1,0]", "rule=[spectral]", "lr.budget=20",
            "cluster.checkpoint_seconds=1", "train.steps=12", "optimizer.algorithms.adamw.lr=1"]  # fmt: skip
    for override in same:
        assert first_point(tiny(override), width=32).run_id == base.run_id, override
    alone = tiny()
    together = alone.model_copy(update={"train": alone.train.model_copy(update={"devices": 2, "shard": True})})
    assert first_point(together, width=32).run_id == base.run_id
    other = ["train.steps=13", "model.dropout=0.1", "sweep.base_width=1", "probe.steps=[1]", "model.tied=true",
             "optimizer.weight_decay.hidden=0.2", "train.precision=bfloat16",
             "optimizer.algorithms.adamw.eps=1e-9", "train.eval_sequences=9"]  # fmt: skip
    ids = {first_point(tiny(*([override] + ["model.head_size=null", "model.heads=2"] * (override == "sweep.base_width=1"))),
                       width=32).run_id for override in other}  # fmt: skip
    assert len(ids) == len(other) and base.run_id not in ids
    rule = "rule.spectral.multipliers.attention.d_head=-0.5"
    assert first_point(tiny(rule), width=64).run_id != first_point(tiny(), width=64).run_id
    assert first_point(tiny(), seed=1).run_id != base.run_id != first_point(tiny(), log2_lr=-5.75).run_id


def test_identity_does_not_depend_on_the_corpus_path(tiny, tmp_path):
    ids = []
    for name, text in (("a", "x" * 4000), ("b", "x" * 4000), ("c", "x" * 3999 + "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.txt").write_text(text)
        ids.append(first_point(tiny("data=text", f"data.path={tmp_path / name / 't.txt'}")).run_id)
    assert ids[0] == ids[1] != ids[2]


def test_golden_id():
    """An id must not change between versions, Pythons or hash seeds: old results would be lost."""
    config = {"schema_version": 1, "width": 64, "log2_lr": -6.5, "train": {"steps": 200, "clip": None}, "name": "μ"}
    assert hash_of(config) == hash_of(json.loads(json.dumps(config))) == "e5144d1c5be3bda4"
    assert hash_of(config | {"log2_lr": -6.25}) != hash_of(config)
    assert hash_of(config | {"width": 64.0}) == hash_of(config)  # one number in JSON; the typed config tells them apart
    with pytest.raises(rfc8785.CanonicalizationError):
        hash_of(config | {"log2_lr": math.nan})


def test_overlapping_sweeps_share_runs(tiny):
    small, large = open_sweep(tiny("lr.adaptive=false")), open_sweep(tiny("lr.adaptive=false", "sweep.width=[32,64,128]"))
    first = {p.run_id for p in make_plan(small, lambda p: None).runs}
    second = {p.run_id for p in make_plan(large, lambda p: None).runs}
    assert first < second and len(second - first) == 2 * 3


def test_results_of_reads_folders_and_counts_an_edited_config_as_missing(tiny, tmp_path, caplog):
    from spectral_mup.runs.run_folder import RunFolder

    config = tiny()
    point = first_point(config)
    runs = tmp_path / "runs"
    folder = RunFolder(runs, point.run_id)
    assert result_reader(runs)(point) is None
    folder.write_config(point.to_json())
    folder.claim()
    folder.finish(DIVERGED)
    assert result_reader(runs)(point) == math.inf
    edited = json.loads((folder.path / "config.json").read_text()) | {"seed": 5}
    (folder.path / "config.json").write_text(json.dumps(edited))
    assert result_reader(runs)(point) is None and "was edited after the run began; restore it" in caplog.text


def test_plan_of_many_points_is_quick(tiny):
    import time

    config = tiny("lr.adaptive=false", f"sweep.seed={list(range(500))}", f"sweep.lr={[-8, -7, -6, -5, -4]}")
    start = time.process_time()  # of this process alone: the machine may have other work
    plan = make_plan(Sweep(config, "x"), lambda p: None)
    assert len(plan.runs) == (1 + 2) * 5 * 500
    assert time.process_time() - start < 10
    assert plan.runs[0].curve == Curve("base", 32, 2)


def test_runs_of_the_base_size_belong_to_no_rule_and_are_trained_once(tiny):
    """At the base every rule is the same model to the bit (unit/theory); away from it in width or depth it is not."""
    config = tiny("lr.adaptive=false", "sweep.depth=[2,3]", "rule=[spectral,standard,zheng]")
    sweep = open_sweep(config)
    ids = {size: {sweep.run(Curve(rule, *size), -6, 0).run_id for rule in config.rule} for size in ((32, 2), (64, 2), (32, 3))}
    assert [len(of_size) for of_size in ids.values()] == [1, 3, 3]
    base = sweep.run(Curve("standard", 32, 2), -6, 0)
    assert base.to_json()["rule"] is None and base.curve == Curve("base", 32, 2)
    plan = make_plan(sweep, lambda run: None)
    assert len(plan.runs) == 3 + 3 * 3 * 3 and all(len(runs) == 3 for runs in plan.curves.values())
    assert plan.curves[Curve("spectral", 32, 2)] == plan.curves[Curve("zheng", 32, 2)]
