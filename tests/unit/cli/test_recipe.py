"""What `action=recipe` prints and writes: the lr that the verdicts speak for, and what a run of the target would train with."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from support.analysis_data import sweep
from support.cli import call, finish, planned
from support.runs import explain_rows, first_point

from spectral_mup.analysis.report import report
from spectral_mup.cli.context import command
from spectral_mup.config.compose import load_config
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.util.text import COLUMNS

GRID = np.arange(-10.0, -3.9, 0.5)
DRIFT = {"spectral": 0.0, "standard": -0.5}  # octaves a doubling


@pytest.fixture
def argv(tiny_overrides, undraw):
    """A sweep over three widths, whose optimum stays under one rule and moves under the other."""
    undraw()
    return [*tiny_overrides, "sweep.width=[32,64,128]", "rule=[spectral,standard]"]


def folder_of(argv):
    return Path(load_config(argv).paths.results) / "tiny"


def analysed(argv, axes=("width",)):
    """The results that analyze would write, of runs that nobody trained."""
    sizes = {"width": (32, 64, 128), "depth": (2, 4, 8)}
    for axis in axes:
        of_rules = [sweep(slope, sizes=sizes[axis], axis=axis, best=-6.25, noise=0.0005, grid=GRID).assign(rule=rule)
                    for rule, slope in DRIFT.items()]  # fmt: skip
        points = pd.concat(of_rules).assign(family="nanogpt", optimizer="adamw", width=lambda p: p.get("width", 32))
        points = points.assign(depth=points.get("depth", 2), run_id=range(len(points)))
        folder = folder_of(argv) / ("" if axis == axes[0] else axis)
        report(points, pd.DataFrame(), name="tiny", out_dir=folder, axis=axis)
    return argv


def recipe(argv, *target):
    code, out, err = call("launch", *argv, "action=recipe", *target)
    assert (code, err) == (0, "")
    return out, json.loads((folder_of(argv) / "recipe.json").read_text())


def test_it_reads_what_analyze_writes(argv):
    argv = [*argv, f"sweep.lr={GRID[5:].tolist()}".replace(" ", ""), "lr.adaptive=false", "rule=[spectral]"]
    for run in planned(argv):
        finish(run, Path(load_config(argv).paths.runs), lambda rule, width: -6.25)
    assert call("analyze", *argv)[0] == 0
    out, _ = recipe(argv, "target.width=512")
    assert "lr tuned at the base  2^-6.25 = 0.01314" in out


def test_files_hold_what_is_printed(argv):
    out, found = recipe(analysed(argv), "target.width=8192")
    folder = folder_of(argv)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == found
    assert found["target"] == {"width": 8192, "depth": 2} and found["base"] == {"width": 32, "depth": 2}
    assert found["command"].endswith("target.width=8192 target.depth=2") and "action=recipe" in found["command"]
    assert max(map(len, out.replace(str(folder), "").splitlines())) <= COLUMNS
    for rule, drift in DRIFT.items():
        of_rule = found["rules"][rule]
        f, printed = of_rule["forecast"], out.partition(f"Rule {rule}: ")[2]
        assert printed.startswith(f["verdict"])
        assert f"lr tuned at the base  2^{f['base']['estimate']:.2f} = " in printed
        assert f["with_drift"]["estimate"] == pytest.approx(-6.25 + 8 * drift, abs=0.1)
        assert of_rule["lr"] == pytest.approx(2 ** f["with_drift" if f["take"] == "with_drift" else "base"]["estimate"])
        for group in of_rule["groups"]:
            cells = next(line.split() for line in printed.splitlines() if line.startswith(f"  {group['name']} "))
            assert float(cells[2]) == pytest.approx(group["lr"], rel=0.01)
    assert found["rules"]["standard"]["forecast"]["take"] == "with_drift"


def test_numbers_are_those_of_a_run_of_that_size(argv):
    """And so are what `explain` prints of it."""
    _, found = recipe(analysed(argv), "target.width=256", "target.depth=4")
    for rule, of_rule in found["rules"].items():
        config = load_config([*argv, "sweep.depth=[4]", "sweep.base_depth=2"])
        run = open_sweep(config).run(first_point(config, rule, 256).curve, 0.0, 0)
        rows = {row["tensor"]: row for row in explain_rows(run)}
        assert sum(group["tensors"] for group in of_rule["groups"]) == len(rows)
        for group in of_rule["groups"]:
            row = rows[group["name"].replace("*", "0")]
            own = (row["lr"] * of_rule["lr"], row["λ"], row["ε"])
            assert (group["lr"], group["weight_decay"], group["eps"]) == pytest.approx(own)
            assert group["init_std"] == (None if row["init std"] is None else pytest.approx(row["init std"]))
        assert of_rule["forecast"]["unmeasured"] == ["depth"]


def test_depth_that_was_not_swept_is_said(argv):
    out, _ = recipe(analysed(argv), "target.width=256", "target.depth=4")
    assert out.count("Drift over depth: not measured") == 2
    out, found = recipe(argv, "target.depth=4")
    assert "Rule spectral: not measured" in out and found["target"] == {"width": 32, "depth": 4}


def test_what_is_unknown_is_null(argv):
    _, found = recipe(analysed(argv), "target.depth=4")
    assert found["rules"]["spectral"]["forecast"]["regret"] == {"estimate": None, "lo": None, "hi": None}


def test_width_and_depth_add(argv):
    argv = analysed([*argv, "sweep.depth=[2,4,8]"], ("width", "depth"))
    out, found = recipe(argv, "target.width=256", "target.depth=16")
    drifts = found["rules"]["standard"]["forecast"]["drifts"]
    assert [d["axis"] for d in drifts] == ["width", "depth"] and "The octaves of the axes add." in out
    assert found["rules"]["standard"]["forecast"]["with_drift"]["estimate"] == pytest.approx(-6.25 - 0.5 * 3 - 0.5 * 3, abs=0.1)


def test_what_an_earlier_sweep_of_the_name_found_over_another_axis_is_not_its_own(argv):
    analysed([*argv, "sweep.depth=[2,4,8]"], ("width", "depth"))
    out, found = recipe(argv, "target.width=256", "target.depth=16")
    assert found["rules"]["standard"]["forecast"]["unmeasured"] == ["depth"] and "Drift over depth: not measured" in out


def test_the_independent_decay_is_divided_by_the_lr(argv):
    argv = [*analysed(argv), "train.weight_decay=independent", "rule=[spectral]"]
    _, found = recipe(argv, "target.width=256")
    hidden = next(group for group in found["rules"]["spectral"]["groups"] if group["kind"] == "hidden")
    assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(0.1)


WRONG = {
    (): "target.width: action=recipe needs it, or target.depth; give one, as in target.width=8192",
    ("target.width=128",): "target.width=128: not above those of sweep.width=[32, 64, 128]",
    ("target.width=64",): "target.width=64: not above",
    ("target.width=8200",): "target.width: 8200 is not a multiple of model.head_size=16",
    ("target.width=0",): "target.width=0: must be at least 1",
    ("target.width=256", "target.depth=1"): "target.depth=1: not above those of sweep.depth=[2]",
    ("target.widht=256",): "target.widht: unknown key; did you mean",
}


@pytest.mark.parametrize("target", WRONG)
def test_what_cannot_be_is_one_line(argv, target):
    code, out, err = call("launch", *argv, "action=recipe", *target)
    assert (code, out) == (2, "") and err.startswith(f"error: {WRONG[target]}") and err.count("\n") == 1


def test_before_it_is_analysed_the_command_is_named(argv):
    code, out, err = call("launch", *argv, "action=recipe", "target.width=256")
    assert (code, out) == (2, "") and "spectral is not analysed yet" in err and err.count("\n") == 1
    assert err.endswith(f"write it with: {command('spectral-mup analyze', argv)}\n")
    code, _, err = call("launch", *analysed(argv)[:-1], "rule=[spectral,completep]", "action=recipe", "target.width=256")
    assert code == 2 and "adamw under rule completep is not analysed yet" in err
    code, _, err = call("launch", *argv, "optimizer=muon", "action=recipe", "target.width=256")
    assert code == 2 and "muon under rule spectral is not analysed yet" in err
