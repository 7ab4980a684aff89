"""The figure over several sweeps: a row each, with the losses under every rule, the optimum over size, and the verdict."""

from collections.abc import Sequence

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_mup.analysis.figures import lr_transfer as lr
from spectral_mup.analysis.figures.style import GREY, LETTER, LINE, SIZE, STYLE, legend, mark, page, powers_of_two, sizes_on_x
from spectral_mup.analysis.results import Results, labels
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, loss_name, what_was_run
from spectral_mup.config.tune import LR, named

MAX_RULES = 3  # whose losses have a panel: more would be too narrow to read
HEIGHT = 1.3  # inches of a row: six, legends and note fit on a page
HEIGHT_OF_LOSSES = 0.95  # of them, for the losses in view
NAME_WIDTH, TEXT_WIDTH = 0.08, 1.3  # of the name and of the text beside a row, in panels
PACKED = {"borderaxespad": 0, "borderpad": 0, "handlelength": 1.0, "handletextpad": 0.5, "labelspacing": 0.6, "fontsize": 7}


@matplotlib.style.context(["default", STYLE])
def summary_figure(sweeps: Sequence[Results]) -> tuple[Figure, pd.DataFrame]:
    """A row per sweep: loss against log2 lr (panel per rule, line per size), optimum against size, verdict."""
    rules = list(dict.fromkeys(v.rule for r in sweeps for v in r.verdicts))
    shown, looks = rules[:MAX_RULES], lr.rule_looks(rules)
    axes = list(dict.fromkeys(v.axis for r in sweeps for v in r.verdicts))
    sizes = {axis: {s for r in sweeps for v in r.verdicts if v.axis == axis for s in v.optima} for axis in axes}
    look = {axis: lr.size_looks(sorted(of_axis)) for axis, of_axis in sizes.items()}
    views = [lr.view_of(r.points, r.verdicts, look[r.verdicts[0].axis], HEIGHT_OF_LOSSES) for r in sweeps]
    inches = 5.5 / (NAME_WIDTH + len(shown) + 1 + TEXT_WIDTH)  # of a panel, less its labels
    texts = [{v.rule: _verdict_text(v, inches * TEXT_WIDTH) for v in r.verdicts} for r in sweeps]
    needed = [LINE * sum(text.count("\n") + 1.7 for text in of_sweep.values()) for of_sweep in texts]
    heights = [max(HEIGHT + lr.ROW * len(view.row), own) for view, own in zip(views, needed, strict=True)]
    widths = [NAME_WIDTH] + [1.0] * (len(shown) + 1) + [TEXT_WIDTH]
    base = " / ".join(dict.fromkeys(f"{v.axis.replace('_', ' ')} {v.base}" for r in sweeps for v in r.verdicts))
    note = f"{what_was_run(pd.concat([r.points for r in sweeps], ignore_index=True))}. {lr.OPTIMUM_NOTE}. Dashed: optimum "
    note += f"of {base}. Slope: of log2 optimal lr on log2 size. Regret: what the optimal lr of the base costs at the "
    note += "largest size."
    note += " Above the grey line: diverged runs, one row per size." if any(view.row for view in views) else ""
    note += f" Losses of {', '.join(rules[MAX_RULES:])} are in the tables." if len(rules) > MAX_RULES else ""
    fig, grid = page(heights, widths, note, legends=2)
    drawn, spans = [], []
    for i, (r, label, view) in enumerate(zip(sweeps, labels(sweeps), views, strict=True)):
        name, *panels, optimum, text = (fig.add_subplot(grid[i, j]) for j in range(len(widths)))
        name.set_axis_off()
        name.text(0.5, 0.5, label.replace(" (", "\n("), rotation=90, ha="center", va="center", fontweight="bold")
        last = i == len(sweeps) - 1
        points = _loss_panels(panels, r, shown, view, last)
        optima, span = lr.optimum_panel(optimum, r.verdicts, looks)
        drawn += [(r.name, r.optimizer, *row) for row in points + optima]
        spans.append((optimum, *span))
        sizes_on_x(optimum, sorted({s for v in r.verdicts for s in v.optima}), "", inches)
        optimum.set_xlabel(SIZE[r.verdicts[0].axis] if last or len(axes) > 1 else "")
        optimum.set_ylabel(named("optimal lr", r.verdicts[0].tuned))
        text.set_axis_off()
        handles = [mark(written, ls="-", ms=4.5, **looks[rule]) for rule, written in texts[i].items()]
        text.legend(handles=handles, loc="center left", bbox_to_anchor=(0, 0.5), **PACKED)
        for ax, title in zip((*panels, optimum, text), (*shown, "optimum", "verdict, slope, regret"), strict=True):
            ax.set_title(title if i == 0 else "", loc="left")
    reach = max(hi - lo for _, lo, hi in spans)  # the same octaves in all rows, so that equal slopes look equal
    for ax, lo, hi in spans:
        ax.set_ylim((lo + hi - reach) / 2, (lo + hi + reach) / 2)
        powers_of_two(ax.yaxis, (lo + hi - reach) / 2, (lo + hi + reach) / 2, 4)
    legend(fig, [entry for axis in axes for entry in lr.size_marks(axis, look[axis])], line=1)
    legend(fig, lr.point_marks(), line=2)
    return fig, pd.DataFrame(drawn, columns=["sweep", "optimizer", *lr.LR_COLUMNS])


def _loss_panels(panels: Sequence[Axes], r: Results, shown: Sequence[str], view: lr.View, last: bool) -> list[tuple]:
    """Draw the losses of a sweep under each of the rules shown."""
    verdicts, drawn = {v.rule: v for v in r.verdicts}, []
    for j, (ax, rule) in enumerate(zip(panels, shown, strict=True)):
        ax.set_ylabel(loss_name(r.points).removeprefix("validation ") if j == 0 else "")
        tuned = r.verdicts[0].tuned
        ax.set_xlabel(named("learning rate", tuned) if rule in verdicts and (last or tuned != LR) else "")
        ax.tick_params(labelleft=j == 0)
        if rule in verdicts:
            part = rows(r.points, r.points["rule"] == rule)
            drawn += lr.loss_panel(ax, part, verdicts[rule], view, list(r.points["log2_lr"]), ticks=(4, 4))
        else:
            lr.losses_on_y(ax, view, 4)
            ax.set_xticks([])
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color=GREY)
    return drawn


def _verdict_text(v: Verdict, inches: float) -> str:
    gap = "\n" if (len(v.rule) + len(v.verdict) + 5) * LETTER > inches else " "
    regret = f"{'at least ' * v.regret_at_least}{v.regret:.2%}".replace("%", " %") if np.isfinite(v.regret) else "unknown"
    return f"{v.rule}:{gap}{v.verdict}\n{lr.slope_text(v)}\nregret {regret}"
