"""The figure over several sweeps: a row each, with the losses under every rule, the optimum over size, and the verdict."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from spectral_mup.analysis.figures import lr_panels as lr
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import (
    SIZE,
    VERDICTS,
    finish,
    ink,
    letter_width,
    line_height,
    mark,
    occurring,
    page,
    page_width,
    powers_of_two,
    rule_looks,
    size_looks,
    sizes_on_x,
)
from spectral_mup.analysis.results import Results, printed_labels
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, loss_name, what_was_run
from spectral_mup.config.tune import LR

HEIGHT = 1.35  # inches of a row: six and legends fit on a page
LOSSES = 0.95  # of them, for the losses in view
PANEL = 1.3  # inches of a panel at least: as many rules as fit have one of losses, three at most
TEXT = 24  # letters of the text beside a row, where the page has room for it


def summary_figure(sweeps: Sequence[Results], printing: Printing | None = None) -> tuple[Figure, pd.DataFrame]:
    """Draw a row per sweep: loss against log2 lr (panel per rule, line per size), optimum against size, verdict."""
    printing = printing or Printing()
    with printing.context():
        return _draw(sweeps, printing)


def _draw(sweeps: Sequence[Results], printing: Printing) -> tuple[Figure, pd.DataFrame]:
    rules = list(dict.fromkeys(v.rule for r in sweeps for v in r.verdicts))
    axes = list(dict.fromkeys(v.axis for r in sweeps for v in r.verdicts))
    sizes = {axis: {s for r in sweeps for v in r.verdicts if v.axis == axis for s in v.optima} for axis in axes}
    look, looks = {axis: size_looks(sorted(of_axis)) for axis, of_axis in sizes.items()}, rule_looks(rules)
    views = [lr.view_of(r.points, r.verdicts, look[r.verdicts[0].axis], LOSSES) for r in sweeps]
    text_inches = TEXT * letter_width() if page_width() > 5 else 0.0
    most = max(1, min(3, int((page_width() - text_inches) / PANEL) - 1))  # rules with a panel
    shown = [_shown(r.verdicts, most) for r in sweeps]
    cols = max(map(len, shown))
    inches = (page_width() - text_inches - 0.2) / (cols + 1)
    blocks = [_blocks(r.verdicts, printing) for r in sweeps]
    needed = [(_height(of_sweep) + 0.1) * bool(text_inches) for of_sweep in blocks]
    heights = [max(HEIGHT + lr.ROW * len(view.row), own) for view, own in zip(views, needed, strict=True)]
    fig, grid = page(heights, [0.15, *[inches] * (cols + 1), text_inches + 0.01])
    drawn, spans = [], []
    for i, (r, label, view) in enumerate(zip(sweeps, printed_labels(sweeps, printing.labels), views, strict=True)):
        name, optimum, text = (fig.add_subplot(grid[i, j]) for j in (0, cols + 1, cols + 2))
        for blank in (name, text):
            blank.set_axis_off()
        name.text(0.5, 0.5, label.replace(" (", "\n("), rotation=90, ha="center", va="center", fontweight="bold")
        panels = {v: fig.add_subplot(grid[i, j]) for j, v in enumerate(shown[i], start=1)}
        points = _loss_panels(panels, r, view, printing, inches, last=i == len(sweeps) - 1)
        optima, span = lr.optimum_panel(optimum, r.verdicts, looks)
        drawn += [(r.name, r.optimizer, *row) for row in points + optima]
        spans.append((optimum, *span))
        optimum.set_title("optimum", loc="left")
        sizes_on_x(optimum, sorted({s for v in r.verdicts for s in v.optima}), "", inches)
        optimum.set_xlabel(SIZE[r.verdicts[0].axis] if i == len(sweeps) - 1 or len(axes) > 1 else "")
        optimum.set_ylabel(f"optimal {lr.base_lr(r.verdicts[0].tuned, 'base lr')}")
        if text_inches:
            _write(fig, text, blocks[i], looks)
    reach = max(hi - lo for _, lo, hi in spans)  # the same octaves in all rows, so that equal slopes look equal
    for ax, lo, hi in spans:
        ax.set_ylim((lo + hi - reach) / 2, (lo + hi + reach) / 2)
        powers_of_two(ax.yaxis, (lo + hi - reach) / 2, (lo + hi + reach) / 2, 4)
    left_out = [rule for rule in rules if rule not in {v.rule for of_row in shown for v in of_row}]
    of_rules = [mark(printing.name(rule), ls="-", ms=4.5, **own) for rule, own in looks.items()]
    of_sizes = [entry for axis in axes for entry in lr.size_marks(axis, look[axis])]
    caption = _caption(sweeps, [printing.name(rule) for rule in left_out], any(view.row for view in views))
    finish(fig, caption, of_sizes, of_rules, occurring(fig, lr.MARKS), note=printing.note)
    return fig, pd.DataFrame(drawn, columns=["sweep", "optimizer", *lr.LR_COLUMNS])


def _shown(verdicts: Sequence[Verdict], most: int) -> list[Verdict]:
    """Choose the rules whose losses have a panel: of more than `most` those that are tested, controls at their left."""
    chosen = sorted(verdicts, key=lambda v: v.is_control)[:most]
    return sorted(chosen, key=lambda v: not v.is_control)


def _loss_panels(
    panels: Mapping[Verdict, Axes], r: Results, view: lr.View, printing: Printing, inches: float, last: bool
) -> list[tuple]:
    """Draw the losses of a sweep under each of the rules shown."""
    drawn, first, tuned = [], next(iter(panels.values())), r.verdicts[0].tuned
    for v, ax in panels.items():
        ax.set_title(textwrap.fill(printing.name(v.rule), int((inches - 0.25) / letter_width())), loc="left")
        ax.set_ylabel(loss_name(r.points).removeprefix("validation ") if ax is first else "")
        ax.tick_params(labelleft=ax is first)
        part, ticks = rows(r.points, r.points["rule"] == v.rule), (lr.most_ticks(inches)[0] - 1, 4)
        drawn += lr.loss_panel(ax, part, v, view, list(r.points["log2_lr"]), ticks)
        ax.set_xlabel(lr.base_lr(tuned) if last or tuned != LR else "")
    return drawn


def _blocks(verdicts: Sequence[Verdict], printing: Printing) -> dict[Verdict, list[str]]:
    """Return of every rule, controls first, the lines beside a row: its name, verdict, slope and regret."""
    return {v: [printing.name(v.rule), *lr.verdict_lines(v)] for v in sorted(verdicts, key=lambda v: not v.is_control)}


def _height(blocks: Mapping[Verdict, Sequence[str]]) -> float:
    """Return the inches that the lines take."""
    return line_height() * (sum(map(len, blocks.values())) + 0.6 * (len(blocks) - 1))


def _write(fig: Figure, ax: Axes, blocks: Mapping[Verdict, Sequence[str]], looks: lr.Looks) -> None:
    """Write the lines, centred on the row, in the colours of the verdicts."""
    inches = _height(blocks) / 2
    for v, block in blocks.items():
        for k, line in enumerate(block):
            at = ax.transAxes + ScaledTranslation(0, inches - line_height() / 2, fig.dpi_scale_trans)
            if not k:
                ax.plot(0.02, 0.5, transform=at, clip_on=False, ms=4.5, **looks[v.rule])
            color = ink(VERDICTS[v.verdict]["color"]) if k else "k"
            ax.text(0.08, 0.5, line, va="center", color=color, transform=at)
            inches -= line_height()
        inches -= 0.6 * line_height()


def _caption(sweeps: Sequence[Results], left_out: Sequence[str], diverged: bool) -> str:
    base = " / ".join(dict.fromkeys(f"{v.axis.replace('_', ' ')} {v.base}" for r in sweeps for v in r.verdicts))
    tolerance = "/".join(dict.fromkeys(f"{v.tolerance:g}" for r in sweeps for v in r.verdicts))
    caption = f"{what_was_run(pd.concat([r.points for r in sweeps], ignore_index=True))}. {lr.OPTIMUM_NOTE}. Dashed: optimum "
    caption += (
        f"of {base}; arrow: from there to the optimum of the largest size. Slope: of log2 optimal lr on log2 size; grey: "
    )
    caption += f"±{tolerance}, dotted: \N{MINUS SIGN}1. Regret: what the optimal lr of the base costs at the largest size."
    caption += " Above the grey line: diverged runs, one row per size." if diverged else ""
    return caption + (f" Losses of {', '.join(left_out)} are in the tables." if left_out else "")
