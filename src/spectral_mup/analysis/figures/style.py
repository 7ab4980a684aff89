"""What figures share: the print style, the page, colours by meaning, legends, axes, and saving.

Print rules: as wide as the page that is asked for, all text of one size in points at every width, colours and a marker each so
that grey print works, no title (the caption is the paper's, and stands in a text file beside the figure).
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image

from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.stats import write_csv

NO_DATES = {"pdf": ["CreationDate", "Producer", "Creator"], "svg": ["Date", "Creator"], "png": ["Software"]}  # left out
CANVASES = {"pdf": FigureCanvasPdf, "svg": FigureCanvasSVG, "png": FigureCanvasAgg}
MARKERS = "os^DvPX*<>"
SIZE = {
    "width": "width",
    "depth": "depth (layers)",
    "steps": "steps",
    "batch_size": "batch size (sequences)",
}  # label of an axis of sizes
GREY = "0.45"
Looks = Mapping[Any, dict[str, Any]]  # colour and marker of sizes, rules or tensors

# Colours have one meaning in all figures: verdicts, rules, modules (MODULES), sizes (light to dark). Okabe & Ito 2008, told
# apart by colour-blind readers; no two verdicts are equally light.
VERDICTS: dict[str, dict[str, Any]] = {
    "transfers": {"color": "#0072b2", "marker": "o"},
    "drifts": {"color": "#d55e00", "marker": "s"},
    "costs": {"color": "#e69f00", "marker": "^"},
    "undecided": {"color": "#cc79a7", "marker": "D"},
}
RULES: dict[str, dict[str, Any]] = {
    "spectral": {"color": "#009e73", "marker": "o"},
    "standard": {"color": "0.35", "marker": "s"},
    "standard_fixed": {"color": "0.6", "marker": "D"},
    "tensor_programs_v": {"color": "#56b4e9", "marker": "^"},
    "completep": {"color": "#000000", "marker": "v"},
    "paper_2602_20937": {"color": "#832db6", "marker": "P"},
}
# Of other rules, and of modules. Petroff 2021 (arXiv 2107.02270), written out, as old matplotlib lacks them.
MODULES = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()
MOST_PIXELS = 3.4e6  # of a .png, which is for screens: a page of many panels has fewer dots per inch
LIGHT, DARK = 0.82, 0.0  # ends of viridis for the smallest and the largest size


def page_width() -> float:
    """Return the width of the page in inches."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def line_height() -> float:
    """Return the inches that a line of text takes."""
    return 0.0195 * float(matplotlib.rcParams["font.size"])


def letter_width() -> float:
    """Return the inches that a letter takes."""
    return 0.0081 * float(matplotlib.rcParams["font.size"])


def size_looks(sizes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return a colour and marker for every size, dark for large."""
    colours = matplotlib.colormaps["viridis"](np.linspace(LIGHT, DARK, len(sizes)))
    return {size: {"color": c, "marker": m} for size, c, m in zip(sizes, colours, cycle(MARKERS))}


def rule_looks(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and marker for every rule: those of RULES, for others what is left in order of appearance."""
    kinds = [rule.rpartition(" ")[2] for rule in rules]  # of 'muon spectral' the rule
    free = [color for color in MODULES[4:] if color not in {look["color"] for look in RULES.values()}]
    spare = ({"color": color, "marker": marker} for color, marker in zip(cycle(free), cycle("X*<>vPD^")))
    known = {rule: RULES.get(kind) if kinds.count(kind) == 1 else None for rule, kind in zip(rules, kinds, strict=True)}
    return {rule: dict(look or next(spare)) for rule, look in known.items()}


def module_looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and marker for every module or tensor, for as many as there are colours."""
    return {n: {"color": c, "marker": m, "ms": 3.2} for n, c, m in zip(names, MODULES, MARKERS, strict=False)}


def ink(color: Any) -> tuple[float, ...]:
    """Darken a colour enough for text."""
    return tuple(0.72 * x for x in matplotlib.colors.to_rgb(color))


def per_row(panels: int, least: float = 1.85) -> int:
    """Return the number of panels side by side, at least that many inches wide.

    Three at most, in rows as even as can be (four as two and two).
    """
    most = max(1, min(3, int(page_width() / least)))
    return math.ceil(panels / math.ceil(panels / most)) if panels else 1


def save(
    fig: Figure, stem: Path | str, data: pd.DataFrame, printing: Printing | None = None, data_stem: Path | str | None = None
) -> None:
    """Write stem.pdf, .svg, .png (300 dpi at most), .txt (its caption) and .csv (what is drawn).

    The same data give the same bytes.
    """
    with (printing or Printing()).context():
        # lay out once for all formats, and round: the solver's last bits differ from run to run and name clips in svg
        if (engine := fig.get_layout_engine()) is not None:
            engine.execute(fig)
        fig.set_layout_engine("none")
        for ax in fig.axes:
            x, y, w, h = (round(float(v), 6) for v in ax.get_position().bounds)
            ax.set_position((x, y, w, h))
        for kind, dates in NO_DATES.items():  # as fig.savefig does it, which draws each twice, first for a layout
            fig.set_dpi(min(300, int((MOST_PIXELS / (fig.get_figwidth() * fig.get_figheight())) ** 0.5)))
            getattr(CANVASES[kind](fig), f"print_{kind}")(f"{stem}.{kind}", metadata=dict.fromkeys(dates))
    _shrink(Path(f"{stem}.png"))
    if caption := str(fig.get_label()):
        Path(f"{stem}.txt").write_text(caption + "\n", "utf-8")
    write_csv(data, Path(f"{data_stem or stem}.csv"))


def _shrink(png: Path) -> None:
    """Write it again with a palette, a third of the bytes: few figures need more than 128 colours to look the same."""
    with Image.open(png) as image:
        small = image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(png, optimize=True, dpi=image.info["dpi"])


def page(heights: Sequence[float], widths: Sequence[float]) -> tuple[Figure, GridSpec]:
    """Make a figure and its grid of panels (heights in inches, widths relative); `finish` puts legends below them."""
    fig = Figure(figsize=(page_width(), sum(heights)))
    fig.set_layout_engine(ConstrainedLayoutEngine(rect=(0.004, 0, 0.992, 1), w_pad=0.03))
    return fig, fig.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)


def finish(fig: Figure, caption: str, *legends: Sequence[Line2D], note: bool = False) -> None:
    """Add legends below the panels, each on own lines, and the caption: below them (`note`), or as the figure's label."""
    rows = [row for handles in legends for row in _wrapped(handles)]
    text = textwrap.wrap(caption, int(page_width() / letter_width() * 1.12)) if note else []
    feet = (len(text) + 0.6 * bool(text)) * line_height()
    below = feet + (1.15 * len(rows) + 0.3 * bool(rows)) * line_height()
    height = fig.get_figheight() + below
    fig.set_figheight(height)
    cast(ConstrainedLayoutEngine, fig.get_layout_engine()).set(rect=(0.004, below / height, 0.992, 1 - below / height))
    packed = {"borderaxespad": 0, "borderpad": 0, "columnspacing": 1.3, "handletextpad": 0.4, "handlelength": 1.6}
    for i, row in enumerate(rows):
        y = (below - (0.15 + 1.15 * i) * line_height()) / height
        fig.legend(handles=row, loc="upper center", bbox_to_anchor=(0.5, y), ncol=len(row), **packed)
    if text:
        fig.text(0.008, (feet - 0.4 * line_height()) / height, "\n".join(text), va="top", color="0.25", linespacing=1.25)
    fig.set_label(caption)


def _wrapped(handles: Sequence[Line2D]) -> list[list[Line2D]]:
    """Wrap the entries of a legend to lines that fit the page."""
    lines: list[list[Line2D]] = [[]]
    used = 0.0
    for handle in handles:
        inches = (len(str(handle.get_label())) + 6.2) * letter_width()
        if lines[-1] and used + inches > page_width():
            lines.append([])
            used = 0.0
        lines[-1].append(handle)
        used += inches
    return [line for line in lines if line]


def panel(fig: Figure, at: SubplotSpec, i: int, title: str, label: str | None, share: Axes | None = None) -> Axes:
    """Add the i-th panel; `label` of its vertical axis, None: that of the panel at its left holds for both."""
    ax = fig.add_subplot(at, sharey=share)
    ax.set_title(f"({letter_of(i)}) {title}", loc="left")
    ax.set_ylabel(label or "")
    ax.tick_params(labelleft=label is not None)
    return ax


def _subtitle(text: str, inches: float) -> list[str]:
    """Wrap a text to lines over a panel that is so wide."""
    letters = int(inches / letter_width() * 1.08)
    return textwrap.wrap(text, max(12, letters), break_long_words=False, break_on_hyphens=False)


def subtitle_inches(texts: Sequence[str], inches: float) -> float:
    """Return the height of the longest of the texts over the panels of a row."""
    return 1.28 * float(matplotlib.rcParams["font.size"]) / 72 * max(len(_subtitle(text, inches)) for text in texts)


def subtitles(found: Mapping[Axes, tuple[str, Any]], inches: float) -> None:
    """Write (text, colour) of what was found below the titles of panels that stand in a row and are so wide."""
    size, wrapped = float(matplotlib.rcParams["font.size"]), {ax: _subtitle(text, inches) for ax, (text, _) in found.items()}
    most = max(map(len, wrapped.values()))
    for ax, (_, color) in found.items():
        ax.set_title(ax.get_title("left"), loc="left", pad=6 + 1.25 * size * most)
        offset = 4 + 1.25 * size * (most - len(wrapped[ax]))
        at: dict[str, Any] = {"xytext": (0, offset), "textcoords": "offset points", "va": "bottom", "linespacing": 1.2}
        ax.annotate("\n".join(wrapped[ax]), (0, 1), xycoords="axes fraction", color=ink(color), **at)


def keep_in_view(ax: Axes, lo: float, hi: float) -> None:
    """Keep values from lo to hi in view, whatever else panels that share the vertical axis show."""
    ax.update_datalim([(0, lo), (0, hi)], updatex=False)
    ax.autoscale_view(scalex=False)


def occurring(fig: Figure, marks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    """Return the legend of those marks that some panel shows.

    What is drawn has its meaning as label, after an underscore.
    """
    labels = {artist.get_label() for ax in fig.axes for artist in (*ax.lines, *ax.texts, *ax.patches, *ax.collections)}
    return [mark(meaning, **look) for meaning, look in marks.items() if f"_{meaning}" in labels]


def new_axes() -> Axes:
    """Make axes of a new figure, which a notebook shows."""
    from matplotlib import pyplot

    return pyplot.figure().add_subplot()


def inches_of(ax: Axes) -> tuple[float, float]:
    """Return the width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def sizes_on_x(ax: Axes, sizes: Sequence[float], axis: str, inches: float) -> None:
    """Put a tick at every size, labels at as many as have room."""
    every = int(np.ceil(letter_width() * sum(len(f"{s:g}") + 1.5 for s in sizes) / inches))
    ax.set_xticks(np.log2(sizes), [f"{s:g}" if i % every == 0 else "" for i, s in enumerate(sizes)])
    ax.set_xlim(np.log2(min(sizes)) - 0.25, np.log2(max(sizes)) + 0.25)
    ax.set_xlabel(SIZE.get(axis, axis))


def steps_on_x(ax: Axes, steps: Sequence[int], inches: float, label: bool = True) -> None:
    """Put a tick at every probed step, labels from the last down where they have room."""
    x = step_at(steps)
    unit = inches / max(x[-1] - x[0] + 0.8, 1e-9)
    texts, free = [], np.inf
    for at, step in zip(x[::-1], reversed(steps), strict=True):
        half = letter_width() * (len(str(int(step))) / 2 + 0.4) / unit
        texts.append(f"{step:g}" if at + half <= free else "")
        free = at - half if texts[-1] else free
    ax.set_xticks(x, texts[::-1])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(x[0] - 0.4, x[-1] + 0.4)
    ax.set_xlabel("optimizer step" if label else "")


def step_at(steps: Any) -> np.ndarray:
    """Return the position of a step on the axis: log2, and init 1.3 octaves before step 1."""
    steps = np.asarray(steps, float)
    return np.where(steps > 0, np.log2(np.maximum(steps, 1)), -1.3)


def letter_of(i: int) -> str:
    """Return the letter of the i-th panel: a to z, then aa, ab."""
    return ("" if i < 26 else chr(96 + i // 26)) + chr(97 + i % 26)


def slashed(values: Iterable[Any]) -> str:
    """Join different values in one word: '20', or '5/20' where rules differ."""
    return "/".join(dict.fromkeys(map(str, values)))


def signed(x: float) -> str:
    """Format a number with its sign and two decimals, as it stands in a figure."""
    return f"{round(x, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(x) else "–"


def mark(label: str, **look: Any) -> Line2D:
    """Make an entry of a legend; without further looks a grey text."""
    return Line2D([], [], label=label, **{"color": GREY, "ls": "", **look})


def powers_of_two(axis: Any, lo: float, hi: float, most: int) -> None:
    """Put ticks at whole octaves, labelled 2^k, at most about `most` of them."""
    every = max(1, int(np.ceil((hi - lo) / most)))
    ticks = [k for k in range(int(np.ceil(lo)), int(np.floor(hi)) + 1) if k % every == 0]
    axis.set_ticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
