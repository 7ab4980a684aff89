"""The measured size laws of `derive`: on the screen, as a rule in YAML, as a figure."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.figures.style import finish, page, page_width, rule_looks, signed, sizes_on_x
from spectral_mup.analysis.stats import rows
from spectral_mup.measure.size_law_fit import ClassSlope, Row, SizeLaw, late
from spectral_mup.util.text import table

GROWTH = {"embedding (m, 1)": (1, 0), "vector (m, 1)": (1, 0), "hidden (m, m)": (1, 1), "hidden (m, 1)": (1, 0)}
GROWTH |= {"hidden (1, m)": (0, 1), "readout (1, m)": (0, 1)}


def lr_exponent(c: ClassSlope, slope: float) -> float:
    """Return the exponent of m in the lr of a class whose direction grows as m^slope.

    The lr is √(m_out/m_in)/(c·size), c = 1/m on the readout.
    """
    out, fan_in = GROWTH[c.label]
    return (out - fan_in) / 2 + (c.kind == "readout") - slope


def format_size_laws(laws: Sequence[SizeLaw]) -> str:
    """Format a paragraph per algorithm: its law, or that none fits; one line per class; what was rejected and why."""
    lines = [
        "slope: of log2 ‖direction‖₂ on log2 width; first, last: at the first and last step judged; in loss, in init: exponent",
        "in the size of the loss, 1 for the raw gradient, and in that of the weights, 1 for their norm, 0 for other scale-free",
        "directions; lr ×: the rule that follows, m the width ratio",
    ]
    for law in laws:
        lines += [f"{law.algorithm}: {' or '.join([law.law or 'none: measured exponents', *law.also])}"]
        cells = [["tensors", "slope [95 %]", "law", "first", "last", "in loss", "in init", "lr ×"]]
        for c in law.classes:
            slope = f"{c.slope:+.2f} [{c.lo:+.2f}, {c.hi:+.2f}]" + ("" if c.judged else " *")
            steps = [f"{x:+.2f}" if math.isfinite(x) else "–" for x in (c.first, c.last, c.gradient, c.weight)]
            power = round(lr_exponent(c, law.predicted(c) if law.law else c.slope), 2) + 0.0
            lr = f"m^{power:g}" if power else "1"
            cells.append([c.label, slope, f"{law.predicted(c):+.2f}" if law.law else "–", *steps, lr])
        lines += table(cells, indent=2)
        if not all(c.judged for c in law.classes):
            lines += ["  * not judged: the gradient behind a hidden side of fixed width takes many steps to reach its limit"]
        lines += [f"  not {name}: off by {by:.2f} at {where}" for name, (where, by) in law.rejected.items()]
        lines += [f"  undecided: {law.too_few}"] if law.too_few else []
    return "\n".join(lines)


def rule_yaml(laws: Sequence[SizeLaw], measured_on: str) -> str:
    """Write the text of a rule file: rule `spectral` with the measured size laws in place of declared ones."""
    lines = ["# `spectral` with size laws that action=derive measured, by kind of tensor."]
    for law in laws:
        slopes = ", ".join(f"{c.label} {c.slope:+.2f} ± {(c.hi - c.lo) / 2:.2f}" for c in law.classes)
        lines += [f"# {law.algorithm}: {law.law or 'no named law fits'}; {slopes}."]
        lines += [f"# Undecided: {law.too_few}."] if law.too_few else []
    lines += [f"source: measured on {measured_on}", "multipliers:", "  attention: {d_head: -1}", "  branch: {m_depth: -1}"]
    lines += ["  logits: {m_width: -1}", "scaling:", "  update_norm:"]
    for law in laws:
        sizes = {kind: ", ".join(f"{q}: {x:g}" for q, x in size.items()) for kind, size in law.exponents.items()}
        lines += [f"    {law.algorithm}:", *(f"      {kind}: {{{size}}}" for kind, size in sizes.items())]
    return "\n".join(lines) + "\n"


def directions(
    measured: Sequence[Row], laws: Sequence[SizeLaw], note: str, printing: Printing | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Draw ‖U‖₂ against width, relative to the base: a panel per algorithm, a line per class, dashed what its law predicts."""
    printing = printing or Printing()
    with printing.context():
        return _directions(measured, laws, note, printing)


def _directions(measured: Sequence[Row], laws: Sequence[SizeLaw], note: str, printing: Printing) -> tuple[Figure, pd.DataFrame]:
    cols = min(2 if page_width() > 5 else 1, len(laws))
    shown = math.ceil(len(laws) / cols)
    note += " Lines: mean over tensors, seeds and steps from 8 on, relative to the smallest width; points: single tensors and "
    note += "seeds; dashed: the named law, where one fits; in brackets: slope and half of its 95 % interval."
    fig, grid = page([2.6] * shown, [1] * cols)
    drawn, table = [], late(pd.DataFrame(list(measured)))
    table["log2"] = np.log2(table["direction"])
    looks = rule_looks(list(dict.fromkeys(c.label for law in laws for c in law.classes)))
    for i, law in enumerate(laws):
        ax = fig.add_subplot(grid[i // cols, i % cols])
        ax.set_title(f"{law.algorithm}: {law.law or 'no named law'}", loc="left")
        for c in law.classes:
            of_class, look = rows(table, (table["algorithm"] == law.algorithm) & (table["label"] == c.label)), looks[c.label]
            by_run = of_class.groupby(["tensor", "width", "seed"], sort=False, as_index=False)
            points = pd.DataFrame(by_run["log2"].mean())  # over the steps
            smallest = rows(points, points["width"] == points["width"].min())
            base = {tensor: part["log2"].mean() for tensor, part in smallest.groupby("tensor")}
            points["log2_ratio"] = points["log2"] - [base[tensor] for tensor in points["tensor"]]
            x, y = np.log2(points["width"].to_numpy()), points["log2_ratio"].to_numpy()
            ax.plot(x, y, ls="", ms=2, alpha=0.35, mew=0, **look)
            widths = np.unique(x)
            label = f"{c.label}  {signed(c.slope)} (±{(c.hi - c.lo) / 2:.2f})"
            ax.plot(widths, [y[x == w].mean() for w in widths], ms=3.5, label=label, **look)
            if law.law:
                ax.plot(widths, law.predicted(c) * (widths - widths[0]), ls="--", lw=0.8, color=look["color"])
            drawn.append(points.assign(algorithm=law.algorithm, tensors=c.label))
        sizes_on_x(ax, sorted(set(table["width"])), "width", (page_width() - 1) / cols)
        ax.set_ylabel(r"log2 $\|U\|_2$, relative to the base")
        ax.legend(loc="upper left")
    finish(fig, note, note=printing.note)
    return fig, pd.concat(drawn).reindex(columns=["algorithm", "tensors", "tensor", "width", "seed", "log2_ratio"])
