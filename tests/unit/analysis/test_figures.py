"""The registry of figures: chosen by name, drawn where their data were recorded, and a user's own by import path."""

import subprocess
import sys
import types

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from support.analysis_data import data, recorded, sweep_data
from support.figures import assert_printable

from spectral_mup.analysis.figures import FIGURES, choose_figures, figure_help
from spectral_mup.analysis.report import report
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import AXES


def own_quantity(norms, name="entropy", of="tensor", growth=0.5):
    """Norms with a quantity of the user's, which grows with the width."""
    value = np.where(norms["what"] == of, 7.0 * (norms["width"] / 64.0) ** growth, np.nan)
    return norms.assign(**{name: value})


def test_a_figure_of_the_users_own_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_plots.py").write_text('''
import pandas as pd
from matplotlib.figure import Figure


def best_losses(data):
    """The lowest loss of each rule."""
    table = data.points.groupby("rule", as_index=False)["loss"].min()
    figure = Figure(figsize=(4, 2))
    figure.add_subplot().bar(table["rule"], table["loss"])
    return figure, pd.DataFrame(table)


def never(data):
    return None
''')
    monkeypatch.syspath_prepend(tmp_path)
    points, norms = data(("spectral", "standard"), (64, 128))
    chosen = ["my_plots.best_losses", "my_plots.never"]
    report(points, norms, name="x", out_dir=tmp_path / "out", base={"width": 64}, figures=chosen)
    drawn = {path.name for path in (tmp_path / "out").iterdir()} - {"curves.csv", "optima.csv", "features.csv", "verdicts.json"}
    assert drawn == {f"best_losses.{kind}" for kind in ("csv", "pdf", "png", "svg")}
    assert list(pd.read_csv(tmp_path / "out" / "best_losses.csv")["rule"]) == ["spectral", "standard"]


def test_names_choose_what_is_drawn_and_unknown_ones_are_refused(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda figure, stem, table, *_: saved.append(stem.name))
    points, norms = recorded(("spectral",), (64, 128))
    report(points, norms, name="x", out_dir=tmp_path, figures=["alignment", "lr_transfer", "layers"])
    assert saved == ["alignment", "lr_transfer"]  # `layers` is drawn over depth
    saved.clear()
    report(points, norms, name="x", out_dir=tmp_path, figures=[])
    assert saved == []
    for wrong in ("lr_transfr", "no_such_module.figure", "my_figure", "os.path"):
        with pytest.raises(ConfigError, match=f"figures.only={wrong}"):
            report(points, norms, name="x", out_dir=tmp_path / "none", figures=[wrong])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("named", [["mine.curves"], ["mine.lr_transfer"], ["mine.loss", "other.loss"], ["mine.verdicts"]])
def test_a_figure_of_ones_own_takes_no_name_of_another_file(named, monkeypatch):
    """Its files would be written over those: curves.csv is what reports, recipes and summaries read."""
    for module in ("mine", "other"):
        functions = {name: lambda data: None for name in ("curves", "lr_transfer", "loss", "verdicts")}
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**functions))
    assert list(choose_figures(["mine.loss", "lr_transfer"])) == ["loss", "lr_transfer"]
    with pytest.raises(ConfigError, match=f"^figures.only={named[-1]}: its files would be called .*rename the function"):
        choose_figures(named)


def test_features_without_updates_are_drawn_and_what_is_missing_is_said():
    """As probe.quantities chooses them."""
    points, norms = recorded()
    alone = norms.drop(columns=[name for name in norms if name.startswith("update")])
    for name in ("feature_steps", "coord_check"):
        figure, table = FIGURES[name](sweep_data(points, alone))
        assert len(table)
        if name == "feature_steps":
            assert "not recorded" in [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("of", ["tensor", "feature"])
def test_a_quantity_that_no_figure_knows_is_drawn_without_further_code(of):
    points, norms = recorded()
    assert FIGURES["quantities"](sweep_data(points, norms)) is None
    figure, table = FIGURES["quantities"](sweep_data(points, own_quantity(norms, of=of)))
    assert set(table["quantity"]) == {"entropy"} and set(table["rule"]) == {"standard", "spectral"}
    assert table["slope"].dropna().to_numpy() == pytest.approx(0.5)
    assert_printable(figure)


def test_quantities_have_an_axis_each():
    points, norms = recorded(("spectral",))
    norms = own_quantity(own_quantity(own_quantity(norms), "share", growth=-3), "signed", growth=0)
    norms["share"] /= 7
    norms["signed"] *= np.where(norms["step"] == 1, -1000, 1000)
    figure, table = FIGURES["quantities"](sweep_data(points, norms))
    views = {ax.get_ylim() for ax in figure.axes}
    assert len(views) == 3 and (-0.04, 1.04) in views
    assert set(table.query("quantity == 'signed'")["slope"].dropna()) == {0}
    assert_printable(figure)


def test_every_built_in_figure_exists_and_is_explained():
    assert set(choose_figures(None)) == set(FIGURES)
    assert [line.split()[0] for line in figure_help().splitlines()] == list(FIGURES)
    assert all(figure.help and figure.axes <= {*AXES, "joint"} for figure in FIGURES.values())
    for name in FIGURES:
        assert callable(choose_figures([FIGURES[name].draw])[FIGURES[name].draw.rpartition(".")[2]].draw)


def test_the_registry_imports_no_drawing():
    code = (
        "import spectral_mup.analysis.figures, sys; print([m for m in ('matplotlib', 'pandas', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_print_check_can_fail():
    """Control of the check that the figures of every shape pass."""
    for spoil in ({"fontsize": 5}, {"x": 0.5, "y": 1.2}, {"x": 0.1, "y": 0.5}):
        figure = matplotlib.figure.Figure(figsize=(6, 3))
        figure.text(0.1, 0.5, "one text", fontsize=8)
        figure.text(**({"x": 0.5, "y": 0.9, "s": "another", "fontsize": 8} | spoil))
        with pytest.raises(AssertionError):
            assert_printable(figure)
    figure = matplotlib.figure.Figure(figsize=(6, 3))
    figure.text(0.1, 0.5, "one text", fontsize=8)
    assert_printable(figure)
