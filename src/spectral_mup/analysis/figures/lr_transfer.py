"""Where the best learning rate lies: losses of every size over lr, and the optimum over size.

`lr_transfer` is the figure of one sweep; `draw_losses` and `draw_optima` draw one of its panels, with a legend, into given
axes.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures import style as page_style
from spectral_mup.analysis.figures.lr_panels import (
    LR_COLUMNS,
    MARKS,
    OPTIMUM_NOTE,
    ROW,
    base_lr,
    loss_panel,
    most_ticks,
    optimum_panel,
    size_marks,
    slope_text,
    verdict_text,
    view_of,
)
from spectral_mup.analysis.figures.style import (
    VERDICTS,
    finish,
    inches_of,
    line_height,
    mark,
    occurring,
    page,
    page_width,
    panel,
    powers_of_two,
    rule_looks,
    size_looks,
    subtitle_inches,
    subtitles,
)
from spectral_mup.analysis.verdict import Verdict, by_rule, loss_name, percent, what_was_run
from spectral_mup.config.tune import named

LOSS_PANEL_INCHES = 1.5


def lr_transfer(data: SweepData) -> tuple[Figure, pd.DataFrame]:
    """Draw the loss against log2 lr, one panel per rule, controls first, one line per size; then the optimum over size."""
    verdicts, parts = data.ordered, by_rule(data.points)
    axis, base, n, printing = verdicts[0].axis, verdicts[0].base, len(verdicts), data.printing
    of_axis, lr = axis.replace("_", " "), base_lr(verdicts[0].tuned)
    look = size_looks(sorted({size for v in verdicts for size in v.optima}))
    view = view_of(data.points, verdicts, look, LOSS_PANEL_INCHES, printing.full)
    cols = min(2 if n in (1, 3) else 3, max(1, int((page_width() - 0.5) / 1.35)))
    inches = (page_width() - 0.55) / cols - 0.12
    wedge = f"slopes: ±{verdicts[0].tolerance:g} (grey), \N{MINUS SIGN}1 (dotted)"
    said = [*map(verdict_text, verdicts), wedge]
    over = [subtitle_inches(said[i : i + cols], inches) for i in range(0, len(said), cols)]
    fig, grid = page([1.95 + ROW * len(view.row) + own for own in over], [1] * cols)
    drawn, first, titled = [], None, {}
    for i, v in enumerate(verdicts):
        label = loss_name(data.points) if i % cols == 0 else None
        ax = first = panel(fig, grid[i // cols, i % cols], i, printing.name(v.rule), label, first)
        ax.set_xlabel(lr)
        titled.setdefault(i // cols, {})[ax] = (verdict_text(v), VERDICTS[v.verdict]["color"])
        drawn += loss_panel(ax, parts[v.rule], v, view, list(parts[v.rule]["log2_lr"]), most_ticks(inches))
    ax = panel(
        fig, grid[n // cols, n % cols :], n, f"optimum against {of_axis}", f"optimal {base_lr(verdicts[0].tuned, 'base lr')}"
    )
    titled.setdefault(n // cols, {})[ax] = (wedge, "k")
    for row in titled.values():
        subtitles(row, inches)
    looks = rule_looks([v.rule for v in verdicts])
    optima, (lo, hi) = optimum_panel(ax, verdicts, looks)
    page_style.sizes_on_x(ax, list(look), axis, inches * (cols - n % cols))
    free = min(0.6, (n + 0.8) * line_height() / 1.6)  # share of the panel's height, below the optima, for the legend
    ax.set_ylim(hi - (hi - lo) / (1 - free), hi)
    above = Rectangle((0, free), 1, 1 - free, transform=ax.transAxes)
    for artist in (*ax.lines, *ax.collections):  # the bar of an unsure optimum would reach down into the legend
        artist.set_clip_path(above)
    powers_of_two(ax.yaxis, lo, hi, 7)
    handles = [mark(printing.name(rule), ls="-", ms=4.5, **own) for rule, own in looks.items()]
    ax.legend(handles=handles, loc="lower left", borderaxespad=0.2, handlelength=1.0, labelspacing=0.3)
    basis, level = " / ".join(dict.fromkeys(v.basis for v in verdicts)), percent(verdicts[0].alpha)
    caption = (
        f"{what_was_run(data.points)}. {OPTIMUM_NOTE}; bars: its interval ({basis}). Dashed: optimum of {of_axis} {base}; "
    )
    caption += f"arrow: from there to the optimum of the largest {of_axis}. Over the panels: verdict; slope of log2 optimal "
    caption += f"{data.named('lr')} on log2 {of_axis} with its {level} interval; regret: what the optimum of {of_axis} {base} "
    caption += "costs at the largest."
    caption += f" Above the grey line: diverged runs, one row per {of_axis}." if view.row else ""
    finish(fig, caption, size_marks(axis, look), occurring(fig, MARKS), note=printing.note)
    return fig, pd.DataFrame(drawn + optima, columns=LR_COLUMNS)


def draw_losses(ax: Axes, points: pd.DataFrame, verdicts: Sequence[Verdict], rule: str, label: str) -> None:
    """Draw the losses under one rule against what was tuned, over a range of losses that serves all rules."""
    v = next(v for v in verdicts if v.rule == rule)
    look = size_looks(sorted({size for v in verdicts for size in v.optima}))
    view = view_of(points, verdicts, look, inches_of(ax)[1])
    loss_panel(ax, by_rule(points)[rule], v, view, list(points["log2_lr"]))
    ax.set(xlabel=named("learning rate", v.tuned), ylabel=label)
    ax.legend(handles=size_marks(v.axis, look)[1:], title=f"{rule}\n{v.axis.replace('_', ' ')}")


def draw_optima(ax: Axes, verdicts: Sequence[Verdict]) -> None:
    """Draw the optimum against the size under every rule, with the slopes in the legend."""
    looks, sizes = rule_looks([v.rule for v in verdicts]), sorted({size for v in verdicts for size in v.optima})
    _, (lo, hi) = optimum_panel(ax, verdicts, looks)
    page_style.sizes_on_x(ax, sizes, verdicts[0].axis, inches_of(ax)[0])
    ax.set_ylim(lo, hi)
    powers_of_two(ax.yaxis, lo, hi, 7)
    ax.set_ylabel(named("optimal learning rate", verdicts[0].tuned))
    handles = [mark(f"{v.rule}: {slope_text(v)}", **{"ls": "-", "ms": 4.5, **looks[v.rule]}) for v in verdicts]
    ax.legend(handles=handles, title=f"slope [{percent(verdicts[0].alpha)} interval]")
