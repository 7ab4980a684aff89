"""report.html in a real browser: it draws and sorts, needs no network, can be read by all, on a phone and on paper.

Each check is shown failing on a page that is wrong on purpose.
"""

import re
from contextlib import contextmanager

import pandas as pd
import pytest
from support.browser import require_browser
from support.pages import page_of, write_results

DRAWN = ["lr_transfer"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    path = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page, and the folder of the results over width."""
    folder = tmp_path_factory.mktemp("report")
    folders = write_results(folder, DRAWN)
    page_of(folder / "report.html", folders, DRAWN)
    return folder / "report.html", folder


@pytest.fixture
def visit(browser, tmp_path):
    """Context manager that opens a file, or HTML; the page, and a list of what it said on the console and fetched besides."""

    @contextmanager
    def opened(page, width=1400, scheme="light"):
        if isinstance(page, str):
            (tmp_path / "page.html").write_text(f"<!DOCTYPE html><html lang='en'><body>{page}</body></html>", "utf-8")
            page = tmp_path / "page.html"
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        trouble: list[str] = []
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: trouble.append(request.url) if request.url != page.as_uri() else None)
        tab.goto(page.as_uri())
        yield tab, trouble
        tab.close()

    return opened


def test_it_renders_without_an_error_or_a_request(visit, written):
    with visit(written[0]) as (tab, trouble):
        assert tab.locator("h1").inner_text() == "demo: does the best learning rate transfer?"
        words = tab.locator(".card .word").all_inner_texts()
        assert words == ["transfers", "drifts"] * 2
        assert tab.locator(".chart svg").count() == 4 and tab.locator(".chart circle").count() > 100
        sizes = tab.locator(".paper svg").evaluate_all("all => all.map(svg => svg.getBoundingClientRect().height)")
        assert len(sizes) == 2 and min(sizes) > 200
        seen = tab.locator(".paper svg use").evaluate_all("all => all.filter(u => u.getBBox().width > 0).length")
        assert seen > 100  # what is drawn stands in another drawing of the page
        tab.mouse.wheel(0, 20_000)
        assert trouble == []
    with visit("<img src='http://127.0.0.1:9/x.png'><script>missing()</script>") as (tab, trouble):
        assert any("127.0.0.1" in said for said in trouble) and any("missing" in said for said in trouble)


def test_a_request_would_be_refused(visit, written, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(written[0].read_text("utf-8").replace("<main>", "<main><img src='http://127.0.0.1:9/x.png'>"), "utf-8")
    with visit(changed) as (tab, trouble):
        assert any("Content Security Policy" in said for said in trouble), trouble


COLUMN = "(table, i) => [...document.querySelector(table).tBodies[0].rows].map(row => row.cells[i].textContent)"


def column(tab, table, i):
    return tab.evaluate(f"([table, i]) => ({COLUMN})(table, i)", [table, i])


def test_tables_sort_numbers_as_numbers(visit, written):
    with visit(written[0]) as (tab, trouble):
        table, at = "#optima-lr-width", tab.locator("#optima-lr-width thead button")
        before = column(tab, table, 1)
        for clicks, ascending in ((1, True), (2, False), (3, True)):
            at.nth(1).click()
            sizes = [int(x) for x in column(tab, table, 1)]
            assert sizes == sorted(sizes, reverse=not ascending), clicks
            states = [tab.locator(f"{table} th").nth(i).get_attribute("aria-sort") for i in range(3)]
            assert states == ["none", "ascending" if ascending else "descending", "none"]
        assert sorted(before) != [str(x) for x in sizes]  # text would order them otherwise
        at.nth(2).click()
        best = [float(x.replace("\N{MINUS SIGN}", "-")) for x in column(tab, table, 2)]
        assert best == sorted(best) and best[0] < 0
        at.nth(0).click()
        rules = column(tab, table, 0)
        assert rules == sorted(rules) and len(set(rules)) == 2
        tab.locator("details.long summary", has_text="All runs").first.click()
        tab.locator("#runs-lr-width thead button", has_text="loss").click()
        losses = column(tab, "#runs-lr-width", 5)
        numbers = [float(x) for x in losses if x != "–"]
        assert numbers == sorted(numbers) and "–" in losses and losses[: len(numbers)] == [x for x in losses if x != "–"]
        assert trouble == []


def test_the_keyboard_reaches_and_sorts_every_column(visit, written):
    with visit(written[0]) as (tab, _):
        table, reached = "#optima-lr-width", []
        for _ in range(60):
            tab.keyboard.press("Tab")
            here = tab.evaluate("document.activeElement.closest('th') && document.activeElement.textContent")
            reached += [here] if here else []
            if here == "width":
                tab.keyboard.press("Enter")
                tab.keyboard.press(" ")
        heads = tab.locator(f"{table} thead button").all_inner_texts()
        assert reached[: len(heads)] == heads
        assert [int(x) for x in column(tab, table, 1)] == [512, 512, 256, 256, 128, 128, 64, 64]


def test_the_pointer_shows_lr_losses_and_seeds(visit, written):
    with visit(written[0]) as (tab, trouble):
        chart, tip = tab.locator(".chart").first, tab.locator(".chart .tip").first
        chart.scroll_into_view_if_needed()
        assert not tip.is_visible()
        box = chart.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        said = tip.inner_text()
        log2_lr = float(re.search(r"log2 (\S+)\)", said)[1].replace("\N{MINUS SIGN}", "-"))
        points = pd.read_csv(written[1] / "curves.csv").query("rule == 'spectral' and log2_lr == @log2_lr and status == 'done'")
        assert len(points) == 8 and f"{float(f'{2**log2_lr:.3g}'):g}" in said
        shown = {float(loss) for loss in re.findall(r"seed \d: ([\d.]+)", said)}
        assert sorted(shown) == pytest.approx(sorted(points["loss"]), abs=1e-4)
        tab.mouse.move(1, 1)
        assert not tip.is_visible()
        chart.focus()
        tab.keyboard.press("ArrowRight")
        first = tip.inner_text()
        tab.keyboard.press("ArrowRight")
        assert tip.is_visible() and tip.inner_text() != first and trouble == []
        tab.keyboard.press("Escape")
        assert not tip.is_visible()


SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [320, 400, 1400])
def test_no_page_scrolls_sideways(visit, written, width):
    with visit(written[0], width) as (tab, _):
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert not tab.evaluate(SIDEWAYS)
    with visit("<div style='width:2000px'>x</div>", width) as (tab, _):
        assert tab.evaluate(SIDEWAYS)


CONTRAST = """() => {
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {c: [r, g, b], a}; };
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const {c, a} = rgba(getComputedStyle(e).backgroundColor);
      if (a === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, drawn = element.closest("script, style, .paper, .chart svg");
    if (!texts.currentNode.data.trim() || drawn || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const [a, b] = [light(rgba(svg ? style.fill : style.color).c), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([texts.currentNode.data.trim(), (a + 0.05) / (b + 0.05)]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit, written, tmp_path, scheme):
    every = tmp_path / "every.html"  # the words that no verdict of this page has, too
    words = "".join(
        f'<article class="card {word}"><span class="word">{word}</span></article>' for word in ("costs", "undecided")
    )
    every.write_text(written[0].read_text("utf-8").replace("<main>", f"<main>{words}"), "utf-8")
    with visit(every, scheme=scheme) as (tab, _):
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert tab.evaluate(CONTRAST) == []
    with visit("<p style='color:#888;background:#fff'>grey</p><p style='color:#000;background:#fff'>black</p>") as (tab, _):
        assert [text for text, _ in tab.evaluate(CONTRAST)] == ["grey"]


FLAWS = """() => {
  const said = [], all = selector => [...document.querySelectorAll(selector)];
  if (!document.documentElement.lang) said.push("no lang");
  if (!document.title) said.push("no title");
  let level = 0;
  for (const h of all("h1, h2, h3, h4, h5")) {
    if (Number(h.tagName[1]) > level + 1) said.push(`${h.tagName} after h${level}: ${h.textContent}`);
    level = Number(h.tagName[1]);
  }
  if (all("h1").length !== 1) said.push("not one h1");
  for (const th of all("th")) if (!th.scope && !th.closest(".tip")) said.push(`th without scope: ${th.textContent}`);
  for (const t of all("table")) if (!t.caption && !t.closest(".tip")) said.push("table without caption");
  for (const s of all("svg:not([aria-hidden=true])")) if (!s.querySelector("title")?.textContent) said.push("untitled svg");
  for (const b of all("button, [role=group], [role=region]")) if (!b.textContent.trim() && !b.ariaLabel) said.push("no name");
  for (const r of all("[tabindex]")) if (Number(r.tabIndex) > 0) said.push("order of tabs");
  const ids = all("[id]").map(e => e.id);
  if (new Set(ids).size < ids.length) said.push("an id twice");
  return said;
}"""


def test_it_can_be_read_by_all(visit, written):
    with visit(written[0]) as (tab, _):
        assert tab.evaluate(FLAWS) == []
    with visit("<h1>a</h1><h3>b</h3><table><tr><th>c</th></tr></table><svg></svg><i id=x></i><i id=x></i>") as (tab, _):
        assert len(tab.evaluate(FLAWS)) == 6


def test_it_prints(visit, written):
    with visit(written[0]) as (tab, trouble):
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
        pdf = tab.pdf(format="A4")
        assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
        assert tab.evaluate("document.querySelector('#how + details').open")  # on paper nothing can be opened
        tab.emulate_media(media="print", color_scheme="dark")
        assert not tab.locator("nav").is_visible() and tab.locator(".card").first.is_visible()
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate(CONTRAST) == [] and trouble == []
