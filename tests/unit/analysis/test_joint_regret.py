"""Laws over width and depth together, of figures fit for print, and of the command line over either axis."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import deep_data, flat, sweep, sweep_data
from support.figures import assert_printable

import analyze
from spectral_mup.analysis.figures import FIGURES, SweepData
from spectral_mup.analysis.figures.style import save
from spectral_mup.analysis.joint_regret import format_joint_regret, joint_regret
from spectral_mup.analysis.report import report_joint
from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

# --- width and depth together ------------------------------------------------------------------------------------------


def grid_of(drift, rule="r", widths=(64, 128, 256), depths=(2, 4, 8)):
    """runs of parabolas 0.05·octaves², their optimum at -9 + drift(log2 width ratio, log2 depth ratio)."""
    found = []
    for i, width in enumerate(widths):
        for j, depth in enumerate(depths):
            part = sweep(sizes=(depth,), axis="depth", noise=0.0, best=-9 + drift(i, j), grid=np.arange(-12, -5.9, 0.5))
            found.append(part.assign(width=width, rule=rule))
    table = pd.concat(found, ignore_index=True).assign(
        family="nanogpt", optimizer="adamw", steps=100, tokens=409600, epochs=0.4, run_id="x"
    )
    return table.assign(diverged_step=np.nan)


BASE = {"width": 64, "depth": 2}


def joint_figure(points):
    return FIGURES["joint_regret"](SweepData(points, pd.DataFrame(), [], BASE, "joint"))[0]


def test_regret_is_that_of_the_parabola():
    points = pd.concat([grid_of(lambda i, j: i / 4 + j / 2), grid_of(lambda i, j: 0, "stays")], ignore_index=True)
    table = joint_regret(points, BASE).set_index(["rule", "width", "depth"])
    assert (table["base_log2_lr"] + 9).abs().max() < 0.01 and not table["at_least"].any()
    for (rule, width, depth), row in table.iterrows():
        octaves = np.log2(width / 64) / 4 + np.log2(depth / 2) / 2 if rule == "r" else 0
        assert row["regret"] == pytest.approx(0.05 * octaves**2 / row["loss"], rel=0.02, abs=1e-5)
        assert row["log2_lr"] == pytest.approx(-9 + octaves, abs=0.01)
    assert "r: over width and depth together the base's lr costs most, 3.22%, at width 256, depth 8" in format_joint_regret(
        table.reset_index()
    )


def test_what_did_not_finish_or_is_not_bracketed_is_a_lower_bound_and_what_is_missing_blank():
    points = grid_of(lambda i, j: -0.5 * j)
    here = {(w, d): (points["width"] == w) & (points["depth"] == d) for w in (64, 128, 256) for d in (2, 4, 8)}
    high = points["log2_lr"] >= -9.25
    points.loc[here[256, 8] & high, ["status", "loss"]] = ["diverged", np.nan]  # the base's lr, -9, does not finish
    points.loc[here[128, 8], ["status", "loss"]] = ["diverged", np.nan]
    points.loc[here[64, 8], ["status", "loss"]] = ["missing", np.nan]
    lost = points[~here[64, 2]]
    points = points[~(here[256, 2] & (points["log2_lr"] < -9.25))]  # own optimum at the edge
    table = joint_regret(points, BASE)
    cells = table.set_index(["width", "depth"])
    assert set(cells[cells["at_least"]].index) == {(256, 8), (256, 2)}
    assert set(cells[cells["regret"].isna()].index) == {(128, 8), (64, 8)}
    figure = joint_figure(points)
    shown = [t.get_text() for t in figure.axes[0].texts]
    assert len(shown) == 7 and sum(t.startswith("≥") for t in shown) == 2
    table = joint_regret(lost, BASE)  # nothing at the base: no regret anywhere
    assert table["regret"].isna().all() and "unknown" in format_joint_regret(table)
    assert not joint_figure(lost).axes[0].texts


# --- figures fit for print ---------------------------------------------------------------------------------------------


def test_the_same_data_give_the_same_bytes_and_other_data_others(tmp_path):
    points, norms = deep_data({"r": flat}, (2, 4))
    grid = grid_of(lambda i, j: j / 2)
    for folder, factor in {"a": 1.0, "b": 1.0, "c": 1.5}.items():
        other = grid.assign(loss=grid["loss"] * factor + (factor > 1) * 0.1 * grid["log2_lr"])
        report_joint(other, pd.DataFrame(), [], BASE, tmp_path / folder)
        rows = norms.assign(delta_rms=norms["delta_rms"] * factor)
        figure, drawn = FIGURES["layers"](sweep_data(points, rows, "depth", 2))
        save(figure, tmp_path / folder / "layers", drawn)
    names = [f"{stem}.{kind}" for stem in ("joint_regret", "layers") for kind in ("csv", "pdf", "png", "svg", "txt")]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    same, other = ([(tmp_path / "a" / n).read_bytes() == (tmp_path / x / n).read_bytes() for n in names] for x in "bc")
    assert all(same) and not any(o for n, o in zip(names, other, strict=True) if not n.endswith(".txt"))


@pytest.mark.parametrize("rules", [1, 4])
def test_figures_of_any_shape_keep_their_texts_apart(rules):
    names = [f"tensor_programs_{i}" for i in range(rules)]
    points, norms = deep_data(dict.fromkeys(names, lambda n, p, depth: 0.2 + p))
    grid = pd.concat([grid_of(lambda i, j: -0.9 * j, name) for name in names], ignore_index=True)
    assert_printable(FIGURES["layers"](sweep_data(points, norms, "depth", 2))[0], texts_in_panels=True)
    assert_printable(joint_figure(grid), texts_in_panels=True)


# --- command line ------------------------------------------------------------------------------------------------------


def synthetic(argv, best):
    """Run folders of a finished sweep whose optimum is best(log2 width ratio, log2 depth ratio), without norms."""
    config = load_config(argv)
    for curve, runs in make_plan(open_sweep(config), lambda run_id: None).curves.items():
        at = [math.log2(curve.width / 32), math.log2(curve.depth)]
        for run in runs:
            folder = RunFolder(Path(config.paths.runs), run.run_id)
            folder.write_config(run.to_json())
            folder.claim()
            folder.append("norms.jsonl", [])
            loss = 3 + 0.01 * (run.log2_lr - best(*at)) ** 2 - 0.1 * sum(at)
            done = {"status": "done", "diverged_step": None, "steps": 12, "tokens": 768, "epochs": 0.1, "parameters": 1000}
            folder.finish(done | {"precision": "float32", "val_loss": loss, "corpus": {"sha256": "0"}})


@pytest.fixture
def both(tiny_overrides, monkeypatch):
    """Overrides of a sweep over width and depth, whose figures are not drawn, as that takes time."""
    monkeypatch.setattr("spectral_mup.analysis.figures.FIGURES", {})
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda *args: [])
    sizes = ["sweep.width=[32,64,128]", "sweep.depth=[1,2,4]", "sweep.base_depth=1", "rule=[spectral]"]
    return [*tiny_overrides, *sizes, "sweep.lr=[-8,-7.5,-7,-6.5,-6,-5.5]", "lr.adaptive=false"]


@pytest.mark.parametrize(
    ("drift", "verdicts"),
    [
        ((0, 0), ("transfers", "transfers")),
        ((-0.6, 0), ("drifts", "transfers")),
        ((0, -0.6), ("transfers", "drifts")),
    ],
)
def test_both_axes_are_judged_and_checked(both, tmp_path, capsys, drift, verdicts):
    synthetic(both, lambda i, j: -6.2 + drift[0] * i + drift[1] * j)
    assert analyze.main(both) == 0
    screen = capsys.readouterr().out
    assert "Over width, at depth 1" in screen and "Over depth, at width 32" in screen and "costs most" in screen
    results = tmp_path / "results" / "tiny"
    written = [json.loads((results / below / "verdicts.json").read_text("utf-8")) for below in (".", "depth")]
    assert [(w["axis"], w["verdicts"][0]["verdict"]) for w in written] == list(zip(("width", "depth"), verdicts, strict=True))
    assert len(pd.read_csv(results / "joint_regret.csv")) == 9
    assert analyze.main([*both, "--check"]) == (0 if drift == (0, 0) else 5)
    capsys.readouterr()
    assert analyze.main(["--summary", str(results)]) == 0
    screen = capsys.readouterr().out
    assert (
        "loss w128" in screen and "loss d4" in screen and f"{verdicts[1]:9}  depth" in screen and "adamw (tiny/depth)" in screen
    )
    assert {"log2_lr_width_128", "log2_lr_depth_4"} <= set(pd.read_csv(results / "summary.csv"))


def test_one_axis_is_judged_at_the_size_of_the_other(both, tmp_path, capsys):
    argv = [*both, "sweep.width=[64]", "sweep.name=deep"]
    synthetic(argv, lambda i, j: -6.2)
    assert analyze.main([*argv, "--check"]) == 0
    assert "over depth" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "deep" / "verdicts.json").read_text("utf-8"))["axis"] == "depth"
    assert not (tmp_path / "results" / "deep" / "joint_regret.csv").exists()


def test_the_limits_of_a_verdict_are_keys(both, capsys):
    argv = [*both, "sweep.depth=[1]", "sweep.name=limits"]
    synthetic(argv, lambda i, j: -6.2 - 0.2 * i)  # 0.06 % of the loss at width 128
    for keys, verdict in ([], "transfers"), (["verdict.slope=0.1"], "drifts"), (["verdict.regret=0.0001"], "costs"):
        assert analyze.main([*argv, *keys, "yes"]) == 0
        assert verdict in capsys.readouterr().out.splitlines()[2]


def test_an_axis_whose_base_has_not_begun_is_said(both, capsys):
    """An adaptive search begins at the smallest depth; the base, deeper, is reached later."""
    argv = [*both, "sweep.base_depth=4", "lr.adaptive=true", "sweep.name=begun"]
    synthetic(argv, lambda i, j: -6.2)  # the runs planned while nothing is known
    assert analyze.main([*argv, "--check"]) == 5
    assert "Over width, at depth 4: no runs yet" in capsys.readouterr().out
