"""What the figures of a sweep share: the print style, the page with its footnote, legends, axes, and saving.

Print rules: at most 6.75 in wide, no font under 7 pt, ordered colours and a marker each so that grey print
works, no title (the caption is the paper's), a footnote that says what was run and what every mark means.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.style
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

from spectral_mup.analysis.stats import write_csv

WIDTH = 6.75  # inches: the text width of a page
LINE = 0.14  # inches a line of 7 pt text takes
LETTER = 0.058  # inches a letter of it takes
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same bytes on every machine
    "pdf.fonttype": 42,  # the default embeds Type 3 fonts, which publishers refuse
    "font.size": 7.2, "axes.titlesize": "medium", "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.0, "legend.frameon": False, "svg.hashsalt": "spectral_mup",
}  # fmt: skip
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


def per_row(rules: int) -> int:
    """Rules side by side: three at most, in rows as even as can be (four as two and two)."""
    return math.ceil(rules / math.ceil(rules / 3)) if rules else 1


def save(fig: Figure, stem: Path | str, data: pd.DataFrame, data_stem: Path | str | None = None) -> None:
    """Write stem.pdf, .svg, .png (300 dpi) and .csv (what is drawn); the same data give the same bytes."""
    with matplotlib.style.context(["default", STYLE]):
        # lay out once for all formats, and round: the solver's last bits differ from run to run and name clips in svg
        if (engine := fig.get_layout_engine()) is not None:
            engine.execute(fig)
        fig.set_layout_engine("none")
        for ax in fig.axes:
            x, y, w, h = (round(float(v), 6) for v in ax.get_position().bounds)
            ax.set_position((x, y, w, h))
        for kind, dates in NO_DATES.items():  # as fig.savefig does it, which draws each twice, first for a layout
            fig.set_dpi(300)
            getattr(CANVASES[kind](fig), f"print_{kind}")(f"{stem}.{kind}", metadata=dict.fromkeys(dates))
    write_csv(data, Path(f"{data_stem or stem}.csv"))


def page(heights: list[float], widths: list[float], note: str, legends: int = 0) -> tuple[Figure, GridSpec]:
    """A figure and its grid of panels (heights in inches, widths relative), the footnote below them."""
    text = textwrap.wrap(note, 128)
    below = (len(text) + 0.6) * LINE + legends * 1.1 * LINE
    fig = Figure(figsize=(WIDTH, sum(heights) + below))
    share = below / fig.get_figheight()
    fig.set_layout_engine(ConstrainedLayoutEngine(rect=(0.004, share, 0.992, 1 - share), w_pad=0.03))
    at = (len(text) + 0.2) * LINE / fig.get_figheight()
    fig.text(0.008, at, "\n".join(text), fontsize=7, va="top", color="0.25", linespacing=1.25)
    return fig, fig.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)


def panel(fig: Figure, at: SubplotSpec, i: int, title: str, label: str | None, share: Axes | None = None) -> Axes:
    """Add the i-th panel; `label` of its vertical axis, None: that of the panel at its left holds for both."""
    ax = fig.add_subplot(at, sharey=share)
    ax.set_title(f"({letter_of(i)}) {title}", loc="left")
    ax.set_ylabel(label or "")
    ax.tick_params(labelleft=label is not None)
    return ax


def legend(fig: Figure, handles: list[Line2D], line: int) -> None:
    """Put a legend of one line under the panels, the `line`-th from above."""
    engine = cast(ConstrainedLayoutEngine, fig.get_layout_engine())
    y = engine.get()["rect"][1] - 1.1 * LINE * (line - 1) / fig.get_figheight()
    packed = {"borderaxespad": 0, "borderpad": 0, "columnspacing": 1.3, "handletextpad": 0.4, "handlelength": 1.6}
    fig.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, y), ncol=len(handles), **packed)


def new_axes() -> Axes:
    """Axes of a new figure, which a notebook shows."""
    from matplotlib import pyplot

    return pyplot.figure().add_subplot()


def inches_of(ax: Axes) -> tuple[float, float]:
    """Width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def sizes_on_x(ax: Axes, sizes: Sequence[float], axis: str, inches: float) -> None:
    """Put a tick at every size, labels at as many as have room."""
    every = int(np.ceil(LETTER * sum(len(f"{s:g}") + 1.5 for s in sizes) / inches))
    ax.set_xticks(np.log2(sizes), [f"{s:g}" if i % every == 0 else "" for i, s in enumerate(sizes)])
    ax.set_xlim(np.log2(min(sizes)) - 0.25, np.log2(max(sizes)) + 0.25)
    ax.set_xlabel(SIZE.get(axis, axis))


def steps_on_x(ax: Axes, steps: Sequence[int], inches: float, label: bool = True) -> None:
    """Put a tick at every probed step, labels from the last down where they have room."""
    x = step_at(steps)
    unit = inches / max(x[-1] - x[0] + 0.8, 1e-9)
    texts, free = [], np.inf
    for at, step in zip(x[::-1], reversed(steps), strict=True):
        half = LETTER * (len(str(int(step))) / 2 + 0.4) / unit
        texts.append(f"{step:g}" if at + half <= free else "")
        free = at - half if texts[-1] else free
    ax.set_xticks(x, texts[::-1])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(x[0] - 0.4, x[-1] + 0.4)
    ax.set_xlabel("optimizer step" if label else "")


def step_at(steps: Any) -> np.ndarray:
    """Position of a step on the axis: log2, and init 1.3 octaves before step 1."""
    steps = np.asarray(steps, float)
    return np.where(steps > 0, np.log2(np.maximum(steps, 1)), -1.3)


def letter_of(i: int) -> str:
    """Letter of the i-th panel: a to z, then aa, ab."""
    return ("" if i < 26 else chr(96 + i // 26)) + chr(97 + i % 26)


def slashed(values: Iterable[Any]) -> str:
    """Different values in one word: '20', or '5/20' where rules differ."""
    return "/".join(dict.fromkeys(map(str, values)))


def signed(x: float) -> str:
    """Number with its sign and two decimals, as it stands in a figure."""
    return f"{round(x, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(x) else "–"


def mark(label: str, **look: Any) -> Line2D:
    """Entry of a legend; without further looks a grey text."""
    return Line2D([], [], label=label, **{"color": GREY, "ls": "", **look})


def powers_of_two(axis: Any, lo: float, hi: float, most: int) -> None:
    """Put ticks at whole octaves, labelled 2^k, at most about `most` of them."""
    every = max(1, int(np.ceil((hi - lo) / most)))
    ticks = [k for k in range(int(np.ceil(lo)), int(np.floor(hi)) + 1) if k % every == 0]
    axis.set_ticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
