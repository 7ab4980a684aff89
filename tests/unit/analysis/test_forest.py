"""Laws of the forest plot: all that its table has is drawn where it belongs, and it can be read in grey on one page."""

from itertools import combinations
from typing import NamedTuple

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from support.figures import assert_printable, texts
from support.summary_data import grid, of_slope, sweep

from spectral_mup.analysis.figures.forest import MOST, SOURCES, forest_figure
from spectral_mup.analysis.figures.style import VERDICTS, save
from spectral_mup.analysis.published import Published

INF = np.inf
AXES = ("width", "depth")
MARKERS = [look["marker"] for look in VERDICTS.values()]
ZHENG = Published("muon", "nanogpt", "width", "spectral", -0.14, "2603.00541", "")
CASES = {  # (lo, hi): what is drawn of it
    "within": (-0.1, 0.1),
    "far": (-2.6, -1.8),
    "wide": (-3.0, 4.0),
    "below": (-INF, -0.4),
    "above": (0.3, INF),
    "unknown": (-INF, INF),
}


def panels(figure):
    """The axes of names, slopes and texts."""
    return figure.axes


class Mark(NamedTuple):
    """What is seen of a mark."""

    x: float
    y: float
    marker: str
    color: str
    open: bool


def marks(ax, markers):
    """Every mark of a panel that is one of `markers`."""
    found = [line for line in ax.lines if line.get_marker() in markers and len(line.get_xdata()) == 1]
    looks = [(str(line.get_marker()), str(line.get_color()), line.get_markerfacecolor() == "w") for line in found]
    spots = [map(float, line.get_xydata()[0]) for line in found]
    return [Mark(x, y, *look) for (x, y), look in zip(spots, looks, strict=True)]


def bars(ax):
    """(lo, hi, y) of every bar."""
    return [(*line.get_xdata(), line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 2]


def heights(figure):
    """The y of every line, from above: each has the mark of its verdict among the texts."""
    return [m.y for m in marks(panels(figure)[2], MARKERS)]


@pytest.fixture(scope="module")
def cases():
    return [sweep(f"o{i}", rules=("spectral",), **of_slope(*CASES[case])) for i, case in enumerate(CASES)]


def test_every_row_of_the_table_is_drawn():
    sweeps = [sweep("adamw"), sweep("muon"), sweep("muon", axis="depth", rules=("spectral", "spectral_depth_half", "standard"))]
    published = [ZHENG, ZHENG._replace(rule="standard", slope=-0.53), ZHENG._replace(axis="depth", slope=0.4)]
    figure, drawn = forest_figure(sweeps, published)
    _, ax, of_text = panels(figure)
    assert len(drawn) == 2 + 2 + 3 + 3 and list(drawn["line"][:7]) == [*range(1, 8)]
    y, seen, grey, ours = heights(figure), marks(ax, MARKERS), marks(ax, SOURCES), bars(ax)
    assert len(y) == 7 and y == sorted(y)
    for row in drawn.to_dict("records"):
        control = row["rule"] == "standard"
        if row["what"] == "published":
            (found,) = [m for m in grey if np.isclose(m.x, row["slope"]) and 0 < m.y - y[row["line"] - 1] < 0.5]
            assert found.open == control
            continue
        at = y[row["line"] - 1]
        (found,) = [m for m in seen if np.isclose(m.x, row["slope"]) and m.y == at]
        assert found.open == control and (found.marker, found.color) == tuple(
            VERDICTS[row["verdict"]][x] for x in ("marker", "color")
        )
        assert any(np.allclose(bar, (row["slope_lo"], row["slope_hi"], at)) for bar in ours)
        assert row["verdict"] in [t.get_text() for t in of_text.texts if t.get_position()[1] == at]


def test_verdict_colour_and_marker_are_one_to_one_and_differ_in_grey():
    assert set(VERDICTS) == {"transfers", "drifts", "costs", "undecided"}
    for part in ("marker", "color"):
        assert len({look[part] for look in VERDICTS.values()}) == len(VERDICTS)
    assert not {*MARKERS} & {*SOURCES}
    light = [np.dot(matplotlib.colors.to_rgb(look["color"]), (0.299, 0.587, 0.114)) for look in VERDICTS.values()]
    assert min(abs(a - b) for a, b in combinations(light, 2)) > 0.03
    figure, _ = forest_figure([sweep(v, rules=("spectral",), verdict=v) for v in VERDICTS])
    looks = {(look["marker"], look["color"]) for look in VERDICTS.values()}
    for ax in panels(figure)[1:]:
        assert {(m.marker, m.color) for m in marks(ax, MARKERS)} == looks


@pytest.mark.parametrize("tolerances", [(0.25, 0.25), (0.1, 0.3)])
def test_the_band_is_the_tolerance_of_every_line(tolerances):
    sweeps = [sweep(o, tolerance=t) for o, t in zip(("adamw", "muon"), tolerances, strict=True)]
    figure, drawn = forest_figure(sweeps)
    bands = [p for p in panels(figure)[1].patches if isinstance(p, Rectangle)]
    for y, tolerance in zip(heights(figure), drawn["tolerance"], strict=True):
        (band,) = [b for b in bands if b.get_y() < y < b.get_y() + b.get_height()]
        assert np.isclose(band.get_x(), -tolerance) and np.isclose(band.get_width(), 2 * tolerance)
    assert f"tolerance ±{'/'.join(f'{t:g}' for t in dict.fromkeys(tolerances))}" in texts(figure)


def test_what_leaves_the_axis_ends_in_an_arrow_and_what_is_not_known_is_text_alone(cases):
    figure, drawn = forest_figure(cases)
    ax, y = panels(figure)[1], heights(figure)
    assert ax.get_xlim() == MOST
    arrows = {case: {m.marker for m in marks(ax, "<>") if m.y == at} for case, at in zip(CASES, y, strict=True)}
    assert arrows == {"within": set(), "far": {"<"}, "wide": {"<", ">"}, "below": {"<"}, "above": {">"}, "unknown": set()}
    assert all(np.isclose(m.x, MOST[m.marker == ">"]) for m in marks(ax, "<>"))
    at = {case: [m.x for m in marks(ax, MARKERS) if m.y == here] for case, here in zip(CASES, y, strict=True)}
    assert at == {"within": [0], "far": [], "wide": [0.5], "below": [-0.4], "above": [0.3], "unknown": []}
    assert len(bars(ax)) == 5 and all(MOST[0] <= lo <= hi <= MOST[1] for lo, hi, _ in bars(ax))
    assert list(drawn["what"]) == ["slope", "slope", "slope", "bound", "bound", "text"]
    minus = "\N{MINUS SIGN}"
    for text in (f"{minus}2.20 [{minus}2.60, {minus}1.80]", f"< {minus}0.40", "> +0.30", "no slope"):
        assert text in texts(figure)


def test_a_published_slope_beyond_the_axis_is_an_arrow_too():
    figure, drawn = forest_figure([sweep("muon")], [ZHENG._replace(slope=-4.0)])
    (arrow,) = marks(panels(figure)[1], "<")
    assert arrow.x == MOST[0] and list(drawn["slope"])[-1] == -4


def test_published_slopes_stand_only_where_we_measured():
    absent = [ZHENG._replace(**{field: "other"}) for field in ("optimizer", "family", "axis")]
    figure, drawn = forest_figure([sweep("muon", rules=("standard", "spectral"))], [*absent, ZHENG])
    assert len(marks(panels(figure)[1], SOURCES)) == 1 and list(drawn["what"]) == ["slope", "slope", "published"]
    assert drawn["line"].iloc[-1] == drawn.loc[drawn["rule"] == "spectral", "line"].iloc[0] == 1  # the control is below
    alone, _ = forest_figure([sweep("muon")], absent)
    assert "published in arXiv:" in texts(figure) and "published in arXiv:" not in texts(alone)
    assert ZHENG.source in texts(figure) and "published.csv" not in alone.get_label()


def test_a_published_slope_whose_rule_was_not_run_stands_on_a_line_of_its_kind_or_nowhere():
    rules = ("standard", "paper_2602_20937", "spectral")
    of = [ZHENG._replace(rule=rule) for rule in ("zheng", "standard_fixed", "spectral")]
    _, drawn = forest_figure([sweep("muon", rules=rules)], of)
    assert list(drawn["line"])[3:] == [1, 3, 2]
    _, drawn = forest_figure([sweep("muon", rules=("spectral",))], of)
    assert list(drawn["line"])[1:] == [1, 1]  # a control is not drawn beside what it was the control of


def test_a_published_lr_stands_on_no_line_of_another_key():
    partner = sweep("muon", name="partner", tuned="optimizer.adamw.lr")
    _, drawn = forest_figure([partner, sweep("muon", name="lr")], [ZHENG])
    assert drawn["sweep"].iloc[-1] == "lr" and list(drawn["what"]).count("published") == 1


def test_the_level_of_the_intervals_is_said():
    same, _ = forest_figure([sweep("adamw", alpha=0.016)])
    mixed, drawn = forest_figure([sweep("adamw", rules=("spectral",), alpha=0.016), sweep("lamb"), sweep("muon")])
    assert "slope [98.4 %]" in texts(same) and not any("†" in t for t in texts(same))
    assert "slope [95 %, †98.4 %]" in texts(mixed)
    assert sum(t.endswith("]†") for t in texts(mixed)) == list(drawn["alpha"]).count(0.016) == 1
    assert "95 %, 98.4 % where marked †" in mixed.get_label()


def test_a_grid_of_sweeps_fits_one_page_in_order():
    published = [
        ZHENG._replace(optimizer=o, family=f, axis=a) for o in ("muon", "lamb") for f in ("nanogpt", "llama2") for a in AXES
    ]
    figure, drawn = forest_figure(grid(), [*published, ZHENG._replace(rule="standard", source="2602.20937")])
    assert_printable(figure)
    assert figure.get_figheight() <= 9
    assert len(drawn.query("what != 'published'")) == 36
    heads = [t.get_text() for t in panels(figure)[0].texts if t.get_fontweight() == "bold"]
    assert heads == [f"{f} over {a}" for f in ("NanoGPT", "Llama2") for a in ("width, 64–256", "depth, 2–8")]
    inside = figure.bbox.padded(1)
    written = [t.get_window_extent() for ax in (panels(figure)[0], panels(figure)[2]) for t in ax.texts if t.get_text()]
    assert not any(a.overlaps(b) for a, b in combinations(written, 2))
    for box in [*written, *(x.get_window_extent() for x in (*figure.texts, *figure.legends))]:
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_sweeps_that_share_an_optimizer_have_names():
    figure, _ = forest_figure([sweep("muon", name="grid/muon"), sweep("muon", name="grid/partner")])
    assert {"Muon (grid/muon)", "Muon (grid/partner)"} <= {*texts(figure)}


def test_the_same_sweeps_give_the_same_bytes(cases, tmp_path):
    for name in ("one", "two"):
        figure, drawn = forest_figure(cases)
        save(figure, tmp_path / name, drawn)
    for kind in ("pdf", "svg", "png", "csv"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert len(pd.read_csv(tmp_path / "one.csv")) == len(cases)
