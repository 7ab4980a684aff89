"""Laws of analyze: what it does not read would change nothing, and what it does not do again has not changed."""

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support.cli import call, finish
from support.runs import composed

from benchmarks import many_runs
from spectral_mup.analysis import collect
from spectral_mup.cli.analyze import inputs_of
from spectral_mup.cli.context import Context
from spectral_mup.config.compose import load_config
from spectral_mup.runs.results import Results
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

LRS = [-8.5, -8.0, -7.5, -7.0, -6.5, -6.0]
JUDGED = -7.0  # the optimum of both rules at width 64


@pytest.fixture
def argv(tiny_overrides, undraw):
    """A finished sweep of two rules that share the runs of the base size; no figure is drawn."""
    undraw()
    sizes = ["sweep.width=[64,128,256]", "sweep.base_width=64", f"sweep.lr={LRS}".replace(" ", ""), "lr.adaptive=false"]
    return finished([*tiny_overrides, *sizes])


def finished(argv):
    for run in runs_of(argv):
        if not (folder_of(argv, run) / "result.json").exists():
            many_runs.finish(run, folder_of(argv, run).parent)
    return argv


def runs_of(argv):
    return make_plan(open_sweep(composed(*argv)), lambda run: None).runs


def folder_of(argv, run):
    return Path(composed(*argv).paths.runs, run.run_id)


def results_of(argv):
    return Path(composed(*argv).paths.results)


def analyze(argv):
    """What the screen shows, and the tables by name."""
    code, screen, error = call("analyze", *argv)
    assert (code, error) == (0, "")
    tables = [path for path in results_of(argv).rglob("*.*") if path.suffix in (".csv", ".json")]
    return screen, {str(path.relative_to(results_of(argv))): path.read_bytes() for path in tables}


def afresh(argv):
    shutil.rmtree(results_of(argv), ignore_errors=True)
    return analyze(argv)


@pytest.fixture
def opened(monkeypatch):
    """Ids of the runs whose norms were read, in order."""
    ids, real = [], collect.read_rows
    monkeypatch.setattr(collect, "read_rows", lambda path: ids.append(path.parent.name) or real(path))
    return ids


def test_hours_of_training_count_each_run_once(argv):
    """Those of the base size are on the curves of both rules."""
    for run in runs_of(argv):
        (folder_of(argv, run) / "timing.json").write_text(json.dumps({"seconds": 36.0, "steps": 12, "device": "cpu"}))
    content = json.loads(afresh(argv)[1]["tiny/verdicts.json"])
    assert content["train_hours"] == pytest.approx(0.01 * len(runs_of(argv))) and len(content["run_ids"]) > len(runs_of(argv))
    (folder_of(argv, runs_of(argv)[0]) / "timing.json").unlink()
    assert json.loads(afresh(argv)[1]["tiny/verdicts.json"])["train_hours"] is None


# --- what is not read --------------------------------------------------------------------------------------------------


def assert_as_if_all_norms_were_read(argv, opened, monkeypatch, runs):
    """The norms of these runs alone are read, for the same bytes as from all; from none at all there are others."""
    opened.clear()
    found = afresh(argv)
    assert sorted(opened) == sorted(run.run_id for run in runs)
    opened.clear()
    every = {run.run_id for run in runs_of(argv)}
    with monkeypatch.context() as patch:
        patch.setattr("spectral_mup.analysis.report.norms_to_judge", lambda *_: every)
        assert afresh(argv) == found and sorted(opened) == sorted(every)
        patch.setattr("spectral_mup.analysis.report.norms_to_judge", lambda *_: set())
        assert afresh(argv) != found


def test_norms_are_read_of_the_judged_runs_alone(argv, opened, monkeypatch):
    assert_as_if_all_norms_were_read(argv, opened, monkeypatch, [r for r in runs_of(argv) if r.log2_lr == JUDGED])


def test_an_lr_without_norms_at_every_size_is_passed_over(argv, opened, monkeypatch):
    """The next nearest is judged, as if all had been there to choose from."""
    for run in runs_of(argv):
        if (run.rule.name, run.width, run.log2_lr) == ("standard", 256, JUDGED):
            (folder_of(argv, run) / "norms.jsonl").write_text("")
    verdicts = json.loads(afresh(argv)[1]["tiny/verdicts.json"])["verdicts"]
    at = {v["rule"]: v["features"]["log2_lr"] for v in verdicts}
    assert at["spectral"] == JUDGED and at["standard"] in (JUDGED - 0.5, JUDGED + 0.5)
    runs = [r for r in runs_of(argv) if r.log2_lr == JUDGED or (r.log2_lr == at["standard"] and r.rule.name != "spectral")]
    assert_as_if_all_norms_were_read(argv, opened, monkeypatch, runs)


def test_without_norms_the_verdict_is_the_same(argv):
    """As where the results came from an archive: the features are not judged, and the command does not fail."""
    verdicts = json.loads(analyze(argv)[1]["tiny/verdicts.json"])["verdicts"]
    for run in runs_of(argv):
        (folder_of(argv, run) / "norms.jsonl").unlink()
    screen, tables = analyze(argv)
    without = json.loads(tables["tiny/verdicts.json"])["verdicts"]
    assert "feature norms: not decided" in screen
    assert [(v["verdict"], v["slope"], v["regret"]) for v in without] == [
        (v["verdict"], v["slope"], v["regret"]) for v in verdicts
    ]


def test_where_no_lr_has_norms_at_every_size_all_are_read(argv, opened, monkeypatch):
    for run in runs_of(argv):
        if run.width == 256:
            (folder_of(argv, run) / "norms.jsonl").write_text("")
    assert_as_if_all_norms_were_read(argv, opened, monkeypatch, runs_of(argv))


def test_width_and_depth_together_as_if_all_norms_were_read(argv, opened, monkeypatch):
    argv = finished([*argv, "sweep.depth=[2,4,8]", "sweep.base_depth=2"])
    judged = [r for r in runs_of(argv) if r.log2_lr == JUDGED and (r.depth == 2 or r.width == 64)]
    assert_as_if_all_norms_were_read(argv, opened, monkeypatch, judged)


def test_runs_that_rules_share_count_once(argv, tmp_path):
    """The features of a rule are the same whether or not another one is judged beside it."""
    tables = []
    for rules in ("spectral,standard", "spectral"):
        afresh([*argv, f"rule=[{rules}]"])
        table = pd.read_csv(results_of(argv) / "tiny" / "features.csv")
        tables.append(table[table["rule"] == "spectral"])
    pd.testing.assert_frame_equal(*tables)


# --- what is not done again --------------------------------------------------------------------------------------------


def replace(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


CHANGES = {
    "a result": lambda runs, results: replace(runs[0] / "result.json", '"val_loss": ', '"val_loss": 1'),
    "norms": lambda runs, results: replace(runs[0] / "norms.jsonl", '"delta_rms": 0.0', '"delta_rms": 0.1'),
    "a run removed": lambda runs, results: shutil.rmtree(runs[0]),
    "a table edited": lambda runs, results: replace(results / "tiny" / "optima.csv", "spectral", "standard"),
    "a table removed": lambda runs, results: (results / "tiny" / "features.csv").unlink(),
    "the page removed": lambda runs, results: (results / "tiny" / "report.html").unlink(),
    "a damaged cache": lambda runs, results: replace(results / ".cache" / "tiny" / "report", "undecided", "transfers"),
    "no cache": lambda runs, results: shutil.rmtree(results / ".cache"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_judged_again(argv, opened, change):
    first, judged = afresh(argv), [folder_of(argv, run) for run in runs_of(argv) if run.log2_lr == JUDGED]
    opened.clear()
    assert analyze(argv) == first and not opened
    CHANGES[change](judged, results_of(argv))
    again = analyze(argv)
    assert opened and again == afresh(argv)
    assert (again != first) == (change in ("a result", "norms", "a run removed"))


TRAINED = {"code": "a" * 12, "commit": "1234+", "packages": {"torch": "2.11"}, "own": {}}
OTHERWISE = {
    "an edit between two launches": {"code": "b" * 12},
    "another torch": {"packages": {"torch": "2.12"}},
    "an optimizer of one's own": {"own": {"mine.Optimizer": "c" * 12}},
}


@pytest.mark.parametrize("change", OTHERWISE)
def test_runs_of_two_codes_are_said_and_not_as_claimed(argv, change, monkeypatch):
    """What differs without weight for the numbers, as the machine, is not said; runs of which it is not known count as any."""
    monkeypatch.setattr("spectral_mup.cli.analyze.as_claimed", lambda verdicts: True)
    runs = [folder_of(argv, run) for run in runs_of(argv)]
    for i, folder in enumerate(runs[1:]):
        (folder / "provenance.json").write_text(json.dumps(TRAINED | {"host": f"node{i}", "commit": f"{i}"}))
    screen, _ = afresh(argv)
    assert "by one code" not in screen and call("analyze", *argv, "--check")[0] == 0
    (runs[1] / "provenance.json").write_text(json.dumps(TRAINED | OTHERWISE[change]))
    screen, _ = afresh(argv)
    assert "were not trained by one code" in screen and f"  1 run, as {runs[1].name}: code " in screen
    assert call("analyze", *argv, "--check")[0] == 5 and call("analyze", *argv)[0] == 0
    assert len(json.loads((results_of(argv) / "tiny/verdicts.json").read_text())["codes"]) == 2
    (runs[1] / "provenance.json").write_text("[")  # nor does one that is damaged stop anything
    assert "by one code" not in afresh(argv)[0]


def test_an_added_run_is_judged(argv):
    first = afresh(argv)
    shutil.rmtree(folder_of(argv, runs_of(argv)[0]))
    assert "1 missing" in analyze(argv)[0]
    assert finished(argv) and analyze(argv) == first


def test_other_code_or_another_figure_is_another_report(argv, tmp_path, monkeypatch):
    def digest(*overrides):
        return inputs_of(Context(load_config([*argv, *overrides]), [*argv, *overrides]))

    assert digest() == digest() and digest("figures.only=[lr_transfer]") not in (None, digest())
    assert digest("figures.only=[lr_transfer,my_module.my_figure]") is None  # what it draws, nobody knows
    digests = []
    monkeypatch.setattr("spectral_mup.cli.analyze.PACKAGE", tmp_path / "package")
    for code in ("", "1", "2"):
        for file in ("module.py", "page.html", "page.css", "page.js"):
            (tmp_path / "package").mkdir(exist_ok=True)
            (tmp_path / "package" / file).write_text(code)
            digests.append(digest())
    assert len(set(digests)) == 3 * 4


# --- the page ----------------------------------------------------------------------------------------------------------


def test_one_page_covers_all_axes(argv):
    """In the sweep's folder, not in those below it."""
    argv = finished([*argv, "sweep.depth=[2,4,8]", "sweep.base_depth=2"])
    screen, _ = afresh(argv)
    (page,) = results_of(argv).rglob("*.html")
    text = page.read_text("utf-8")
    assert page == results_of(argv) / "tiny" / "report.html" and f"Report: {page}" in screen
    for said in ("Over width, at depth 2", "Over depth, at width 64", "over width and depth together", "hidden matrices"):
        assert said in text, said
    analyze([*argv, "verdict.slope=0.3", "yes=true"])
    assert page.read_text("utf-8") != text  # other inputs
    assert afresh(argv)[0] == screen and page.read_text("utf-8") == text


def test_one_page_covers_both_keys_that_were_tuned(tiny_overrides, undraw):
    undraw()
    keys = ["optimizer=muon", "sweep.tune=[lr,optimizer.adamw.lr]", "optimizer.algorithms.adamw.lr=0.25"]
    argv = [*tiny_overrides, *keys, "sweep.width=[32,64,128]", "rule=[spectral]"]
    config = composed(*argv)
    sweep, results = open_sweep(config), Results(Path(config.paths.runs))
    while (plan := make_plan(sweep, results.loss)).todo:
        for run in plan.todo:
            lr, partner = run.log2_lr, math.log2(run.optimizer.by_kind["vector"].lr)
            loss = 3 + 0.05 * (lr + 7) ** 2 + 0.04 * partner**2 - 0.01 * math.log2(run.width)
            finish(run, results.runs, val_loss=loss)
    analyze(argv)
    text = (results_of(argv) / "tiny" / "report.html").read_text("utf-8")
    assert text.count("<article") == 2 and "Over width, at depth 2: optimizer.adamw.lr" in text
    assert len(re.findall('id="runs-[^"]+"', text)) == len(set(re.findall('id="runs-[^"]+"', text))) == 2
