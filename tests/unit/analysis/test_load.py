"""Laws of load: what analyze.py wrote, as tables, judged by nobody again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from support.cli import call
from support.runs import composed

import spectral_mup as sm
from benchmarks import many_runs
from spectral_mup.analysis.results import ResultsError
from spectral_mup.analysis.verdict import loss_name, what_was_run
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

DEFAULT = Path(__file__).parents[3] / "sweeps" / "results" / "default"
SIZES = ["sweep.width=[64,128,256]", "sweep.base_width=64", "sweep.lr=[-9,-8.5,-8,-7.5,-7,-6.5,-6]", "lr.adaptive=false"]


@pytest.fixture
def analysed(tiny_overrides, undraw, tmp_path):
    """A finished sweep of two rules, judged by analyze.py."""
    undraw()
    argv = [*tiny_overrides, *SIZES]
    for run in make_plan(open_sweep(composed(*argv)), lambda run: None).runs:
        many_runs.finish(run, tmp_path / "runs")
    code, _, error = call("analyze", *argv)
    assert (code, error) == (0, "")
    return tmp_path / "results" / "tiny"


def test_the_tables_are_those_of_the_files():
    loaded = sm.load(DEFAULT)
    pd.testing.assert_frame_equal(loaded.runs, pd.read_csv(DEFAULT / "curves.csv"))
    pd.testing.assert_frame_equal(loaded.features, pd.read_csv(DEFAULT / "features.csv"))
    written = pd.read_csv(DEFAULT / "optima.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(loaded.optima, written, rtol=1e-8, check_dtype=False)
    content = json.loads((DEFAULT / "verdicts.json").read_text("utf-8"))
    for row, one in zip(loaded.verdicts.to_dict("records"), content["verdicts"], strict=True):
        assert [row[name] for name in ("rule", "verdict", "slope", "regret_hi", "done")] == [
            one["rule"], one["verdict"], one["slope"]["estimate"], one["regret"]["hi"], one["counts"]["done"]
        ]  # fmt: skip
    assert (loaded.name, loaded.command, loaded.commit) == tuple(content[name] for name in ("name", "command", "commit"))


def test_it_prints_a_summary_and_draws():
    loaded = sm.load(str(DEFAULT))
    assert repr(loaded) == str(loaded) and "default: 58 runs, judged by python analyze.py sweep=default" in str(loaded)
    assert "standard  drifts" in str(loaded) and "give their folder, as in load(…, runs='runs')" in str(loaded)
    assert "<td>drifts</td>" in loaded._repr_html_() and "58 runs" in loaded._repr_html_()
    ax, other = Figure().subplots(1, 2)
    assert sm.plot_lr_transfer(loaded, ax) is ax and ax.get_xlabel() == "width"
    assert loaded.plot(other, rule="spectral") is other and other.get_ylabel() == "validation loss (nats/token)"


def test_a_verdict_that_was_edited_is_read_as_edited(tmp_path):
    shutil.copytree(DEFAULT, tmp_path / "x")
    path = tmp_path / "x" / "verdicts.json"
    content = json.loads(path.read_text("utf-8"))
    content["verdicts"][0] |= {"verdict": "costs", "slope": {"estimate": 7.0, "lo": 6.0, "hi": None}}
    path.write_text(json.dumps(content), "utf-8")
    row = sm.load(tmp_path / "x").verdicts.iloc[0]
    assert (row["verdict"], row["slope"], row["slope_hi"]) == ("costs", 7.0, np.inf)


def test_a_sweep_that_has_just_been_judged(analysed, tmp_path):
    loaded = sm.load(analysed)
    again = sm.judge(loaded.runs, rule="rule", base=64)
    pd.testing.assert_frame_equal(again.to_frame(), loaded.verdicts, rtol=1e-6)
    assert set(again) == {"spectral", "standard"} and again["standard"].finished.keys() == {64, 128, 256}
    norms = loaded.norms
    shared = loaded.runs["run_id"].duplicated(keep=False)
    assert shared.any() and set(loaded.runs[shared]["width"]) == {64}
    of_run = norms.groupby(["run_id", "rule"]).size()
    assert set(of_run.index) == set(zip(loaded.runs["run_id"], loaded.runs["rule"], strict=True))
    assert set(of_run) == {3 * (len(many_runs.FEATURES) + len(many_runs.TENSORS))}  # steps 0, 1 and 4
    assert {"step", "name", "what", "delta_rms", "width", "log2_lr", "seed"} <= set(norms) and loaded.norms is norms
    run_id = loaded.runs["run_id"][0]
    lines = [json.loads(line) for line in (tmp_path / "runs" / run_id / "norms.jsonl").read_text().splitlines()]
    first = norms[(norms["run_id"] == run_id) & (norms["rule"] == loaded.runs["rule"][0]) & norms["delta_rms"].notna()]
    assert list(first["delta_rms"]) == [row["delta_rms"] for row in lines if "delta_rms" in row]
    (tmp_path / "runs").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="^norms: none, as the runs of .* are not beside it; give their folder"):
        assert sm.load(analysed).norms.empty
    assert len(sm.load(analysed, runs=tmp_path / "moved").norms) == len(norms)
    with pytest.raises(ResultsError, match="^runs=.*: holds none of the runs of .*; give the folder that paths.runs named"):
        sm.load(analysed, runs=tmp_path / "results")


def test_over_depth_and_without_features():
    depth = sm.load(DEFAULT.parent / "grid" / "depth" / "adamw")
    assert list(depth.optima)[1] == "depth" and set(depth.verdicts["axis"]) == {"depth"}
    bare = sm.load(DEFAULT.parent / "recipe" / "adamw")
    assert bare.features.empty and list(bare.features) == list(sm.load(DEFAULT).features)


def nest(folder):
    """Move what is in a folder into one below it."""
    moved = folder.rename(folder.with_name("default"))
    folder.mkdir()
    shutil.move(moved, folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"x: is not a folder; python analyze.py sweep=NAME writes"),
        (lambda f: (f / "verdicts.json").unlink(), r"x: holds no verdicts.json; python analyze.py sweep=NAME writes"),
        (nest, r"x: holds no verdicts.json itself; give a folder below it: default$"),
        (lambda f: (f / "curves.csv").unlink(), r"curves.csv: does not exist; write it again with python analyze.py"),
        (lambda f: (f / "curves.csv").write_text("a,b\n1,2\n"), r"curves.csv: damaged \(no entry 'family'\)"),
        (lambda f: (f / "verdicts.json").write_text("{"), r"verdicts.json: damaged"),
        (lambda f: (f / "verdicts.json").write_text("[" * 100_000), r"verdicts.json: damaged"),
        (lambda f: (f / "features.csv").write_text(""), r"features.csv: damaged"),
    ],
)  # fmt: skip
def test_a_folder_without_results_is_one_line_with_what_to_run(tmp_path, spoil, message):
    shutil.copytree(DEFAULT, tmp_path / "x")
    spoil(tmp_path / "x")
    with pytest.raises(ResultsError, match=message) as error:
        sm.load(tmp_path / "x")
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


def test_runs_on_other_data_than_text_have_no_tokens_and_no_unit():
    """Nor has a sweep of which nothing is done any number of them, which may yet come."""
    digits, text = (sm.load(DEFAULT.parent / name).runs for name in ("digits", "default"))
    assert "200 steps; 6 seeds" in what_was_run(digits) and loss_name(digits) == "validation loss"
    assert "NanoGPT, AdamW, depth 2; 400 steps, 0.205 M tokens" in what_was_run(text)
    assert loss_name(text) == "validation loss (nats/token)"
    assert "? M tokens" in what_was_run(text.assign(status="missing", tokens=float("nan")))
