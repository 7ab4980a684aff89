"""Laws of report.html that need no browser: the same bytes, nothing from outside, no two ids, figures small and whole."""

import json
import re
from collections import Counter

import pandas as pd
import pytest
from support.analysis_data import data, sweep_data
from support.pages import page_of, write_results

from spectral_mup.analysis.figures import FigureSpec, draw_figure
from spectral_mup.analysis.page.svg import Symbols, inline
from spectral_mup.analysis.page.tables import runs_table

DRAWN = ["lr_transfer"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"), DRAWN)


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page") / "report.html", folders, DRAWN)


def test_the_same_results_give_the_same_bytes(folders, page, tmp_path):
    assert page_of(tmp_path / "report.html", folders, DRAWN) == page
    assert page_of(tmp_path / "report.html", folders, DRAWN, launch="another") != page


def test_one_page_says_all(page):
    for said in ("Over width, at depth 4", "Over depth, at width 4", "drifts", "transfers", "python launch.py sweep=demo"):
        assert said in page, said
    assert page.count("<article") == 4 and page.count("<figure>") == 2 and page.count("<figcaption>NanoGPT, AdamW") == 2
    assert page.count('data-chart="') == 2 and "m<sup>−1/2</sup>" in page and "hidden matrices" in page


def test_hours_are_those_of_the_whole_sweep(folders, page, tmp_path):
    """Those of its folders cannot be added: each has the runs at the base."""
    about = [json.loads((folder / "verdicts.json").read_text()) for folder in folders]
    assert all(written["train_hours"] for written in about) and "<dt>training</dt>" not in page
    assert "<dt>training</dt><dd>1.2 h</dd>" in page_of(tmp_path / "report.html", folders, DRAWN, hours=1.2)


def test_numbers_that_name_something_have_all_their_digits():
    points = data()[0].assign(run_id="r", seed=lambda runs: runs["seed"] + 20260601, log2_lr=-7.5)
    shown = {cell.text for row in runs_table(points, "width", "lr", str).rows for cell in row}
    assert {str(seed) for seed in points["seed"]} <= shown and "\N{MINUS SIGN}7.5" in shown


def outside(page: str) -> list[str]:
    """What a browser would fetch."""
    return re.findall(r"(?:src|href|url|@import)\s*[=(:]?\s*[\"']?\s*((?:https?:)?//[^\"') ]+)", page)


def test_nothing_comes_from_outside(page):
    assert outside(page) == [] and "default-src &#39;none&#39;" not in page and "default-src 'none'" in page
    assert outside('<img src="https://host/x.png">') and outside("a{background:url(//host/x)}") and outside("<a href=//host/>")


def test_ids_are_unique_and_references_lead_somewhere(page):
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert len(ids) > 40 and [name for name, n in ids.items() if n > 1] == []
    wanted = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert len(wanted) > 40 and wanted <= ids.keys()


def test_names_and_configs_are_text(folders, tmp_path):
    page = page_of(tmp_path / "report.html", folders, DRAWN, name="<script>alert(1)</script>", config="a: </pre><b>")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "</pre><b>" not in page


def test_figures_are_less_than_three_quarters_of_what_matplotlib_wrote(folders):
    drawn, symbols = (folders[0] / "lr_transfer.svg").read_text("utf-8"), Symbols()
    markup = inline(drawn, symbols, "losses")
    assert len(markup) + len(symbols.markup) < 3 / 4 * len(drawn)
    assert markup.count("<path") + markup.count("<use") > 100 and "<title>losses</title>" in markup
    for gone in ("<style", "metadata", "xlink", "<!--", ".123456"):
        assert gone not in markup


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><defs><path id="m1" d="{}"/></defs><use href="#x"/></svg>'


def test_symbols_of_one_name_and_two_shapes_stay_two():
    symbols, linked = (
        Symbols(),
        SVG.replace("<use href", '<use xmlns:l="http://www.w3.org/1999/xlink" l:href').replace("#x", "#m1"),
    )
    one, again, other = (inline(linked.format(d), symbols, "") for d in ("M0 0", "M0 0", "M1 1"))
    assert one == again and 'href="#m1"' in one and 'href="#m1_"' in other
    assert symbols.markup.count("<path") == 2


def test_a_figure_that_no_longer_applies_leaves_no_file(tmp_path):
    """Else the page would show that of an earlier time; one of another axis, in the same folder, is left alone."""
    points, norms = data(("spectral",), (64, 128, 256))
    sweep = sweep_data(points, norms)
    (tmp_path / "old.svg").write_text("")
    draw_figure(sweep, tmp_path, "old", FigureSpec(lambda sweep: None, "", axes=frozenset({"joint"})))
    assert (tmp_path / "old.svg").exists()
    draw_figure(sweep, tmp_path, "old", FigureSpec(lambda sweep: None, ""))
    assert not (tmp_path / "old.svg").exists()


@pytest.mark.parametrize("status", ["missing", "diverged"])
def test_a_sweep_of_which_nothing_finished_has_a_page(status, tmp_path):
    from spectral_mup.analysis.report import report

    points, _ = data(("spectral",))
    none = points.assign(status=status, loss=float("nan"))
    report(none, pd.DataFrame(), name="x", out_dir=tmp_path, base={"width": 64}, figures=[])
    page = page_of(tmp_path / "report.html", [tmp_path], [])
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL).lower()
    assert "undecided" in shown and not re.search(r"\b(nan|inf)\b", shown) and 'id="figures"' not in page
    (numbers,) = re.findall(r'id="charts">(.*?)</script>', page)
    json.loads(numbers, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
