"""Laws of how figures are printed: width, size and names as asked for, colours by meaning, captions beside the figure."""

from dataclasses import replace

import matplotlib.text
import numpy as np
import pytest
from matplotlib.text import Annotation
from support.analysis_data import data, norm_rows, recorded, sweep_data
from support.figures import assert_printable
from support.summary_data import sweep

from spectral_mup.analysis.feature_check import by_class, check_features, sign_descent
from spectral_mup.analysis.figures import FIGURES
from spectral_mup.analysis.figures.forest import forest_figure
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import RULES, VERDICTS, rule_looks, save, signed
from spectral_mup.config.compose import load_config
from spectral_mup.errors import ConfigError

NARROW = Printing(width=3.25)


@pytest.fixture(scope="module")
def own():
    """A sweep of the rule that is tested and the control."""
    return sweep_data(*data(("spectral", "standard"), (64, 128, 256)))


def drawn(name, own, printing=NARROW):
    drawing = FIGURES[name](replace(own, printing=printing))
    assert drawing is not None
    return drawing


def said(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def titles(figure):
    return [ax.get_title("left") for ax in figure.axes]


def test_the_defaults_are_those_of_the_config():
    assert Printing.of(load_config([]).figures) == Printing()
    keys = ["figures.width=3.25", "figures.labels={spectral: ours}", "figures.note=true"]
    assert Printing.of(load_config(keys).figures) == Printing(width=3.25, labels={"spectral": "ours"}, note=True)
    for wrong in ("figures.width=1", "figures.size=0", "figures.note=perhaps"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            load_config([wrong])
    assert load_config(["figures=[layers]"]) == load_config(["figures.only=[layers]"])


@pytest.mark.parametrize("width", [3.25, 5.5])
def test_a_figure_is_as_wide_as_asked_with_texts_of_the_same_size(own, width):
    for name in ("lr_transfer", "feature_norms", "feature_steps", "coord_check"):
        figure, _ = drawn(name, own, Printing(width=width))
        assert_printable(figure, width=width)
        sizes = {t.get_fontsize() for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()}
        assert sizes == {7.2}
    figure, _ = forest_figure([sweep("adamw"), sweep("muon", axis="depth")], printing=Printing(width=width))
    assert_printable(figure, width=width)


def test_rules_have_names_for_people_and_those_of_the_user(own):
    assert titles(drawn("lr_transfer", own)[0])[:2] == ["(a) standard", "(b) spectral"]
    labels = {"spectral": "ours", "mlp": "FFN"}
    assert titles(drawn("lr_transfer", own, Printing(labels=labels))[0])[1] == "(b) ours"
    assert Printing().name("tensor_programs_v") == "Tensor Programs V" and Printing().name("my_own_rule") == "my own rule"
    assert Printing(labels=labels).name("muon spectral") == "Muon ours"


def test_a_caption_is_beside_the_figure_and_in_it_on_request(own, tmp_path):
    figure, table = drawn("lr_transfer", own)
    save(figure, tmp_path / "a", table, NARROW)
    assert not figure.texts and (tmp_path / "a.txt").read_text("utf-8").startswith("NanoGPT, AdamW, depth 4; 100 steps")
    baked, _ = drawn("lr_transfer", own, Printing(note=True))
    (text,) = baked.texts
    assert text.get_text().replace("\n", " ") == baked.get_label() and baked.get_figheight() > figure.get_figheight() / 2
    assert_printable(baked)


def test_a_style_of_the_users_is_merged_last_and_what_is_not_found_is_refused(own, tmp_path):
    style = tmp_path / "paper.mplstyle"
    style.write_text("font.size: 9\n")
    figure, _ = drawn("lr_transfer", own, Printing(style=str(style), size=8.0))
    assert figure.axes[0].title.get_fontsize() == 9
    for wrong in (Printing(style=str(tmp_path / "none.mplstyle")), Printing(font="No Such Font")):
        with pytest.raises(ConfigError, match=r"figures\.(style|font)=.*(give|install)"):
            drawn("lr_transfer", own, wrong)


def test_a_rule_has_one_colour_everywhere_and_none_is_that_of_a_verdict():
    for rules in (["spectral"], ["standard", "spectral"], ["qiu", "zheng", "spectral"]):
        assert rule_looks(rules)["spectral"] == RULES["spectral"]
    several = rule_looks(["qiu", "zheng", "muon spectral", "adamw spectral", "completep"])
    assert len({look["color"] for look in several.values()}) == 5
    beside = rule_looks([*RULES, "lamb_hidden_0", "qiu", "zheng", "adamw_decay_0", "of my own"])
    assert len({look["color"] for look in beside.values()}) == len(RULES) + 5, "a spare colour is no known rule's"
    assert not {look["color"] for look in RULES.values()} & {look["color"] for look in VERDICTS.values()}


# --- loss against lr ---------------------------------------------------------------------------------------------------


def test_the_control_is_at_the_left_and_every_panel_says_its_verdict(own):
    figure, _ = drawn("lr_transfer", own)
    for ax, v in zip(figure.axes, own.ordered, strict=False):
        (text,) = [t for t in ax.texts if t.get_text().startswith(f"{v.verdict}:")]
        flat = text.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
        assert f"slope {signed(v.slope)} [" in flat and f"regret {'≥ ' * v.regret_at_least}{100 * v.regret:.2f} %" in flat
    assert [v.rule for v in own.ordered] == ["standard", "spectral"]
    assert [v.verdict for v in own.ordered] == ["drifts", "transfers"]


def test_an_arrow_leads_from_the_optimum_of_the_base_to_that_of_the_largest_size(own):
    figure, _ = drawn("lr_transfer", own)
    for ax, v in zip(figure.axes, own.ordered, strict=False):
        (arrow,) = [t for t in ax.texts if isinstance(t, Annotation) and t.get_label() == "_from base to largest"]
        for (x, y), size in ((arrow.xyann, 64), (arrow.xy, 256)):
            assert (x, y) == (v.finished[size].log2_lr, v.finished[size].loss)


def test_legends_list_what_occurs_alone(own):
    assert "diverged (k/n seeds)" in said(drawn("lr_transfer", own)[0])
    points = own.points[own.points["status"] != "diverged"]
    figure, _ = drawn("lr_transfer", sweep_data(points, own.norms.iloc[:0]))
    assert "diverged (k/n seeds)" not in said(figure) and "not bracketed" not in said(figure)
    assert {"one seed", "bowl", "optimum", "64", "256"} <= {*said(figure)}


def test_the_wedge_holds_the_slopes_within_the_tolerance(own):
    ax = drawn("lr_transfer", own)[0].axes[-1]
    (wedge,) = [c for c in ax.collections if len(c.get_paths())]
    corners, (a, b) = np.asarray(wedge.get_paths()[0].vertices), np.log2([64, 256])
    level = np.mean([v.finished[64].log2_lr for v in own.verdicts])
    at_end = corners[np.isclose(corners[:, 0], b), 1]
    assert at_end.min() == pytest.approx(level - 0.25 * (b - a)) and at_end.max() == pytest.approx(level + 0.25 * (b - a))
    (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert np.diff(dotted.get_ydata()) == pytest.approx(-np.diff(dotted.get_xdata()))


def test_all_losses_are_in_view_on_request(own):
    worst = max(np.nanmax(o.curve.mean_L[o.curve.finished_SL.any(0)]) for v in own.verdicts for o in v.finished.values())
    near, full = (drawn("lr_transfer", own, Printing(full=full))[0] for full in (False, True))
    assert "above the axis" in said(near) and "above the axis" not in said(full)
    assert near.axes[0].get_yticks().max() < worst < full.axes[0].get_ylim()[1]


# --- features ----------------------------------------------------------------------------------------------------------


def test_a_class_has_the_mean_slope_of_its_modules():
    check = check_features(norm_rows({"blocks.0.attn": 0.2, "blocks.1.attn": 0.6, "embed": -0.1}), -8.0)
    found = by_class(check)
    judged = found.table[found.table["judged"] & (found.table["quantity"] == "feature")].set_index("name")["slope"]
    assert list(judged.index) == ["embedding", "attn", "readout"]
    assert judged.to_numpy() == pytest.approx([-0.1, 0.4, 0.0], abs=0.01)


def test_the_coordinate_check_shows_the_rms_itself():
    points, norms = data(("spectral",), (64, 128))
    grown = np.where(norms["step"] > 0, (norms["width"] / 64.0) * norms["step"], 3.0)
    own = sweep_data(points, norms.assign(rms=np.where(norms["what"] == "feature", grown, np.nan)))
    figure, table = drawn("coord_check", own)
    assert [title.partition(") ")[2] for title in titles(figure)] == ["embedding", "attn", "readout"]
    assert said(figure) == ["step:", "0", "1", "5", "20", "50"]
    (attn,) = [ax for ax in figure.axes if "attn" in ax.get_title("left")]
    assert [list(line.get_ydata()) for line in attn.lines[:2]] == [pytest.approx([np.log2(3)] * 2), pytest.approx([0, 1])]
    assert set(table.loc[table["step"] == 20, "value"].round(6)) == {20, 40}


def test_sophia_that_clips_everywhere_is_called_sign_descent():
    norms = norm_rows()
    of_tensors = (norms["what"] == "tensor") & (norms["step"] > 0)  # as a run records it
    norms = norms.assign(clip_fraction=np.where(of_tensors, 0.97, np.nan))
    assert "at every width: a step is that of sign descent" in sign_descent(norms, -8.0, "width")
    assert check_features(norms, -8.0).remark == sign_descent(norms, -8.0, "width")
    assert not sign_descent(norms.assign(clip_fraction=np.where(norms["width"] > 256, 0.5, 0.97)), -8.0, "width")
    assert not sign_descent(norms.assign(clip_fraction=np.nan), -8.0, "width")
    assert not sign_descent(norm_rows(), -8.0, "width")


def test_the_dotted_guide_stands_where_the_slope_should_not_be_flat():
    own = sweep_data(*recorded(("spectral",), (64, 128)))
    figure, _ = drawn("trust_ratios", own)
    dotted = {line.get_color() for line in figure.axes[0].lines if line.get_linestyle() == ":"}
    drawn_lines = {line.get_color() for line in figure.axes[0].lines if line.get_linestyle() == "-"}
    assert len(dotted) == 2 and len(drawn_lines) == 3  # the embedding's std does not depend on the width
    assert all(line.get_ydata()[0] == pytest.approx(0, abs=0.05) for line in figure.axes[0].lines if len(line.get_xdata()) == 2)
