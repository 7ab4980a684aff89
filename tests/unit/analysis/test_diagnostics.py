"""Laws of the diagnostics: known powers of the width come back as slopes, and what was not recorded is not drawn."""

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import OWN, data, recorded, sweep_data
from support.figures import assert_printable

from spectral_mup.analysis.figures import FIGURES
from spectral_mup.analysis.figures.diagnostics import ALL, init_std, tensor_rows
from spectral_mup.analysis.figures.style import save
from spectral_mup.analysis.report import report

EVERYWHERE = ["spectral_norms", "stable_rank", "alignment"]
DIAGNOSTICS = {name: FIGURES[name] for name in (*EVERYWHERE, *OWN)}


@pytest.fixture(scope="module")
def drawn():
    """{figure: the data drawn}, of tensors with the powers of `recorded`."""
    sweep = sweep_data(*recorded())
    return {stem: figure(sweep)[1] for stem, figure in DIAGNOSTICS.items()}


def slopes(table, quantity, step=20, by="name"):
    at = table[(table["quantity"] == quantity) & (table["step"] == step)]
    return {rule: dict(zip(part[by], part["slope"], strict=True)) for rule, part in at.groupby("rule")}


@pytest.mark.parametrize("quantity", ["W", "ΔW"])
def test_a_rule_that_keeps_the_spectral_condition_is_flat_and_another_is_not(drawn, quantity):
    found = slopes(drawn["spectral_norms"], quantity)
    for name in ("embed.weight", "blocks.1.attn.weight", "readout.weight"):
        assert found["spectral"][name] == pytest.approx(0, abs=0.02)
        assert found["standard"][name] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("stem", ["spectral_norms", "trust_ratios"])
def test_a_slope_outside_the_limit_is_bold_and_no_other(stem):
    for rule, growth, some in (("spectral", {}, False), ("spectral", {"spectral": 0.05}, False), ("standard", None, True)):
        points, norms = recorded((rule,), growth=growth)
        figure, _ = DIAGNOSTICS[stem](sweep_data(points, norms))
        bold = [t.get_text() for ax in figure.axes for t in ax.texts if t.get_fontweight() == "bold"]
        assert bool(bold) is some


def test_spectral_norms_are_in_natural_units(drawn):
    """‖W‖₂ = 3·√(fan_out/fan_in) at the smallest width is drawn as 3, whatever the shape; a forward multiplier counts."""
    table = drawn["spectral_norms"].query("quantity == 'W' and step == 20 and size == 64")
    assert np.allclose(table["value"], 3, rtol=0.03)
    points, norms = recorded(("spectral",))
    _, half = DIAGNOSTICS["spectral_norms"](sweep_data(points, norms.assign(multiplier=0.5)))
    assert np.allclose(half.query("quantity == 'W' and step == 20")["value"], 1.5, rtol=0.03)


def test_the_trust_ratio_is_compared_with_the_measured_init_std(drawn):
    trust, over = (slopes(drawn["trust_ratios"], q) for q in ("trust", "over std"))
    for name, power in {"embed.weight": 0.0, "blocks.1.attn.weight": -0.5, "readout.weight": -1.0}.items():
        assert trust["spectral"][name] == pytest.approx(power, abs=0.02)
        assert over["spectral"][name] == pytest.approx(0, abs=0.02)
        assert over["standard"][name] == pytest.approx(0.7, abs=0.02)  # it does not follow the init there


def test_init_std_of_a_gaussian_matrix():
    """What the figure takes for the std is that of an actual draw, within the finite-size error of ‖W‖₂."""
    weight = np.random.default_rng(0).normal(0, 0.3, (200, 60))
    row = {"run_id": "a", "rule": "r", "name": "w", "kind": "hidden", "step": 0, "fan_out": 200.0, "fan_in": 60.0}
    tensors = pd.DataFrame([row | {"weight_norm": np.linalg.norm(weight, 2)}])
    features = tensors.assign(what="feature")
    assert init_std(tensors, features)[0] == pytest.approx(0.3, rel=0.05)


def test_slopes_over_the_steps(drawn):
    rank = {q: slopes(drawn["stable_rank"], q, by="group") for q in ("update_stable_rank", "grad_stable_rank")}
    assert rank["update_stable_rank"]["standard"]["attn"] == pytest.approx(0.7, abs=0.02)
    assert rank["update_stable_rank"]["spectral"]["attn"] == pytest.approx(0, abs=0.02)
    assert rank["grad_stable_rank"]["standard"]["readout"] == pytest.approx(0, abs=0.02)
    clipped = slopes(drawn["clip_fraction"], "clip_fraction", by="group")
    assert clipped["standard"][ALL] == pytest.approx(-0.07) and clipped["spectral"][ALL] == pytest.approx(0, abs=1e-9)
    spectra = slopes(drawn["shampoo_spectra"], "left_largest", by="group")
    assert spectra["standard"][ALL] == pytest.approx(0.7, abs=0.02)
    assert set(drawn["alignment"].query("step == 0")["quantity"]) == {"weight_alignment"}


def test_only_what_was_recorded_is_drawn():
    """Each optimizer's figure needs its column, and all of them more than a run folder of old holds."""
    points, norms = recorded(("spectral",), optimizer=())
    assert [stem for stem, figure in DIAGNOSTICS.items() if figure(sweep_data(points, norms))] == EVERYWHERE
    empty = norms.assign(**dict.fromkeys(OWN.values(), np.nan))
    assert [stem for stem, figure in DIAGNOSTICS.items() if figure(sweep_data(points, empty))] == EVERYWHERE
    old = sweep_data(*data(("spectral",), (64, 128, 256)))
    assert not any(figure(old) for figure in DIAGNOSTICS.values())


def test_a_rule_without_its_columns_is_named():
    sweep = sweep_data(*recorded())
    standard = sweep.norms["rule"] == "standard"
    sweep.norms.loc[standard, "clip_fraction"] = np.nan
    figure, table = DIAGNOSTICS["clip_fraction"](sweep)
    assert set(table["rule"]) == {"spectral"} and "standard" in figure.get_label()
    sweep.norms.loc[standard, "weight_norm"] = np.nan
    figure, _ = DIAGNOSTICS["spectral_norms"](sweep)
    assert "not recorded" in [t.get_text() for ax in figure.axes for t in ax.texts]


def test_rows_are_those_of_the_lr_of_the_feature_check():
    points, norms = recorded(("spectral",))
    other = norms.assign(log2_lr=-8.0, weight_norm=99.0)
    other["run_id"] = other["run_id"].str.replace("-9.0", "-8.0")
    norms = pd.concat([norms, other], ignore_index=True)
    tensors = tensor_rows(sweep_data(points, norms), ["weight_norm"])
    assert len(tensors) and not (tensors["weight_norm"] == 99).any()


def test_over_depth_the_condition_of_width_is_not_drawn():
    sweep = sweep_data(*recorded(("spectral",), (2, 4, 8), "depth", {}), "depth", 2)
    assert DIAGNOSTICS["spectral_norms"](sweep) is None
    assert DIAGNOSTICS["stable_rank"](sweep) is not None


def test_the_same_data_give_the_same_bytes_and_other_data_others(tmp_path):
    points, norms = recorded(("spectral",), (64, 128))
    wider = norms.assign(multiplier=np.where(norms["width"] > 64, 2.0, 1.0))
    files = [f"{stem}.{kind}" for stem in ("spectral_norms", "clip_fraction") for kind in ("csv", "pdf", "png", "svg")]
    for folder, rows in {"a": norms, "b": norms.copy(), "c": wider}.items():
        (tmp_path / folder).mkdir()
        for stem in ("spectral_norms", "clip_fraction")[: 1 if folder == "c" else 2]:
            figure, table = DIAGNOSTICS[stem](sweep_data(points, rows))
            save(figure, tmp_path / folder / stem, table)
    same = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files]
    other = [(tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes() for f in files if f.startswith("spectral")]
    assert all(same) and all(other)


def test_the_report_saves_what_applies(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda figure, stem, table, *_: saved.append(stem.name))
    points, norms = recorded(("spectral",), (64, 128), optimizer=("clip_fraction",))
    report(points, norms, name="x", out_dir=tmp_path, base={"width": 64})
    assert saved == [
        "lr_transfer",
        "coord_check",
        "feature_norms",
        "feature_modules",
        "feature_steps",
        *EVERYWHERE,
        "clip_fraction",
    ]
    saved.clear()
    report(points, pd.DataFrame(), name="x", out_dir=tmp_path, base={"width": 64})
    assert saved == ["lr_transfer"]


@pytest.mark.parametrize(("rules", "sizes"), [(1, (64, 128)), (4, (64, 128, 256, 512))])
def test_figures_of_any_shape_keep_their_texts_apart(rules, sizes):
    sweep = sweep_data(*recorded([f"tensor_programs_{i}" for i in range(rules)], sizes))
    for stem in DIAGNOSTICS if rules == 1 else ("trust_ratios", "shampoo_spectra"):  # of each layout the fullest
        assert_printable(DIAGNOSTICS[stem](sweep)[0])
