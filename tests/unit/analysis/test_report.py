"""Laws of the report: strict JSON, the same bytes from the same data, nothing missing unsaid, figures fit for print."""

import json
import math
import re
from dataclasses import replace

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from support.analysis_data import data
from support.figures import assert_printable

from spectral_mup.analysis.figures import FIGURES, FigureSpec, SweepData
from spectral_mup.analysis.report import format_verdicts, judge_all, notes_on, report, table_of
from spectral_mup.util.text import table

DRAWN = [
    "lr_transfer",
    "coord_check",
    "feature_norms",
    "feature_modules",
    "feature_steps",
]  # of norms that hold neither tensors' diagnostics nor depths


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    points, norms = data()
    folders = [tmp_path_factory.mktemp("report") for _ in range(2)]
    shuffled = points.sample(frac=1, random_state=1).sort_values("rule", ascending=False)
    for folder, shown, processes in zip(folders, (points, shuffled), (1, 2), strict=True):
        verdicts = report(
            shown, norms, name="demo", out_dir=folder, base={"width": 64}, command="analyze", commit="abc", processes=processes
        )
    return folders, verdicts


def test_the_same_data_give_the_same_bytes(written):
    """In whatever order the runs come, and in however many processes they are drawn."""
    (one, two), _ = written
    names = sorted(p.name for p in one.iterdir())
    drawn = [f"{stem}.{kind}" for stem in DRAWN for kind in ("csv", "pdf", "png", "svg", "txt")]
    assert names == sorted([*drawn, "curves.csv", "features.csv", "optima.csv", "verdicts.json"])
    assert [n for n in names if (one / n).read_bytes() != (two / n).read_bytes()] == []


def test_what_a_figure_raises_is_raised(tmp_path, monkeypatch):
    def wrong(sweep):
        raise OSError(28, "No space left on device", "wrong.pdf")

    points, norms = data()
    monkeypatch.setattr("spectral_mup.analysis.figures.FIGURES", {name: FigureSpec(wrong, "") for name in "ab"})
    for processes in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            report(points, norms, name="demo", out_dir=tmp_path, processes=processes)


def test_other_data_give_other_bytes(written, tmp_path):
    """Control of the law above; lr_transfer draws no norms, so only the losses differ."""
    ((one, _), _), (points, _) = written, data()
    report(points.assign(loss=points["loss"] + 0.01), pd.DataFrame(), name="demo", out_dir=tmp_path, base={"width": 64})
    for kind in ("pdf", "svg", "png", "csv"):
        assert (tmp_path / f"lr_transfer.{kind}").read_bytes() != (one / f"lr_transfer.{kind}").read_bytes()


def test_json_is_strict_and_says_what_was_found(written):
    (folder, _), _ = written

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((folder / "verdicts.json").read_text("utf-8"), parse_constant=refuse)
    assert (content["command"], content["commit"], len(content["run_ids"])) == ("analyze", "abc", 2 * 4 * 11 * 2)
    standard, spectral = content["verdicts"]
    assert (standard["verdict"], spectral["verdict"]) == ("drifts", "transfers")
    assert standard["slope"]["lo"] <= -0.5 <= standard["slope"]["hi"]
    assert standard["features"]["failed"] == ["blocks.1.attn"] and spectral["features"]["passed"] is True
    assert spectral["counts"]["missing"] == 1 and spectral["counts"]["diverged"] > 0


def test_tables_hold_every_point_and_optimum(written):
    (folder, _), _ = written
    assert len(pd.read_csv(folder / "curves.csv")) == 2 * 4 * 11 * 2
    optima = pd.read_csv(folder / "optima.csv")
    assert len(optima) == 8 and optima["bracketed"].all() and (optima["lo"] <= optima["log2_lr"]).all()
    drawn = pd.read_csv(folder / "lr_transfer.csv")
    assert set(drawn["what"]) == {"seed", "mean", "optimum", "diverged", "drift"}
    assert (drawn.query("what == 'diverged'")["k"] < drawn.query("what == 'diverged'")["n"]).any()


def test_fonts_can_be_printed(written):
    (folder, _), _ = written
    for stem in DRAWN:
        pdf = (folder / f"{stem}.pdf").read_bytes()
        assert b"/Type3" not in pdf and b"/FontFile2" in pdf and b"CreationDate" not in pdf
    with matplotlib.rc_context({"pdf.fonttype": 3}):  # control: what the default would embed
        figure = matplotlib.figure.Figure()
        figure.text(0, 0, "x")
        figure.savefig(folder / "control.bin", format="pdf")
    assert b"/Type3" in (folder / "control.bin").read_bytes()
    (folder / "control.bin").unlink()


def test_screen_table(written):
    _, verdicts = written
    screen = format_verdicts(verdicts)
    lines = screen.splitlines()
    assert lines[2].startswith("standard") and "drifts" in lines[2] and lines[3].startswith("spectral")
    assert "1 missing" in screen and "failed: blocks.1.attn (+1.00)" in screen and "passed (indicative)" in screen
    assert "nan" not in screen


@pytest.mark.parametrize("sizes", [(64, 128), (64, 128, 256), tuple(2**k for k in range(5, 14))])
def test_the_screen_fits_a_hundred_columns_and_leaves_nothing_out(sizes):
    points, norms = data(sizes=sizes)
    verdicts = judge_all(points, norms, "width", sizes[0])
    lines = format_verdicts(verdicts).splitlines()
    assert max(map(len, lines)) <= 100
    heads = [re.split(r"\s{2,}", line) for line in lines if line.startswith("rule ")]
    assert (len(heads) > 1) == (len(table(table_of(verdicts))[0]) > 100)
    assert ["rule", *(title for head in heads for title in head[1:])] == table_of(verdicts)[0]
    whole = " ".join(" ".join(lines).split())
    for note in notes_on(verdicts):
        assert " ".join(note.split()) in whole


def test_one_seed_is_said():
    points, _ = data(rules=("a", "b"))
    caveat = "with one seed, an interval rests on"
    two = points["seed"] == 1
    for kept, times in ((~two, 1), (~two | (points["rule"] == "a"), 1), (two | ~two, 0)):
        verdicts = judge_all(points[kept], pd.DataFrame(), "width", 64)
        assert format_verdicts(verdicts).count(caveat) == times


def test_what_is_undecided_is_said():
    points, norms = data(rules=("spectral",))
    low = points[points["log2_lr"] <= -9.5]
    (verdict,) = judge_all(low, pd.DataFrame(), "width", 64)
    screen = format_verdicts([verdict])
    assert "undecided: not bracketed: test higher lr at width 64, 128, 256, 512" in screen and ">-9.50" in screen
    assert "no norms were recorded" in screen


def test_a_single_lr_has_features_but_no_slope(tmp_path):
    """A feature check runs at one lr: its best one is no optimum, so there is no slope of 0 to be read."""
    points, norms = data(("spectral",))
    points = points[points["log2_lr"] == -9.0]
    (verdict,) = report(points, norms, name="s", out_dir=tmp_path, base={"width": 64})
    assert math.isnan(verdict.slope) and math.isnan(verdict.regret) and verdict.verdict == "undecided"
    assert verdict.features is not None and verdict.features.passed
    assert json.loads((tmp_path / "verdicts.json").read_text())["verdicts"][0]["slope"]["estimate"] is None
    assert "feature norms" in format_verdicts([verdict])


def test_a_sweep_of_which_nothing_ran_is_still_reported(tmp_path):
    points, _ = data(rules=("spectral",))
    none = points.assign(status="missing", loss=np.nan, steps=None, tokens=None, epochs=None)
    (verdict,) = report(none, pd.DataFrame(), name="x", out_dir=tmp_path, base={"width": 64})
    assert verdict.verdict == "undecided" and math.isnan(verdict.slope)
    assert json.loads((tmp_path / "verdicts.json").read_text("utf-8"))["verdicts"][0]["slope"]["estimate"] is None
    assert (tmp_path / "lr_transfer.pdf").exists() and not (tmp_path / "feature_norms.pdf").exists()
    assert "none" in format_verdicts([verdict])
    with pytest.raises(ValueError, match="no points"):
        report(points[:0], pd.DataFrame(), name="x", out_dir=tmp_path)


@pytest.mark.parametrize(
    ("rules", "sizes", "axis"),
    [(1, (8, 16), "width"), (4, (2, 4, 8), "depth"), (6, (64, 128, 256, 512, 1024, 2048, 4096, 8192), "width")],
)
def test_figures_of_any_shape_keep_their_texts_apart(rules, sizes, axis):
    points, norms = data([f"rule-{i}" for i in range(rules)], sizes, axis)
    verdicts = judge_all(points, norms, axis, sizes[0])
    if rules > 1:  # one rule whose norms were not recorded
        verdicts[0] = replace(verdicts[0], features=replace(verdicts[0].features, step=None, summary="not decided"))
    for name in DRAWN:
        drawn, table = FIGURES[name](SweepData(points, norms, verdicts, {axis: sizes[0]}, axis))
        assert len(table)
        assert_printable(drawn)
