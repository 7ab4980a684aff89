"""Laws of what check_features returns: it prints, converts and draws the same numbers."""

import functools

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from support.analysis_data import norm_rows
from support.networks import batch, loss, mlp

import spectral_mup as sm
from spectral_mup.analysis.feature_check import check_features, relative
from spectral_mup.analysis.figures.style import MODULES

WIDTHS = [16, 32, 64]


@functools.cache
def verdict(control: str | None = "standard") -> sm.FeatureVerdict:
    return sm.check_features(mlp, WIDTHS, "muon", lr=0.025, batch=batch, loss=loss, steps=3, control=control)


def test_the_frame_has_a_row_a_module_with_what_is_printed():
    frame = verdict().to_frame()
    assert frame["name"].to_list() == ["0", "2", "logits"] and frame["limit"].to_list() == [0.10, 0.15, 0.10]
    lines = [line.split() for line in str(verdict()).splitlines()[1:4]]
    assert repr(verdict()) == str(verdict())
    assert [f"{slope:+.2f}" for slope in frame["slope"]] == [line[2] for line in lines]
    assert [f"{slope:+.2f}" for slope in frame["slope_of_control"]] == [line[-1] for line in lines]
    values = relative(verdict().check, "feature", "logits")  # size, seed, value, log2 of it relative to the smallest
    slope, _ = np.polyfit(np.log2(values[:, 0]), np.log2(values[:, 2]), 1)
    assert frame["slope"][2] == pytest.approx(slope, abs=1e-9)
    assert list(verdict(None).to_frame()) == ["name", "kind", "slope", "lo", "hi", "limit", "verdict"]


def test_a_notebook_shows_the_same_cells():
    html = verdict()._repr_html_()
    assert html.count("<tr>") == 4 and "<td>logits</td>" in html and "control standard: " in html
    assert "<th>standard</th>" not in verdict(None)._repr_html_() and "control" not in verdict(None)._repr_html_()


def test_it_draws_every_module_into_ones_own_axes():
    left, right = Figure().subplots(1, 2)
    assert verdict().plot(left) is left and sm.plot_features(verdict().control_check, ax=right) is right
    for ax, check in ((left, verdict().check), (right, verdict().control_check)):
        assert [text.get_text().split()[0] for text in ax.get_legend().get_texts()] == ["0", "2", "logits"]
        for name, colour in zip(["0", "2", "logits"], MODULES, strict=False):
            seeds = relative(check, "feature", name)
            mean = [seeds[seeds[:, 0] == width, 3].mean() for width in WIDTHS]
            (line,) = [line for line in ax.lines if to_hex(line.get_color()) == colour and line.get_linestyle() == "-"]
            assert line.get_ydata().tolist() == pytest.approx(mean) and line.get_xdata().tolist() == [4, 5, 6]
    assert left.get_xlabel() == "width" and left.get_ylabel() == "RMS of Δh, relative"
    ax = sm.plot_features(verdict())
    assert ax.figure.axes == [ax]
    pyplot.close(ax.figure)


def test_what_failed_is_marked_and_what_is_undecided_says_why():
    ax = Figure().subplots()
    sm.plot_features(check_features(norm_rows({"readout": 0.4}), near=-7), ax)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text for text in texts if text.endswith("failed")] == ["readout  +0.40 failed"]
    empty = Figure().subplots()
    sm.plot_features(check_features(norm_rows(sizes=(64,)), near=-7), empty)
    assert "only one width" in empty.texts[0].get_text().replace("\n", " ") and not empty.lines


def test_of_many_modules_the_last_block_is_drawn():
    table = norm_rows()
    blocks = [table.assign(name=table["name"].str.replace("blocks.0", f"blocks.{i}")) for i in range(2, 14)]
    check = check_features(pd.concat(blocks), near=-7)
    ax = Figure().subplots()
    sm.plot_features(check, ax)
    names = [text.get_text().split()[0] for text in ax.get_legend().get_texts()]
    assert set(names) == {"embed", "blocks.13.attn", "readout"}


@pytest.mark.parametrize("lr", [1e8, 1e30])
def test_a_rule_under_which_a_loss_stops_being_finite_is_not_passed(lr):
    """Were what is left of such trainings judged, features of the first step would do."""
    told = sm.check_features(mlp, WIDTHS, "sgd", lr=lr, batch=batch, loss=loss, steps=4, control=None)
    assert told.check.passed is None and not told.passed and told.exit_code == 5
    assert "not decided: a loss stopped being finite; give a smaller lr" in str(told)


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan")])
def test_an_lr_that_trains_nothing_is_refused(lr):
    with pytest.raises(ValueError, match="^lr=.*: give a number above 0$"):
        sm.check_features(mlp, WIDTHS, lr=lr, batch=batch, loss=loss)


def test_anything_else_is_refused():
    with pytest.raises(ValueError, match="^check: a dict; give what check_features returned"):
        sm.plot_features({})
