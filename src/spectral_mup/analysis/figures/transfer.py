"""The figure that says whether one rule transfers under every optimizer: a panel each, loss against lr, a line per size."""

from collections.abc import Sequence

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral_mup.analysis.figures import lr_transfer as lr
from spectral_mup.analysis.figures.forest import LOOKS
from spectral_mup.analysis.figures.style import STYLE, legend, page, panel, per_row, powers_of_two
from spectral_mup.analysis.results import Results, printed_labels
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, loss_name, percent, what_was_run
from spectral_mup.config.tune import LR

AROUND = 2.2  # octaves in view beyond the outermost optima
HEIGHT, LOSSES = 1.75, 1.1  # inches of a row, and of its losses in view


def transfers_of(sweeps: Sequence[Results]) -> list[tuple[Results, Verdict]]:
    """Of every sweep of the lr the rule that is tested: `spectral`, else the first that is no control."""
    found = []
    for r in sweeps:
        tested = sorted((v for v in r.verdicts if not v.is_control and v.tuned == LR), key=lambda v: v.rule != "spectral")
        found += [(r, v) for v in tested[:1] if v.finished]
    return found


@matplotlib.style.context(["default", STYLE])
def transfer_figure(sweeps: Sequence[Results]) -> tuple[Figure, pd.DataFrame] | None:
    """A panel per sweep, all over one axis: loss against log2 lr under the rule that is tested, verdict and slope in the title.

    All panels show as many octaves of lr, so that equal drifts look equal. None where no sweep tests a rule on the lr.
    """
    shown = transfers_of(sweeps)
    if not shown:
        return None
    axis, cols = shown[0][1].axis.replace("_", " "), per_row(len(shown))
    look = lr.size_looks(sorted({size for _, v in shown for size in v.optima}))
    parts = [rows(r.points, r.points["rule"] == v.rule) for r, v in shown]
    views = [lr.view_of(part, [v], look, LOSSES) for part, (_, v) in zip(parts, shown, strict=True)]
    spans = [_span([o.log2_lr for o in v.finished.values()]) for _, v in shown]
    reach = max(hi - lo for lo, hi in spans)
    rules, base = ("/".join(dict.fromkeys(texts)) for texts in ((v.rule for _, v in shown), (str(v.base) for _, v in shown)))
    level = "/".join(dict.fromkeys(percent(v.alpha) for _, v in shown))
    note = f"Rule {rules}. {what_was_run(pd.concat([r.points for r, _ in shown], ignore_index=True))}. {lr.OPTIMUM_NOTE}. "
    note += f"Dashed: optimum of {axis} {base}. Over the panels: verdict; slope of log2 optimal lr on log2 {axis} [{level}]."
    note += f" Above the grey line: diverged runs, one row per {axis}." if any(view.row for view in views) else ""
    lines = -(-len(shown) // cols)
    most = max(len(view.row) for view in views)
    fig, grid = page([HEIGHT + lr.ROW * most] * lines, [1] * cols, note, legends=2)
    drawn = []
    for i, ((r, v), label) in enumerate(zip(shown, printed_labels([r for r, _ in shown]), strict=True)):
        middle = sum(spans[i]) / 2
        lo, hi = middle - reach / 2, middle + reach / 2
        ax = panel(fig, grid[i // cols, i % cols], i, label, loss_name(r.points) if i % cols == 0 else "")
        title = f"{v.verdict}, {lr.slope_text(v)}"
        ax.text(0, 1.03, title, transform=ax.transAxes, va="bottom", color=LOOKS[v.verdict]["color"])
        ax.set_title(ax.get_title("left"), loc="left", pad=14)
        drawn += [(r.name, r.optimizer, *row) for row in lr.loss_panel(ax, parts[i], v, views[i], [lo, hi], ticks=(5, 5))]
        ax.set_xlim(lo, hi)
        powers_of_two(ax.xaxis, lo, hi, 6 * 3 // cols)
        ax.set_xlabel("base learning rate" if i + cols >= len(shown) else "")
    legend(fig, lr.size_marks(axis, look), line=1)
    legend(fig, lr.point_marks(), line=2)
    return fig, pd.DataFrame(drawn, columns=["sweep", "optimizer", *lr.LR_COLUMNS])


def _span(optima: Sequence[float]) -> tuple[float, float]:
    """The log2 lrs that a panel should show at least."""
    return float(np.min(optima)) - AROUND, float(np.max(optima)) + AROUND
