"""Laws over depth, and over width and depth together: blocks are compared at their place in the model, branches add up."""

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import INSIDE, data, deep, deep_data, flat, recorded, sweep_data

from spectral_mup.analysis.feature_check import check_features, first_and_last, representative
from spectral_mup.analysis.figures import FIGURES
from spectral_mup.analysis.report import format_verdicts, judge_all, report

layers = FIGURES["layers"]

# --- feature check -----------------------------------------------------------------------------------------------------


def test_blocks_are_named_by_their_end_of_the_model():
    table = pd.DataFrame(
        {"name": ["embed", "a.0", "a.0.q", "a.1.q", "a.2", "a.2.q", "a.0", "a.0.q"], "size": [3] * 6 + [1] * 2}
    )
    named = first_and_last(table)
    assert list(zip(named["name"], named["size"], strict=True)) == [
        ("embed", 3), ("a.first.q", 3), ("a.last", 3), ("a.last.q", 3), ("a.last", 1), ("a.first.q", 1), ("a.last.q", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_rule_that_shares_the_change_among_its_branches_passes(alpha):
    check = check_features(deep(alpha=alpha), near=-9, axis="depth")
    assert check.passed is True and not check.failed_updates and not check.indicative
    names = set(check.table.loc[check.table["judged"], "name"])
    ends = {f"blocks.{end}.{n}" for end in ("first", "last") for n in INSIDE}
    judged_features = {"token", "logits", "blocks.last"} | {name for name in ends if ".last." in name}
    assert names == judged_features | {f"{n}.weight" for n in {"token", "logits"} | ends}


def test_features_of_the_first_block_are_shown_but_not_judged():
    """They cannot be alike at every depth: the MLP of the first block sees its own attention, a share 1/L of all branches."""
    shrinks = deep(lambda n, p, depth: 1 / depth if n == "mlp.up" and p == 1 / depth else 1.0)
    check = check_features(shrinks, near=-9, axis="depth")
    row = check.table[(check.table["name"] == "blocks.first.mlp.up") & (check.table["step"] == 20)].iloc[0]
    assert check.passed is True and row["verdict"] == "failed" and not row["judged"]


def test_updates_that_do_not_shrink_with_depth_drift():
    """The control: the same lr and no multiplier at every depth, as under `standard`; outside blocks nothing changes."""
    check = check_features(deep(update=lambda n, p, depth: depth if n in INSIDE else 1.0), near=-9, axis="depth")
    assert set(check.failed_updates) == {f"blocks.{end}.{n}.weight" for end in ("first", "last") for n in INSIDE}
    at = check.table[(check.table["quantity"] == "update") & check.table["judged"]].set_index("name")["slope"]
    assert at["blocks.last.mlp.up.weight"] == pytest.approx(1, abs=0.02) and at["token.weight"] == pytest.approx(0, abs=0.02)
    assert check.passed is True  # updates are a diagnosis


@pytest.mark.parametrize("slope", [0.5, -0.5])
def test_one_module_that_grows_in_the_last_block_fails_there_alone(slope):
    grows = deep(lambda n, p, depth: depth**slope if (n, p) == ("mlp.down", 1) else 1.0)
    check = check_features(grows, near=-9, axis="depth")
    assert check.passed is False and check.failed == ("blocks.last.mlp.down",)
    assert f"blocks.last.mlp.down ({slope:+.2f})" in check.summary


def test_blocks_are_compared_at_their_place_and_not_at_their_number():
    """A change that depends on i/L alone is the same in the last block of every depth; one that depends on i is not."""
    at_place = deep(lambda n, p, depth: 0.5 + p if n == "block" else 1.0)
    assert check_features(at_place, near=-9, axis="depth").passed is True
    at_number = deep(lambda n, p, depth: p * depth if n == "block" else 1.0)
    assert check_features(at_number, near=-9, axis="depth").failed == ("blocks.last",)


def test_over_width_nothing_is_renamed_or_multiplied():
    table = deep(depths=(4,)).drop(columns="depth")
    table = pd.concat([table.assign(width=w) for w in (64, 128, 256)], ignore_index=True)
    check = check_features(table, near=-9)
    assert check.passed and not [n for n in check.table["name"] if "first" in n or "last" in n]
    inside = check.values[check.values["name"] == "blocks.3.mlp.up.weight"]
    assert np.allclose(inside["value"], 0.25, rtol=0.1)
    over_depth = check_features(deep(depths=(2, 4)), near=-9, axis="depth").values
    assert np.allclose(over_depth.loc[over_depth["name"] == "blocks.last.mlp.up.weight", "value"], 1, rtol=0.1)


def test_figures_show_the_last_block():
    check = check_features(deep(), near=-9, axis="depth")
    shown = representative([check], "feature", most=10)
    assert shown == ["token", *(f"blocks.last.{n}" for n in INSIDE), "blocks.last", "logits"]
    points, norms = recorded(("spectral",), (2, 4, 8), "depth", {})
    _, drawn = FIGURES["trust_ratios"](sweep_data(points, norms, "depth", 2))
    assert set(drawn["name"]) == {"embed.weight", "blocks.last.attn.weight", "readout.weight"}


# --- verdict and screen ------------------------------------------------------------------------------------------------


def test_the_screen_says_depth():
    points, norms = deep_data({"spectral": flat})
    screen = format_verdicts(judge_all(points, norms, "depth", 2))
    assert "over depth" in screen and "lr* d2" in screen and "loss d8" in screen and "; deeper is better" in screen
    upside = points.assign(loss=points["loss"] + 0.2 * np.log2(points["depth"]))
    assert "; deeper is NOT always better" in format_verdicts(judge_all(upside, norms, "depth", 2))
    over_width = format_verdicts(judge_all(*data(("spectral",), (64, 128, 256)), "width", 64))  # the control
    assert "; wider is better" in over_width and "depth" not in over_width.replace("at depth", "")


def test_axes_of_figures_say_layers():
    sweep = sweep_data(*deep_data({"spectral": flat}), "depth", 2)
    for name in ("lr_transfer", "feature_norms"):
        assert "depth (layers)" in {ax.get_xlabel() for ax in FIGURES[name](sweep)[0].axes}


# --- layers ------------------------------------------------------------------------------------------------------------


def spread(drawn, rule, module="blocks.*"):
    """Largest log2 range between depths at one place in the model."""
    part = drawn[(drawn["rule"] == rule) & (drawn["module"] == module)]
    logs = part.assign(log2=np.log2(part["value"])).groupby("position")["log2"]
    return float((logs.max() - logs.min()).max())


def footnote(figure):
    return figure.get_label()


def test_layers_fall_together_if_the_change_depends_on_the_place_alone():
    rules = {"place": lambda n, p, depth: 0.5 + p, "number": lambda n, p, depth: 0.5 + p * depth}
    points, norms = deep_data(rules)
    figure, drawn = layers(sweep_data(points, norms, "depth", 2))
    assert spread(drawn, "place") < 0.1 < 1 < spread(drawn, "number")
    assert list(dict.fromkeys(drawn["module"])) == ["blocks.*.attention.out", "blocks.*.mlp.down", "blocks.*"]
    assert len(drawn) == 2 * 3 * (2 + 4 + 8) * 2 and set(drawn["position"]) == {i / 8 for i in range(1, 9)}
    assert "at step 20 and log2 lr -9" in footnote(figure)


def test_the_report_writes_layers_over_depth(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda figure, stem, data, *_: written.append(stem.name))
    drawn = ["lr_transfer", "coord_check", "feature_norms", "feature_modules", "feature_steps"]
    report(*deep_data({"r": flat}, (2, 4)), name="x", out_dir=tmp_path, axis="depth", base={"depth": 2})
    assert written == [*drawn, "layers"]
    written.clear()
    report(*data(("r",), (64, 128)), name="x", out_dir=tmp_path, base={"width": 64})
    assert written == drawn


def test_layers_are_drawn_over_depth_only_and_of_what_was_measured():
    points, norms = data(("spectral",), (64, 128))
    assert layers(sweep_data(points, norms)) is None
    points, norms = deep_data({"a": flat, "b": flat})
    norms = norms[norms["rule"] == "a"]
    figure, drawn = layers(sweep_data(points, norms, "depth", 2))
    assert set(drawn["rule"]) == {"a"} and "Not measured at all depths of one lr: b" in footnote(figure)
    outside = norms[[not name.startswith("blocks") for name in norms["name"]]]
    assert layers(sweep_data(points, outside, "depth", 2)) is None
