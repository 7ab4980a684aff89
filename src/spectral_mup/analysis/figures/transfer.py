"""The figure that says whether one rule transfers under every optimizer: a panel each, loss against lr, a line per size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral_mup.analysis.figures import lr_panels as lr
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import (
    VERDICTS,
    finish,
    occurring,
    page,
    page_width,
    panel,
    per_row,
    powers_of_two,
    size_looks,
    subtitle_inches,
    subtitles,
)
from spectral_mup.analysis.results import Results, printed_labels
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, loss_name, percent, what_was_run
from spectral_mup.config.tune import LR

AROUND = 2.2  # octaves in view beyond the outermost optima
HEIGHT, LOSSES = 1.55, 1.1  # inches of a row, and of its losses in view


def transfers_of(sweeps: Sequence[Results]) -> list[tuple[Results, Verdict]]:
    """Return of every sweep of the lr the rule that is tested: `spectral`, else the first that is not a control."""
    found = []
    for r in sweeps:
        tested = sorted((v for v in r.verdicts if not v.is_control and v.tuned == LR), key=lambda v: v.rule != "spectral")
        found += [(r, v) for v in tested[:1] if v.finished]
    return found


def transfer_figure(sweeps: Sequence[Results], printing: Printing | None = None) -> tuple[Figure, pd.DataFrame] | None:
    """Draw a panel per sweep, all over one axis: loss against log2 lr under the rule that is tested, its verdict in the title.

    All panels show as many octaves of lr, so that equal drifts look equal. None where no sweep tests a rule on the lr.
    """
    shown, printing = transfers_of(sweeps), printing or Printing()
    if not shown:
        return None
    with printing.context():
        return _draw(shown, printing)


def _draw(shown: Sequence[tuple[Results, Verdict]], printing: Printing) -> tuple[Figure, pd.DataFrame]:
    axis, cols = shown[0][1].axis.replace("_", " "), per_row(len(shown), 1.6)
    inches = (page_width() - 0.3) / cols - 0.35
    look = size_looks(sorted({size for _, v in shown for size in v.optima}))
    parts = [rows(r.points, r.points["rule"] == v.rule) for r, v in shown]
    views = [lr.view_of(part, [v], look, LOSSES, printing.full) for part, (_, v) in zip(parts, shown, strict=True)]
    spans = [_span([o.log2_lr for o in v.finished.values()]) for _, v in shown]
    reach = max(hi - lo for lo, hi in spans)
    most, said = max(len(view.row) for view in views), [lr.verdict_text(v) for _, v in shown]
    over = [subtitle_inches(said[i : i + cols], inches) for i in range(0, len(said), cols)]
    fig, grid = page([HEIGHT + lr.ROW * most + own for own in over], [1] * cols)
    drawn, titled = [], {}
    names = printed_labels([r for r, _ in shown], printing.labels)
    for i, ((r, v), name) in enumerate(zip(shown, names, strict=True)):
        middle = sum(spans[i]) / 2
        lo, hi = middle - reach / 2, middle + reach / 2
        ax = panel(fig, grid[i // cols, i % cols], i, name, loss_name(r.points) if i % cols == 0 else "")
        titled.setdefault(i // cols, {})[ax] = (said[i], VERDICTS[v.verdict]["color"])
        drawn += [(r.name, r.optimizer, *row) for row in lr.loss_panel(ax, parts[i], v, views[i], [lo, hi], ticks=(5, 5))]
        ax.set_xlim(lo, hi)
        powers_of_two(ax.xaxis, lo, hi, lr.most_ticks(inches)[0])
        ax.set_xlabel(lr.base_lr(LR) if i + cols >= len(shown) else "")
    for row in titled.values():
        subtitles(row, inches)
    rules, base = (
        "/".join(dict.fromkeys(map(str, texts)))
        for texts in ((printing.name(v.rule) for _, v in shown), (v.base for _, v in shown))
    )
    level = "/".join(dict.fromkeys(percent(v.alpha) for _, v in shown))
    caption = f"Rule {rules}. {what_was_run(pd.concat([r.points for r, _ in shown], ignore_index=True))}. {lr.OPTIMUM_NOTE}. "
    caption += f"Dashed: optimum of {axis} {base}; arrow: from there to the optimum of the largest {axis}. Over the panels: "
    caption += (
        f"verdict; slope of log2 optimal lr on log2 {axis} with its {level} interval; regret: what the optimum of {axis} "
    )
    caption += f"{base} costs at the largest."
    caption += f" Above the grey line: diverged runs, one row per {axis}." if most else ""
    finish(fig, caption, lr.size_marks(axis, look), occurring(fig, lr.MARKS), note=printing.note)
    return fig, pd.DataFrame(drawn, columns=["sweep", "optimizer", *lr.LR_COLUMNS])


def _span(optima: Sequence[float]) -> tuple[float, float]:
    """Return the log2 lrs that a panel should show at least."""
    return float(np.min(optima)) - AROUND, float(np.max(optima)) + AROUND
