"""The figure of the feature change in every layer: does depth spread the learning evenly over the residual branches?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectral_mup.analysis.feature_check import BLOCK, last_blocks
from spectral_mup.analysis.figures import SweepData, diagnostics
from spectral_mup.analysis.figures.lr_panels import size_looks, size_marks
from spectral_mup.analysis.figures.style import SIZE, legend, letter_of, page, per_row
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, what_was_run

BRANCHES = 2  # of a block, whose outputs have a row of panels each
LAYER_COLUMNS = ["rule", "module", "depth", "block", "position", "seed", "value"]


def layers(data: SweepData) -> tuple[Figure, pd.DataFrame] | None:
    """RMS of the change of each block's and branch's output against its place (i+1)/L among L blocks.

    Rows: the residual stream after a block, and the output of the last linear map of each branch, before the branch
    multiplier; all at the step and lr of the feature check. Under a rule that transfers over depth the lines of all depths
    coincide, the stream growing from block to block and no branch standing still (2505.01618). None where no block was
    recorded.
    """
    values = layer_values(data)
    if values.empty:
        return None
    rules, modules = list(dict.fromkeys(values["rule"])), _shown(list(values["module"]))
    values = rows(values, values["module"].isin(modules))
    cols = per_row(len(rules))
    chunks = [(rules[i : i + cols], module) for i in range(0, len(rules), cols) for module in modules]
    view = {module: _view(values.loc[values["module"] == module, "value"]) for module in modules}
    look = size_looks(sorted(set(values["depth"])))
    note = f"{what_was_run(data.points)}. {_note(data.verdicts, rules)}"
    fig, grid = page([1.5] * len(chunks), [1] * cols, note, legends=1)
    for i, (own_rules, module) in enumerate(chunks):
        for j, rule in enumerate(own_rules):
            ax = fig.add_subplot(grid[i, j])
            ax.set_title(f"({letter_of(cols * i + j)}) {rule}", loc="left")
            ax.set_ylabel("" if j else f"RMS of Δh\n{module.partition('*')[2].removeprefix('.') or 'block'}")
            ax.tick_params(labelleft=j == 0)
            _panel(ax, rows(values, (values["rule"] == rule) & (values["module"] == module)), look)
            ax.set_ylim(view[module])
            ax.set_xlabel("layer position i/L" if i >= len(chunks) - len(modules) and module == modules[-1] else "")
    legend(fig, size_marks(SIZE["depth"], look), line=1)
    return fig, values


def _note(verdicts: Sequence[Verdict], rules: Sequence[str]) -> str:
    checks = [v.features for v in verdicts if v.features is not None and v.features.step is not None]
    steps, lrs = (
        "/".join(dict.fromkeys(f"{x:g}" for x in of)) for of in zip(*((c.step, c.log2_lr) for c in checks), strict=True)
    )
    note = f"RMS of the change Δh since step 0, at step {steps} and log2 lr {lrs}, the common one nearest the base's optimum. "
    note += "Lines: geometric mean over seeds (faint: single seeds). Block i of L, counted from 1, stands at i/L. Block: the "
    note += "residual stream after it; others: output of the last linear map of a branch, before the branch multiplier. "
    note += "Lines that coincide: the same learning at every depth."
    absent = [v.rule for v in verdicts if v.rule not in rules]
    return note + (f" Not measured at all depths of one lr: {', '.join(absent)}." if absent else "")


def layer_values(data: SweepData) -> pd.DataFrame:
    """LAYER_COLUMNS of every module inside blocks, at the step and lr of each rule's feature check."""
    table, features, steps = [], diagnostics.tensor_rows(data, ["delta_rms"], ["feature"]), diagnostics.judged_steps(data)
    for rule, part in features.groupby("rule", sort=False):
        part = rows(part, part["step"] == steps[str(rule)])
        blocks = [BLOCK.match(name) for name in part["name"]]
        last = last_blocks(blocks, list(part["size"]))
        numbers = part[["size", "seed", "delta_rms"]].to_numpy(float)
        for block, (depth, seed, value) in zip(blocks, numbers, strict=True):
            if block:
                module, i = ".".join(filter(None, (block[1], "*", block[3]))), int(block[2])
                table.append((rule, module, int(depth), i, (i + 1) / (last[block[1], depth] + 1), int(seed), value))
    values = pd.DataFrame(table, columns=LAYER_COLUMNS)
    return rows(values, values["value"].to_numpy(float) > 0)  # a log axis has no place for what has not moved


def _shown(modules: Sequence[str]) -> list[str]:
    """The blocks themselves, then the last module of each branch, as 'blocks.*.mlp.down' of its 'mlp'."""
    names = list(dict.fromkeys(modules))
    last = {name[: name.index("*")] + "*." + _branch(name): name for name in names if _branch(name)}
    return [*(n for n in names if not _branch(n)), *list(last.values())[:BRANCHES]]


def _branch(module: str) -> str:
    """Branch of a module: 'blocks.*.mlp.up' → 'mlp', of the block itself ''."""
    return module.partition("*")[2].removeprefix(".").partition(".")[0]


def _view(values: Any) -> tuple[float, float]:
    """log2 values in view in all panels of a module: at least two octaves, or noise would look like a trend."""
    lo, hi = np.log2(np.min(values)), np.log2(np.max(values))
    half = max((hi - lo) / 2 + 0.15, 1.0)
    return (lo + hi) / 2 - half, (lo + hi) / 2 + half


def _panel(ax: Axes, values: pd.DataFrame, look: dict[int, dict[str, Any]]) -> None:
    for depth, style in look.items():
        table = rows(values, values["depth"] == depth).pivot(index="position", columns="seed", values="value").map(np.log2)
        if table.empty:
            continue
        ax.plot(table.index, table, color=style["color"], lw=0.5, alpha=0.35)
        ax.plot(table.index, table.mean(axis=1), ms=3.2, **style)
    ax.set_xlim(0, 1.04)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    ax.yaxis.set_major_formatter(lambda y, _: f"$2^{{{y:g}}}$")
