"""The forest plot: of every sweep and rule the slope of the optimum with its interval, against the tolerance.

A line per sweep and rule, grouped by (family, axis); at its right the verdict, the numbers and the regret.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from spectral_mup.analysis.figures.lr_panels import slope_text
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import (
    GREY,
    VERDICTS,
    finish,
    letter_width,
    line_height,
    mark,
    page,
    page_width,
    slashed,
)
from spectral_mup.analysis.published import FILE_NAME, Published
from spectral_mup.analysis.results import Results, by_family_and_axis, printed_labels
from spectral_mup.analysis.verdict import Verdict, is_control, level_marks, percent, what_was_run
from spectral_mup.config.tune import LR

SOURCES = "vPX*dph8"  # markers of what was published: none of those of verdicts
OF_VERDICT = "rule verdict slope slope_lo slope_hi alpha tolerance regret regret_lo regret_hi regret_at_least".split()
GAP, HEADING = 0.2, 1.35  # lines after a sweep, and of the name of a group
BELOW = 0.37  # a published slope, lines below the one of ours
FEET = 3.0  # lines below all, for the numbers and the name of the axis
NAMES = 48  # letters of the names at the left, at most
# letters from the left of the texts to a verdict's mark, the verdict, the slope, and the right end of the regret
COLUMNS = {"mark": 2.0, "verdict": 3.5, "slope": 15.0, "regret": 46.0}
NARROW = {"mark": 2.0, "regret": 13.0}  # where the page has no room for more: colour and bar say the rest
ROOM = 70  # letters of a page that has
MOST = (-1.6, 1.0)  # the slopes in view at most


class Line(NamedTuple):
    """One line of the plot, `y` lines below the top."""

    number: int  # from 1 at the top
    y: float
    r: Results
    v: Verdict
    label: str  # of the sweep; empty after its first line


def forest_figure(
    sweeps: Sequence[Results], published: Sequence[Published] = (), printing: Printing | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Draw a line per sweep and rule: slope d log2 η* / d log2 size, interval, verdict, regret; published slopes in grey."""
    printing = printing or Printing()
    with printing.context():
        return _forest(sweeps, published, printing)


def _forest(sweeps: Sequence[Results], published: Sequence[Published], printing: Printing) -> tuple[Figure, pd.DataFrame]:
    lines, headings, height = _lay_out(sweeps, printing)
    marks = level_marks([line.v for line in lines])
    at = [(line, one) for one in published if (line := _line_of(one, lines)) is not None]
    sources = dict(zip(dict.fromkeys(one.source for _, one in at), SOURCES * len(at), strict=False))
    columns, letter = COLUMNS if page_width() / letter_width() > ROOM else NARROW, letter_width()
    of_rule = max(len(printing.name(line.v.rule)) for line in lines) + 2
    most = NAMES - of_rule - 2 if columns is COLUMNS else 14  # letters of a label
    lines = [line._replace(label=line.label[: most - 1] + "…") if len(line.label) > most else line for line in lines]
    rule_at = letter * (max(len("optimizer"), *(len(line.label) for line in lines)) + 2)
    end, of_texts = rule_at + letter * of_rule, letter * columns["regret"]
    fig, grid = page([(height + FEET) * line_height() * 1.06], [end, page_width() - end - of_texts, of_texts])
    names, ax, texts = (fig.add_subplot(grid[0, i]) for i in range(3))
    lo, hi = _view(lines, [one for _, one in at])
    for panel in (names, ax, texts):
        panel.set_ylim(height, 0)
        panel.patch.set_visible(False)  # the name of a group may reach into the next panel
        panel.set_yticks([])
    for panel, inches in ((names, end), (texts, of_texts)):
        panel.set_axis_off()
        panel.set_xlim(0, inches)
    places = {name: letter * x for name, x in columns.items()}
    _heads(names, texts, rule_at, headings, marks, places)
    _bands(ax, lines)
    for line in lines:
        for x, text in ((0, line.label), (rule_at, printing.name(line.v.rule))):
            color = GREY if x and line.v.is_control else "k"
            names.text(x, line.y, text, color=color, va="center").set_in_layout(False)
        _texts(texts, line, marks[line.v.alpha], places)
    drawn = [_draw(ax, line, lo, hi) for line in lines]
    drawn += [_draw_published(ax, line, one, sources[one.source], lo, hi) for line, one in at]
    ax.set_xlim(lo, hi)
    ax.set_xlabel("slope d log$_2$ η* / d log$_2$ size")
    ax.spines["left"].set_visible(False)
    own = _marks([line.v for line in lines], beyond=any(line.get_marker() in tuple("<>") for line in ax.lines))
    others = _source_marks(sources, any(is_control(one.rule) for _, one in at)) if sources else []
    finish(fig, _caption(sweeps, marks, bool(sources)), own, others, note=printing.note)
    return fig, pd.DataFrame(drawn, columns=["line", "family", "axis", "optimizer", "sweep", "what", *OF_VERDICT, "source"])


def _lay_out(sweeps: Sequence[Results], printing: Printing) -> tuple[list[Line], list[tuple[float, str]], float]:
    """Lay out every line, the heading of every group and its y, and the height; controls stand below the rules tested."""
    lines: list[Line] = []
    headings, y = [], 1.0
    for (family, axis), group in by_family_and_axis(sweeps).items():
        spans = slashed(f"{min(v.optima)}–{max(v.optima)}" for r in group for v in r.verdicts)
        headings.append((y + 0.75, f"{printing.name(family)} over {axis.replace('_', ' ')}, {spans}"))
        y += HEADING
        for r, label in zip(group, printed_labels(group, printing.labels), strict=True):
            for i, v in enumerate(sorted(r.verdicts, key=lambda v: v.is_control)):
                lines.append(Line(len(lines) + 1, y + 0.5, r, v, label * (i == 0)))
                y += 1
            y += GAP
    return lines, headings, y


def _line_of(one: Published, lines: Sequence[Line]) -> Line | None:
    """Find the line, in a sweep of the lr, of a published slope's rule, else the first that is a control as well; or none."""
    own = [line for line in lines if (line.r.optimizer, line.r.family, line.r.axis, line.v.tuned) == (*one[:3], LR)]
    candidates = [line for line in own if line.v.is_control == is_control(one.rule)]
    return min(candidates, key=lambda line: line.v.rule != one.rule, default=None)


def _view(lines: Sequence[Line], published: Sequence[Published]) -> tuple[float, float]:
    """Return the slopes in view: all that are known, by quarters, within MOST."""
    known = [x for line in lines for x in (line.v.slope, line.v.slope_lo, line.v.slope_hi) if np.isfinite(x)]
    known += [one.slope for one in published] + [sign * 2 * line.v.tolerance for line in lines for sign in (-1, 1)]
    lo, hi = np.floor(4 * min(known) - 0.2) / 4, np.ceil(4 * max(known) + 0.2) / 4
    return max(float(lo), MOST[0]), min(float(hi), MOST[1])


def _heads(
    names: Axes, texts: Axes, rule_at: float, headings: Sequence[tuple[float, str]], marks: Mapping[float, str],
    places: Mapping[str, float],
) -> None:  # fmt: skip
    """Write the names of the columns, and those of the groups."""
    level = ", ".join(f"{dagger}{percent(alpha)}" for alpha, dagger in marks.items())
    head: dict[str, Any] = {"va": "center", "color": GREY}
    names.text(0, 0.5, "optimizer", **head)
    names.text(rule_at, 0.5, "rule", **head)
    texts.text(places["regret"], 0.5, "regret", ha="right", **head)
    for name, text in (("verdict", "verdict"), ("slope", f"slope [{level}]")):
        if name in places:
            texts.text(places[name], 0.5, text, **head)
    for y, text in headings:
        names.text(0, y, text, fontweight="bold", va="center").set_in_layout(False)


def _bands(ax: Axes, lines: Sequence[Line]) -> None:
    """Shade ±tolerance behind every line, and mark slope 0."""
    for (_, _, tolerance), of_group in groupby(lines, lambda line: (line.r.family, line.r.axis, line.v.tolerance)):
        ys = [line.y for line in of_group]
        top, bottom = min(ys) - 0.5, max(ys) + 0.5
        ax.add_patch(Rectangle((-tolerance, top), 2 * tolerance, bottom - top, color="0.9", lw=0, zorder=0))
        ax.vlines(0, top, bottom, color="0.6", lw=0.6, zorder=0.5)


def _texts(ax: Axes, line: Line, dagger: str, places: Mapping[str, float]) -> None:
    v = line.v
    regret = f"{'≥ ' * v.regret_at_least}{100 * v.regret:.2f} %" if np.isfinite(v.regret) else "unknown"
    ax.plot(places["mark"], line.y, **_look(v))
    ax.text(places["regret"], line.y, regret, ha="right", va="center")
    for name, text in (("verdict", v.verdict), ("slope", slope_text(v) + dagger)):
        if name in places:
            ax.text(places[name], line.y, text, va="center")


def _look(v: Verdict) -> dict[str, Any]:
    """Return the mark of a verdict, open where the rule is a control."""
    return {"ms": 4.2, "mew": 0.9, "ls": ""} | VERDICTS[v.verdict] | ({"mfc": "w"} if v.is_control else {})


def _row(line: Line, what: str) -> dict[str, Any]:
    """Return what the table of what is drawn says of a line."""
    of = {"line": line.number, "family": line.r.family, "axis": line.r.axis, "optimizer": line.r.optimizer}
    return of | {"sweep": line.r.name, "what": what}


def _draw(ax: Axes, line: Line, lo: float, hi: float) -> dict[str, Any]:
    """Draw a slope and its interval, cut to the axis from lo to hi; of the one bound that is known, this one."""
    v, look = line.v, _look(line.v)
    bounds = [x for x in (v.slope_lo, v.slope_hi) if np.isfinite(x)]
    if bounds:
        left, right = np.clip([v.slope_lo, v.slope_hi], lo, hi)
        ax.plot([left, right], [line.y, line.y], color=look["color"], lw=0.8 if v.is_control else 1.3, zorder=2)
        for edge, end, arrow in ((lo, v.slope_lo, "<"), (hi, v.slope_hi, ">")):
            if (end < lo) if arrow == "<" else (end > hi):
                ax.plot(edge, line.y, arrow, ms=4, color=look["color"], mew=0, clip_on=False, zorder=4)
        at = v.slope if len(bounds) == 2 else bounds[0]
        if lo <= at <= hi:
            ax.plot(at, line.y, zorder=3, **look)
    return _row(line, ("text", "bound", "slope")[len(bounds)]) | {name: getattr(v, name) for name in OF_VERDICT}


def _draw_published(ax: Axes, line: Line, one: Published, marker: str, lo: float, hi: float) -> dict[str, Any]:
    """Draw a published slope below the interval of its line, an arrow head where it leaves the axis."""
    x = float(np.clip(one.slope, lo, hi))
    marker = "<" if one.slope < lo else ">" if one.slope > hi else marker
    face = "w" if is_control(one.rule) else GREY
    ax.plot(x, line.y + BELOW, marker, ms=3.2, mec=GREY, mfc=face, mew=0.6, clip_on=False, zorder=5)
    return _row(line, "published") | {"rule": one.rule, "slope": one.slope, "source": one.source}


def _marks(verdicts: Sequence[Verdict], beyond: bool) -> list[Line2D]:
    """Return the legend of our own marks, of those that occur."""
    seen, tolerance = {v.verdict for v in verdicts}, slashed(f"{v.tolerance:g}" for v in verdicts)
    return [
        *(mark(verdict, ls="-", ms=4.2, **look) for verdict, look in VERDICTS.items() if verdict in seen),
        *[mark("control (open)", marker="o", ms=4.2, mfc="w", ls="-", lw=0.8)] * any(v.is_control for v in verdicts),
        *[mark("beyond the axis", marker="<", ms=4, mew=0)] * beyond,
        mark(f"tolerance ±{tolerance}", marker="s", ms=7, color="0.9", mew=0),
    ]


def _source_marks(sources: Mapping[str, str], controls: bool) -> list[Line2D]:
    """Return the legend of the sources of published slopes."""
    own = [mark(source, marker=marker, ms=3.2, mew=0.6) for source, marker in sources.items()]
    own += [mark("control (open)", marker=next(iter(sources.values())), ms=3.2, mfc="w", mew=0.6)] * controls
    return [mark("published in arXiv:"), *own]


def _caption(sweeps: Sequence[Results], marks: Mapping[float, str], published: bool) -> str:
    runs = pd.concat([r.points for r in sweeps], ignore_index=True).drop_duplicates("run_id")
    verdicts = [v for r in sweeps for v in r.verdicts]
    level = ", ".join(percent(alpha) + f" where marked {dagger}" * bool(dagger) for alpha, dagger in marks.items())
    basis, limit = slashed(sorted(v.basis for v in verdicts)), slashed(f"{100 * v.regret_limit:g} %" for v in verdicts)
    return (
        f"{what_was_run(runs)}. Mark: slope of log2 optimal lr η* on log2 size; bar: its interval ({level}; {basis}); no mark: "
        "it is not known; a mark at the end of an arrow: only this bound is. Transfers: interval within the tolerance, and "
        f"regret, what the optimal lr of the base costs at the largest size, at most {limit}. Drifts: interval outside. Costs: "
        f"not outside, but regret surely above {limit}. Undecided: none of these."
        + f" Small grey marks: slopes inferred from what others published ({FILE_NAME} says how)."
        * published
    )
