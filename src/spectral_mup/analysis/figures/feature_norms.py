"""The figures of feature and update norms: their growth with size, its slope over the steps, and in every layer over depth."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_mup.analysis.feature_check import BLOCK, HIDDEN, OUTER, FeatureCheck, by_class, relative, representative
from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures import tensor_panels as panels
from spectral_mup.analysis.figures.diagnostics import tensor_rows
from spectral_mup.analysis.figures.lr_panels import size_marks
from spectral_mup.analysis.figures.style import (
    MODULES,
    SIZE,
    Looks,
    finish,
    inches_of,
    keep_in_view,
    mark,
    module_looks,
    page,
    page_width,
    panel,
    per_row,
    signed,
    size_looks,
    sizes_on_x,
    slashed,
    step_at,
    steps_on_x,
)
from spectral_mup.analysis.figures.tensor_panels import Numbers, Strip, norm_lrs
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import what_was_run

QUANTITY = {"feature": "RMS of Δh", "update": r"$\|\Delta W\|_2\,\sqrt{n_{in}/n_{out}}$"}
Drawing = tuple[Figure, pd.DataFrame]
Panel = Callable[[Axes, FeatureCheck, str, Looks, float], tuple[list[tuple], Numbers]]
BRANCHES = 2  # of a block, whose outputs have a row of panels each
LAYER_COLUMNS = ["rule", "module", "depth", "block", "position", "seed", "value"]


def feature_norms(data: SweepData) -> Drawing:
    """Draw feature and update norms of classes of modules against size at the judged step, relative to the smallest size."""
    return _against_size(data, by_class)


def feature_modules(data: SweepData) -> Drawing:
    """Draw the same of single modules and tensors: those outside blocks and of the last block."""
    return _against_size(data, lambda check: check)


def _against_size(data: SweepData, of_check: Callable[[FeatureCheck], FeatureCheck]) -> Drawing:
    note = (
        "Lines: mean over seeds (faint: single seeds) relative to the smallest {axis}, at step {step} and log2 {key} {lr}, the "
    )
    note += "common one nearest the base's optimum. Right: fitted slopes, bold where the whole interval is outside the limit."

    def against_size(ax: Axes, check: FeatureCheck, quantity: str, look: Looks, inches: float) -> tuple[list[tuple], Numbers]:
        return size_panel(ax, check, quantity, look, data.axis, inches)

    columns = ["size", "seed", "value", "log2_ratio"]
    return _norm_figure(data, of_check, note, against_size, columns, "{}, relative", "slope in")


def size_panel(
    ax: Axes, check: FeatureCheck, quantity: str, look: Looks, axis: str, inches: float
) -> tuple[list[tuple], Numbers]:
    """Draw norms against size at the judged step, relative to the smallest size; return what was drawn, and the slopes."""
    drawn = []
    for name, style in look.items():
        seeds = relative(check, quantity, name)
        panels.seeds_and_mean(ax, np.log2(seeds[:, 0]), seeds[:, 3], style)
        drawn += [(name, *row) for row in seeds]
    sizes = np.unique(check.values["size"].to_numpy(float))
    _limits(ax, np.log2(sizes), np.log2(sizes / sizes[0]))
    sizes_on_x(ax, sizes.tolist(), axis, inches)
    keep_in_view(ax, -0.7, 0.7)  # or noise would look like a trend
    panels.ratios_on_y(ax, 7)
    judged = rows(check.table, (check.table["step"] == check.step) & (check.table["quantity"] == quantity))
    return drawn, {n: (slope, v == "failed") for n, slope, v in judged[["name", "slope", "verdict"]].to_numpy()}


def draw_features(ax: Axes, check: FeatureCheck, axis: str = "width") -> None:
    """Draw the change of features against size, one line per module, slopes in the legend; or say why that cannot be."""
    if check.step is None:
        return _say(ax, check.summary)
    judged = rows(check.table, check.table["judged"] & (check.table["quantity"] == "feature"))
    names, most = list(judged["name"]), len(MODULES)
    look = module_looks(names if len(names) <= most else representative([check], "feature", most))
    _, slopes = size_panel(ax, check, "feature", look, axis, inches_of(ax)[0])
    ax.set_ylabel(f"{QUANTITY['feature']}, relative")
    texts = {name: f"{name}  {signed(slope)}{' failed' * failed}" for name, (slope, failed) in slopes.items()}
    ax.legend(handles=[mark(texts[name], **{"ls": "-", **style}) for name, style in look.items()], title="slope")


def feature_steps(data: SweepData) -> Drawing:
    """Draw slopes of the feature and update norms against size, over the probed steps."""
    note = "Slope of log2 norm against log2 {axis} at each probed step; log2 {key} {lr}. Dashed: judged step {step}."

    def over_steps(ax: Axes, check: FeatureCheck, quantity: str, look: Looks, inches: float) -> tuple[list[tuple], Numbers]:
        drawn, table = [], rows(check.table, check.table["quantity"] == quantity)
        if table.empty:
            _say(ax, "not recorded")
            return [], {}
        for name, style in look.items():
            slopes = rows(table, table["name"] == name)[["step", "slope", "lo", "hi"]].to_numpy(float)
            ax.plot(step_at(slopes[:, 0]), slopes[:, 1], **style)
            drawn += [(name, *row) for row in slopes]
        steps = np.unique(table["step"].to_numpy(int))
        _limits(ax, step_at(steps), np.ones(len(steps)))
        ax.axvline(float(step_at(check.step or 1)), color="0.6", lw=0.7, ls="--", zorder=0)
        steps_on_x(ax, steps.tolist(), inches)
        keep_in_view(ax, -0.5, 0.5)  # or noise would look like a trend
        return drawn, {}

    return _norm_figure(data, by_class, note, over_steps, ["step", "slope", "lo", "hi"], "slope of {}", "")


def _norm_figure(
    data: SweepData, of_check: Callable[[FeatureCheck], FeatureCheck], note: str, draw_panel: Panel, columns: list[str],
    label: str, header: str,
) -> Drawing:  # fmt: skip
    """Lay out quantity × rule panels; `header` of the table of slopes, or empty if there is none."""
    checks, drawn = {rule: of_check(check) for rule, check in data.checks.items()}, []
    note = note.format(axis=data.axis, step=slashed(data.judged_steps.values()), lr=norm_lrs(data), key=data.named("lr"))
    text = f"{what_was_run(data.points)}. {note}"
    text += " Modules in blocks: of the last one." if data.axis == "depth" or of_check is not by_class else ""
    text += " Of a class: geometric mean over its modules." if of_check is by_class else ""
    text += " Updates inside blocks: times the depth, as branches add up." * (data.axis == "depth")
    text += f" Grey: |slope| ≤ {HIDDEN:.2f} (the limit of hidden modules), dotted: {OUTER:.2f} (embedding, readout)."

    def strip(quantity: str) -> Strip:
        def draw(ax: Axes, rule: str, look: Looks, inches: float) -> Numbers:
            check = checks[rule]
            if check.step is None:
                _say(ax, check.summary)
                return {}
            points, numbers = draw_panel(ax, check, quantity, look, inches)
            drawn.extend((rule, quantity, *row) for row in points)
            return numbers

        names = representative(list(checks.values()), quantity, most=len(MODULES))
        return Strip(quantity, label.format(QUANTITY[quantity]), names, header, draw)

    fig = panels.strip_page(list(checks), [strip(q) for q in QUANTITY], text, 1.6, data.printing)
    return fig, pd.DataFrame(drawn, columns=["rule", "quantity", "name", *columns])


COORD_COLUMNS = ["rule", "class", "step", "size", "seed", "value"]


def coord_check(data: SweepData) -> Drawing | None:
    """Draw the coordinate check of mup's users: RMS of features against size, a panel per class of modules, one line per step.

    One row per rule; step 0 is init. Geometric mean over the modules of a class and over seeds. Flat lines: the features
    neither vanish nor explode; lines that part at large sizes: an update does.
    """
    values = tensor_rows(data, ["rms"], ["feature"])
    values = rows(values, (values["rms"] > 0) & (values["group"] != "block")).assign(value=lambda t: np.log2(t["rms"]))
    if values.empty:
        return None
    keys = ["rule", "group", "step", "size", "seed"]
    values = pd.DataFrame(values.groupby(keys, sort=False, as_index=False)["value"].mean())
    rules, groups, steps = (list(dict.fromkeys(values[name])) for name in ("rule", "group", "step"))
    steps, groups = sorted(steps), sorted(groups, key=lambda group: {"embedding": 0, "readout": 2}.get(group, 1))
    cols = -(-len(groups) // -(-len(groups) // max(1, int((page_width() - 0.5) / 1.15))))
    cells = [(rule, groups[i : i + cols]) for rule in rules for i in range(0, len(groups), cols)]
    look, inches = size_looks(steps), (page_width() - 0.6) / cols - 0.15
    fig, grid = page([1.5] * len(cells), [1] * cols)
    first = None
    places = ((i, j, rule, group) for i, (rule, of_row) in enumerate(cells) for j, group in enumerate(of_row))
    for k, (i, j, rule, group) in enumerate(places):
        label = None if j else f"{data.printing.name(rule)}\nRMS of features"
        ax = first = panel(fig, grid[i, j], k, data.printing.name(group), label, first)
        own = rows(values, (values["rule"] == rule) & (values["group"] == group))
        for step, style in look.items():
            table = rows(own, own["step"] == step).pivot(index="size", columns="seed", values="value")
            panels.seeds_over(ax, np.log2(table.index.to_numpy(float)), table, {"ms": 3, **style})
        sizes_on_x(ax, sorted(set(values["size"])), data.axis, inches)
        ax.set_xlabel(ax.get_xlabel() if i == len(cells) - 1 else "")
        panels.octaves_on_y(ax, 5)
    if first is not None:
        lo, hi = first.get_ylim()
        first.set_ylim(min(lo, (lo + hi) / 2 - 1.5), max(hi, (lo + hi) / 2 + 1.5))  # or noise would look like a trend
    caption = (
        f"{what_was_run(data.points)}. RMS of the outputs of modules on the probe batch after that many steps (0: init), at "
    )
    caption += f"log2 {data.named('lr')} {norm_lrs(data)}, the common one nearest the base's optimum; geometric mean over the "
    caption += f"modules of a class and over seeds (band: their range).{panels.left_out(data, rules)}"
    finish(fig, caption, [mark("step:"), *size_marks("step", look)[1:]], note=data.printing.note)
    drawn = values.rename(columns={"group": "class"}).assign(value=np.exp2(values["value"]))
    return fig, drawn.reindex(columns=COORD_COLUMNS)


def _say(ax: Axes, text: str) -> None:
    """Write in place of a drawing."""
    ax.text(0.5, 0.5, textwrap.fill(text, 24), ha="center", va="center", transform=ax.transAxes)


def _limits(ax: Axes, x: np.ndarray, unit: np.ndarray) -> None:
    """Draw the limits of the slopes; `unit`: a slope of one."""
    ax.fill_between(x, -HIDDEN * unit, HIDDEN * unit, color="0.88", lw=0, zorder=0)
    ax.plot(x, np.outer(unit, [-OUTER, OUTER]), color="0.55", lw=0.6, ls=":", zorder=0)


def layers(data: SweepData) -> Drawing | None:
    """Draw the RMS of the change of each block's and branch's output against its place (i+1)/L among L blocks.

    Rows: the residual stream after a block, and the output of the last linear map of each branch, before the branch multiplier;
    all at the step and lr of the feature check. Under a rule that transfers over depth the lines of all depths coincide, the
    stream growing from block to block and no branch standing still (arXiv 2505.01618). None where no block was recorded.
    """
    values = layer_values(data)
    if values.empty:
        return None
    rules, modules = list(dict.fromkeys(values["rule"])), _shown(list(values["module"]))
    values = rows(values, values["module"].isin(modules))
    cols = per_row(len(rules))
    chunks = [(rules[i : i + cols], module) for i in range(0, len(rules), cols) for module in modules]
    look = size_looks(sorted(set(values["depth"])))
    caption = (
        f"{what_was_run(data.points)}. RMS of the change Δh since step 0, at step {slashed(data.judged_steps.values())} and "
    )
    caption += f"log2 {data.named('lr')} {norm_lrs(data)}, the common one nearest the base's optimum. Lines: geometric mean "
    caption += (
        "over seeds (band: their range). Block i of L, counted from 1, stands at i/L. Block: the residual stream after it; "
    )
    caption += "others: output of the last linear map of a branch, before the branch multiplier. Lines that coincide: the same "
    caption += f"learning at every depth.{panels.left_out(data, rules, 'depths')}"
    fig, grid = page([1.5] * len(chunks), [1] * cols)
    for i, (own_rules, module) in enumerate(chunks):
        label, of_module = f"RMS of Δh\n{_inside(module) or 'block'}", rows(values, values["module"] == module)
        lo, hi = np.log2(of_module["value"].min()), np.log2(of_module["value"].max())
        half = max((hi - lo) / 2 + 0.15, 1.0)  # in view are at least two octaves, or noise would look like a trend
        for j, rule in enumerate(own_rules):
            ax = panel(fig, grid[i, j], cols * i + j, data.printing.name(rule), None if j else label)
            for depth, style in look.items():
                part = rows(of_module, (of_module["rule"] == rule) & (of_module["depth"] == depth))
                table = pd.DataFrame(np.log2(part.pivot(index="position", columns="seed", values="value")))
                panels.seeds_over(ax, table.index, table, {"ms": 3.2, **style})
            ax.set(xlim=(0, 1.04), ylim=((lo + hi) / 2 - half, (lo + hi) / 2 + half))
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
            panels.octaves_on_y(ax, 5)
            ax.set_xlabel("layer position i/L" if i >= len(chunks) - len(modules) and module == modules[-1] else "")
    finish(fig, caption, size_marks(SIZE["depth"], look), note=data.printing.note)
    return fig, values


def layer_values(data: SweepData) -> pd.DataFrame:
    """Return LAYER_COLUMNS of every module inside blocks, at the step and lr of each rule's feature check."""
    features, steps = tensor_rows(data, ["delta_rms"], ["feature"]), data.judged_steps
    features = rows(features, [steps.get(r) == s for r, s in zip(features["rule"], features["step"], strict=True)])
    features = rows(features, [BLOCK.match(name) is not None for name in features["name"]])
    blocks = [block for name in features["name"] if (block := BLOCK.match(name))]
    module = [f"{block.string[: block.start(2)]}*{block.string[block.end(2) :]}" for block in blocks]
    stack, block = [block[1] for block in blocks], [int(block[2]) for block in blocks]
    values = features.assign(module=module, stack=stack, block=block, depth=features["size"].astype(int))
    last = values.groupby(["rule", "stack", "depth"])["block"].transform("max").to_numpy()
    values = values.assign(position=(values["block"] + 1) / (last + 1), value=values["delta_rms"])
    return rows(values, values["value"] > 0).reindex(columns=LAYER_COLUMNS)  # a log axis has no place for what has not moved


def _inside(module: str) -> str:
    """Return the name inside the block, of the block itself '': 'blocks.*.mlp.up' → 'mlp.up'."""
    return module.partition("*")[2].removeprefix(".")


def _shown(modules: Sequence[str]) -> list[str]:
    """Name the blocks themselves, then the last module of each branch, as 'blocks.*.mlp.down' of its 'mlp'."""
    names = list(dict.fromkeys(modules))
    last = {name.partition("*")[0] + _inside(name).partition(".")[0]: name for name in names if _inside(name)}
    return [*(name for name in names if not _inside(name)), *list(last.values())[:BRANCHES]]
