"""Laws of judge: a table of anybody's is judged as analyze judges its runs; what cannot be judged is one line with the fix."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from support.analysis_data import data, sweep

import spectral_mup as sm
from spectral_mup.analysis.figures import FIGURES, SweepData
from spectral_mup.analysis.own_runs import TableError
from spectral_mup.analysis.report import report

RESULTS = Path(__file__).parents[3] / "sweeps" / "results"
COMMITTED = sorted(path.parent for path in RESULTS.rglob("verdicts.json") if (path.parent / "curves.csv").exists())
OTHER_WORDS = {"recipe/adamw", "muon_by_turns/optimizer.adamw.lr"}  # written when a verdict's basis was the fewest seeds alone


GRID = np.arange(-13.0, -6.9, 0.5)


def own(slope=0.0, *, widths=(64, 128, 256), seeds=(0, 1), values=GRID):
    """Runs with losses 3 - 0.1·log2(width/64) + 0.05·(x - x*)², x* = -9 + slope·log2(width/64), seeds apart by 0.01."""
    rows = []
    for width in widths:
        octaves = np.log2(width / 64)
        for seed in seeds:
            for x in values:
                loss = 3 - 0.1 * octaves + 0.05 * (x + 9 - slope * octaves) ** 2 + 0.01 * seed
                rows.append({"d_model": width, "log2_eta": x, "val": loss, "run": seed})
    return pd.DataFrame(rows)


NAMES = {"size": "d_model", "value": "log2_eta", "loss": "val", "seed": "run"}
GIVEN = own().rename(columns={"d_model": "width", "log2_eta": "log2_lr", "val": "loss", "run": "seed"})


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda f: f.relative_to(RESULTS).as_posix())
def test_a_table_of_a_sweep_is_judged_as_analyze_judged_it(folder):
    """As closely as the ten digits of curves.csv allow; among the folders are depths, missing runs, another key than lr."""
    loaded = sm.load(folder)
    content = json.loads((folder / "verdicts.json").read_text("utf-8"))
    first = content["verdicts"][0]
    settings = {name: first[name] for name in ("base", "tolerance", "alpha", "regret_limit")}
    value = "value" if "value" in loaded.runs else "log2_lr"
    judged = sm.judge(loaded.runs, first["axis"], value, rule="rule", **settings)
    words = ["basis", "reason"] if folder.relative_to(RESULTS).as_posix() in OTHER_WORDS else []
    order = {"key": lambda c: c, "by": "rule", "ignore_index": True}
    ours, theirs = (table.drop(columns=words).sort_values(**order) for table in (judged.to_frame(), loaded.verdicts))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-6, atol=1e-6)
    for v, written in ((judged[written["rule"]], written) for written in content["verdicts"]):
        assert v.verdict == written["verdict"] and v.counts == written["counts"]
        for size, o in zip(v.optima, written["optima"], strict=True):
            assert o[first["axis"]] == size
            if v.optima[size] is not None:
                assert v.optima[size].log2_lr == pytest.approx(o["log2_lr"], abs=1e-7)


def test_the_same_runs_and_level_give_the_same_numbers_to_the_bit(tmp_path):
    points, norms = data()
    report(points, norms, name="demo", out_dir=tmp_path, base={"width": 64}, figures=[])
    content = json.loads((tmp_path / "verdicts.json").read_text("utf-8"))
    judged = sm.judge(points, rule="rule")
    for written in content["verdicts"]:
        v = judged[written["rule"]]
        assert (v.slope, v.slope_lo, v.slope_hi) == tuple(written["slope"][key] for key in ("estimate", "lo", "hi"))
        assert (v.regret, v.regret_lo, v.regret_hi) == tuple(written["regret"][key] for key in ("estimate", "lo", "hi"))
        assert (v.verdict, v.counts, v.reason) == (written["verdict"], written["counts"], written["reason"])
        assert [o.log2_lr for o in v.optima.values()] == [o["log2_lr"] for o in written["optima"]]
    other = sm.judge(points, rule="rule", alpha=0.0158)  # control: another level, other intervals
    assert all(other[rule].slope_hi != v.slope_hi for rule, v in judged.items())


def test_a_table_of_ones_own_with_numbers_known_by_hand():
    """Slope -1: over two doublings the optimum moves by two octaves, which costs 0.05·2² nats of the 2.805 at width 256."""
    drifts = sm.judge(own(-1.0), **NAMES)["all runs"]
    assert drifts.verdict == "drifts" and drifts.slope == pytest.approx(-1, abs=1e-6)
    assert drifts.regret == pytest.approx(0.2 / 2.805, rel=1e-3)
    assert [o.log2_lr for o in drifts.optima.values()] == pytest.approx([-9, -10, -11], abs=1e-6)
    flat = sm.judge(own(), **NAMES)["all runs"]
    assert flat.verdict == "transfers" and flat.slope == pytest.approx(0, abs=1e-6) and flat.base == 64
    assert sm.judge(own(-0.3), **NAMES, tolerance=0.25, regret_limit=1)["all runs"].verdict == "drifts"
    assert sm.judge(own(-0.3), **NAMES, tolerance=0.35, regret_limit=1)["all runs"].verdict == "transfers"
    assert sm.judge(own(-1.0), **NAMES, base=256)["all runs"].regret == pytest.approx(0.2 / 3.005, rel=1e-3)


def test_rules_are_judged_apart():
    both = pd.concat([own(0.0).assign(lr_rule="mup"), own(-1.0).assign(lr_rule="none")])
    judged = sm.judge(both, **NAMES, rule="lr_rule")
    assert {rule: v.verdict for rule, v in judged.items()} == {"mup": "transfers", "none": "drifts"} and len(judged) == 2
    numbered = sm.judge(both.assign(lr_rule=both["lr_rule"].map({"mup": 1, "none": 2})), **NAMES, rule="lr_rule")
    assert {rule: v.verdict for rule, v in numbered.items()} == {"1": "transfers", "2": "drifts"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None, pd.NA])
def test_a_loss_that_is_not_finite_is_a_diverged_run(bad):
    table = own()
    table["val"] = table["val"].astype(object).where(table["log2_eta"] < -7.4, bad)
    v = sm.judge(table, **NAMES)["all runs"]
    assert v.counts == {"done": 3 * 2 * 12, "diverged": 3 * 2, "missing": 0} and v.verdict == "transfers"
    points = sweep(0.0)
    points.loc[points.index[:3], "loss"] = np.nan
    said = sm.judge(points.assign(status=["missing"] * 3 + ["done"] * (len(points) - 3)))  # as curves.csv has it
    assert said["all runs"].counts["missing"] == 3 and said["all runs"].counts["diverged"] == 0
    ended = sm.judge(points.assign(status="done"))  # at the end its loss was none
    assert ended["all runs"].counts == {"done": len(points) - 3, "diverged": 3, "missing": 0}
    crashed = sm.judge(points.assign(status="finished"))  # control: a column that says something else
    assert crashed["all runs"].counts["diverged"] == 3


def test_row_order_index_and_types_do_not_matter():
    table = own(-0.4)
    expected = sm.judge(table, **NAMES).to_frame()
    mixed = table.sample(frac=1, random_state=0)
    mixed.index = [0] * len(mixed)
    mixed = mixed.astype({"d_model": float, "val": object, "run": object})
    pd.testing.assert_frame_equal(sm.judge(mixed, **NAMES).to_frame(), expected)
    named = table.assign(run=table["run"].map({0: "first", 1: "second"}))
    pd.testing.assert_frame_equal(sm.judge(named, **NAMES).to_frame(), expected)


def test_values_that_differ_by_rounding_are_one():
    """The lrs of one seed went through float32: 3e-4 is another number then, by 1e-8 octaves."""
    lrs = 3e-4 * 2.0 ** np.arange(-2, 2.1, 0.5)
    table = own(values=np.log2(lrs))
    rounded = np.log2(lrs.astype(np.float32).astype(float))
    table["log2_eta"] = np.where(table["run"] == 1, np.tile(rounded, 6), table["log2_eta"])
    assert table["log2_eta"].nunique() > len(lrs)
    curve = sm.judge(table, **NAMES)["all runs"].optima[64].curve
    assert curve.losses_SL.shape == (2, len(lrs)) and np.isfinite(curve.losses_SL).all()


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (GIVEN.drop(columns="width"), {}, r"^size='width': no such column; give size= one of log2_lr, loss, seed$"),
        (GIVEN.rename(columns={"loss": "losses"}), {}, r"^loss='loss': no such column; did you mean loss=losses\?"),
        (GIVEN.drop(columns="seed"), {}, r"^seed='seed': no such column.*df.assign\(seed=0\)"),
        (GIVEN, {"rule": "optimizer"}, r"^rule='optimizer': no such column"),
        (GIVEN.set_index("width"), {}, r"^size='width': is in the index of df; give df.reset_index\(\)"),
        (GIVEN.groupby(["width", "log2_lr"])[["loss", "seed"]].min(), {}, r"^size='width': is in the index"),
        (pd.concat([GIVEN, GIVEN["loss"]], axis=1), {}, r"^loss='loss': df has several columns of this name"),
        (GIVEN, {"size": "loss"}, r"^size='loss', .*loss='loss', .*give each a column of its own"),
        (pd.concat([GIVEN, GIVEN[:1]]), {}, r"^seed='seed': several runs have width 64, log2_lr -13.0, seed 0; keep one"),
        (pd.concat([GIVEN.assign(rule=r) for r in "ab"]), {}, r"^seed='seed': several runs .* as seed= or rule="),
        (pd.concat([GIVEN, GIVEN[:1]]).assign(r="x"), {"rule": "r"}, r"several runs have .*, seed 0, r x"),
        (GIVEN[GIVEN["width"] == 64], {}, r"^size='width': all runs have width 64; a slope needs several sizes"),
        (GIVEN.assign(loss=GIVEN["loss"].astype(str)), {}, r"^loss='loss': holds '3.8' in row 0, .*\['loss'\].astype\(float\)"),
        (GIVEN.assign(width="64"), {}, r"^size='width': holds '64' in row 0, which is not a number"),
        (GIVEN.assign(loss=GIVEN["loss"] > 3), {}, r"^loss='loss': holds True in row 0, which is not a number"),
        (GIVEN.assign(log2_lr=pd.Timestamp(0)), {}, r"^value='log2_lr': holds Timestamp"),
        (GIVEN.assign(width=GIVEN["width"].where(GIVEN.index != 3)), {}, r"^size='width': holds nan in row 3; .* drop the row"),
        (GIVEN.assign(width=GIVEN["width"] / 1000), {}, r"^size='width': holds 0.064; give whole numbers from 1"),
        (GIVEN.assign(width=-GIVEN["width"]), {}, r"^size='width': holds -64; give whole numbers from 1"),
        (GIVEN.assign(log2_lr=2**GIVEN["log2_lr"]), {}, r"^value='log2_lr': values from 0.000122.* take np.log2, as in df"),
        (GIVEN.assign(log2_lr=100 * 2 ** (GIVEN["log2_lr"] - 5)), {}, r"^value='log2_lr': values from .* take np.log2"),
        (GIVEN.assign(log2_lr=-np.inf), {}, r"^value='log2_lr': holds -inf in row 0"),
        (GIVEN.assign(seed=GIVEN["seed"].where(GIVEN.index != 1)), {}, r"^seed='seed': is missing in row 1"),
        (GIVEN.assign(r=None), {"rule": "r"}, r"^rule='r': is missing in row 0"),
        (GIVEN.assign(loss=-GIVEN["loss"]), {}, r"^loss='loss': holds -3.81,.*; give a loss above 0"),
        (GIVEN.assign(loss=0.0), {}, r"^loss='loss': holds 0, "),
        (GIVEN[:0], {}, r"^df: has no rows"),
        (pd.DataFrame(), {}, r"^size='width': no such column"),
        (GIVEN.to_dict("records"), {}, r"^df: a list; give a pandas DataFrame"),
        (GIVEN, {"base": 32}, r"^base=32: no run has width 32; give one of 64, 128, 256"),
        (GIVEN, {"alpha": 0}, r"^alpha=0: give a number above 0, below 1, as 0.05"),
        (GIVEN, {"alpha": "5 %"}, r"^alpha='5 %': give a number"),
        (GIVEN, {"alpha": 95}, r"^alpha=95: give a number above 0, below 1"),
        (GIVEN, {"tolerance": -1}, r"^tolerance=-1: give a number above 0$"),
        (GIVEN, {"size": None}, r"^size=None: give the name of a column"),
        (GIVEN, {"size": ["width"]}, r"^size=\['width'\]: give the name of a column"),
        (GIVEN.rename(columns={"width": "rule"}), {"size": "rule"}, r"^size='rule': rename the column"),
        (GIVEN.assign(width=2.0**64), {}, r"^size='width': holds 1.84467e\+19; give whole numbers from 1 to 2\^53"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_one_line_with_the_fix(table, arguments, message):
    with pytest.raises(TableError, match=message) as error:
        sm.judge(table, **arguments)
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


def test_log2_values_that_are_positive_are_none_of_natural_scale():
    """log2 of a batch size or of a warmup: 3 to 7 octaves."""
    table = own().assign(log2_eta=own()["log2_eta"] + 14)
    v = sm.judge(table, **NAMES)["all runs"]
    assert v.verdict == "transfers" and v.optima[64].log2_lr == pytest.approx(5, abs=1e-6)


def test_it_prints_and_converts():
    judged = sm.judge(own(-1.0), **NAMES)
    lines = str(judged).splitlines()
    assert repr(judged) == str(judged) and lines[0].split()[:4] == ["rule", "over", "d", "model"]
    assert lines[2].startswith("all runs  drifts") and "log2 of the best eta" in str(judged) and "18 runs" not in str(judged)
    html = judged._repr_html_()
    assert html.count("<tr>") == 2 and "<td>drifts</td>" in html
    frame = judged.to_frame()
    assert frame.loc[0, ["rule", "axis", "verdict"]].to_list() == ["all runs", "d_model", "drifts"]
    assert frame.loc[0, "slope_lo"] <= -1 <= frame.loc[0, "slope_hi"] and frame.loc[0, "done"] == 78
    assert judged.optima["d_model"].to_list() == [64, 128, 256]
    angled = sm.judge(own().assign(r="<b>&"), **NAMES, rule="r")._repr_html_()
    assert "&lt;b&gt;&amp;" in angled and "<b>" not in angled


def drawn(ax):
    """Points of each line, but for those that span the axes; crosses stand as high as the axes ask."""
    lines = [line for line in ax.lines if line.get_transform() == ax.transData]
    return [[line.get_xdata(), line.get_ydata() * (line.get_marker() != "x")] for line in lines]


def test_it_draws_into_ones_own_axes_what_the_figure_of_a_sweep_draws():
    points, _ = data()
    judged = sm.judge(points, rule="rule")
    axes = Figure(figsize=(9, 3)).subplots(1, 3)
    for ax, rule in zip(axes, [*judged, None], strict=True):
        assert judged.plot(ax, rule=rule) is ax
    drawing = FIGURES["lr_transfer"](SweepData(points, pd.DataFrame(), judged.verdicts, {"width": 64}))
    assert drawing is not None
    figure = drawing[0]
    for ours, theirs in zip(axes[:2], figure.axes, strict=False):
        assert len(drawn(ours)) == len(drawn(theirs)) > 8
        for one, other in zip(drawn(ours), drawn(theirs), strict=True):
            assert np.array_equal(one, other)
        assert ours.get_xlabel() == "learning rate" and ours.get_ylabel() == "loss"
    slopes = [text.get_text() for text in axes[2].get_legend().get_texts()]
    assert slopes[0].startswith("standard: \N{MINUS SIGN}0.5") and axes[2].get_ylabel() == "optimal learning rate"


def test_plot_lr_transfer_takes_a_table_and_makes_axes():
    ax = sm.plot_lr_transfer(GIVEN)
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_markersize() == 6 and line.get_zorder() == 5]
    assert marks == pytest.approx([-9] * 3, abs=1e-6) and ax.figure.axes == [ax]
    pyplot.close(ax.figure)
    judged = sm.judge(own(), **NAMES)
    other = Figure().subplots()
    assert sm.plot_lr_transfer(judged, ax=other) is other and other.get_xlabel() == "eta" and other.get_ylabel() == "val"
    nothing = sm.judge(own().assign(val=np.nan), **NAMES)
    assert len(nothing.plot(Figure().subplots()).lines) > 39  # a cross a run
    with pytest.raises(TableError, match="^rule='x': is none of all runs"):
        judged.plot(rule="x")
    with pytest.raises(TableError, match="^runs: a str; give what judge or load returned"):
        sm.plot_lr_transfer("results/default")


def test_neither_torch_nor_before_a_drawing_matplotlib_is_imported():
    code = "import sys, spectral_mup as sm, pandas as pd; sm.judge, sm.load, sm.Loaded; "
    code += "print(sm.judge(pd.DataFrame({'width': [1, 2], 'log2_lr': -1, 'loss': 1., 'seed': 0}))); "
    code += "assert not {'torch', 'matplotlib', 'hydra'} & set(sys.modules); sm.check_features; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    code = "import sys, spectral_mup as sm; sm.Trainer, sm.scale, sm.recipe; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
