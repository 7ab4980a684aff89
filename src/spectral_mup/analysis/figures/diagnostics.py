"""Figures of what the probe measures of single tensors, in the layouts of tensor_panels.py.

Each answers one question about why an lr transfers or drifts, and is None where the runs did not record what it needs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_mup.analysis.feature_check import BLOCK, LIMITS, first_and_last, representative, short
from spectral_mup.analysis.figures import FIGURES, SweepData
from spectral_mup.analysis.figures import tensor_panels as panels
from spectral_mup.analysis.stats import NAN, fit_slopes, rows
from spectral_mup.analysis.verdict import by_rule

Drawing = tuple[Figure, pd.DataFrame] | None
Slopes = dict[tuple[str, str], float]  # by (rule, tensor)
NATURAL = r"$\sqrt{n_{out}/n_{in}}$"
SIDES = {"largest": "λmax", "median": "median λ / λmax", "rank": "effective rank", "damped": "share damped"}
SLOPE_KEYS = ["rule", "quantity", "name", "step"]  # what a slope is fitted for, over the sizes
# columns of the norms that say of what and when a row is, or that enter other quantities: `quantities` does not draw them
CONTEXT = """run_id rule width depth log2_lr seed step name what kind fan_in fan_out multiplier lr rms delta_rms grad_norm
weight_norm update_norm""".split()


def spectral_norms(data: SweepData) -> Drawing:
    """Spectral norms of weights and updates, times multiplier/√(fan_out/fan_in): flat in width under the spectral condition."""
    tensors = tensor_rows(data, ["weight_norm", "update_norm"])
    natural = tensors["multiplier"] * np.sqrt(tensors["fan_in"] / tensors["fan_out"])
    values = long(tensors, {"W": natural * tensors["weight_norm"], "ΔW": natural * tensors["update_norm"]}, positive=True)
    names = _names(data, values)
    if {"W", "ΔW"} - set(values["quantity"]) or not names:
        return None
    fitted, steps = fit(values), judged_steps(data)
    weights = rows(fitted, fitted["quantity"] == "W")
    last = {str(rule): last_common(part) for rule, part in weights.groupby("rule", sort=False)}
    at_init = rows(weights, weights["step"] == 0)[["rule", "name", "kind", "slope"]].to_numpy()
    tables = {(rule, name): slope for rule, name, kind, slope in at_init if kind == "embedding"}
    flat = dict.fromkeys(zip(fitted["rule"], fitted["name"], strict=True), 0.0)
    note = f"Weights at step {_join(last)}, updates at step {_join(steps)}; c: forward multiplier. Dotted: constant, as the "
    note += "spectral condition asks; of W of an embedding, the slope at init, for a table of N rows has ‖W‖₂ ∝ √N + √width. "
    note += "Right: fitted slopes, bold where the whole interval is further than 0.15 (embedding, readout 0.10) from dotted."
    strips = [
        _strip(data, values, fitted, names, "W", rf"c$\|W\|_2$ / {NATURAL}", last, flat | tables, flat | tables),
        _strip(data, values, fitted, names, "ΔW", rf"c$\|\Delta W\|_2$ / {NATURAL}", steps, flat, flat),
    ]
    return _strips(data, values, fitted, strips, note)


def trust_ratios(data: SweepData) -> Drawing:
    """LAMB's ‖W‖_F/‖u‖_F of every tensor against width, and over the steps how far its slope is from that of the init std.

    The std is measured at step 0: the RMS of an embedding's output; else ‖W‖₂/(√fan_out + √fan_in), that of a Gaussian matrix.
    """
    tensors = tensor_rows(data, ["trust_ratio", "weight_norm"])
    tensors = rows(tensors, np.isfinite(tensors["trust_ratio"]) | (tensors["step"] == 0))
    tensors = first_and_last(tensors) if data.axis == "depth" else tensors
    std = init_std(tensors, data.norms)
    over = tensors["trust_ratio"].to_numpy(float) / np.where(std > 0, std, np.nan)
    values = long(tensors, {"trust": tensors["trust_ratio"], "over std": over}, positive=True)
    names = _names(data, values)
    if not names:
        return None
    fitted, steps = fit(values), judged_steps(data)
    judged = rows(fitted, fitted["step"].to_numpy() == [steps.get(rule, -1) for rule in fitted["rule"]])
    at = {(r, q, n): s for r, q, n, s in judged[["rule", "quantity", "name", "slope"]].to_numpy()}
    expected = {(r, n): at.get((r, "trust", n), NAN) - at.get((r, "over std", n), NAN) for r in steps for n in names}

    def over_steps(ax: Axes, rule: str, look: panels.Looks, inches: float) -> panels.Numbers:
        own = rows(fitted, (fitted["rule"] == rule) & (fitted["quantity"] == "over std"))
        panels.slopes_panel(ax, own, steps[rule], look, inches)
        return {n: (expected.get((rule, n), NAN), False) for n in look}

    note = (
        f"Top: step {_join(steps)}; dotted: slope of the tensor's init std, to which the ratio is proportional while weights "
    )
    note += "and directions keep their shape. Bottom: distance of the fitted slope from it over the steps; grey: ±0.15. "
    note += "Right: fitted slopes (bold: the interval of the distance lies outside ±0.15, or ±0.10 of embedding and readout), "
    note += "and slopes of the init std measured at step 0."
    label = r"trust ratio $\|W\|_F/\|u\|_F$"
    strips = [
        _strip(data, values, fitted, names, "trust", label, steps, expected, {}, judged_by="over std"),
        panels.Strip("over std", "slope minus that of the init std", names, "init std", over_steps),
    ]
    return _strips(data, values, fitted, strips, note)


def _strips(data: SweepData, values: pd.DataFrame, fitted: pd.DataFrame, strips: Sequence[panels.Strip], note: str) -> Drawing:
    rules, names = list(dict.fromkeys(values["rule"])), list(strips[0].names)
    text = f"{panels.sweep_note(data)} Lines: mean over seeds (faint: single seeds). Blocks: the last one. {note}"
    fig = panels.strip_page(rules, strips, text + panels.left_out(data.verdicts, rules), 1.75)
    values, fitted = (rows(t, t["name"].isin(names)) for t in (values, fitted))
    drawn = values.merge(fitted.drop(columns="kind"), on=SLOPE_KEYS, how="left")
    return fig, drawn.reindex(columns=["rule", "name", *panels.SLOPE_COLUMNS])


def _strip(
    data: SweepData,
    values: pd.DataFrame,
    fitted: pd.DataFrame,
    names: Sequence[str],
    quantity: str,
    label: str,
    steps: Mapping[str, int],
    dotted: Slopes,
    expected: Slopes,
    judged_by: str = "",
) -> panels.Strip:
    """A quantity of every rule against the size at the rule's step, and in the table its slopes.

    A slope is bold if the whole interval of `judged_by` is further from the `expected` one (default 0) than the kind's limit.
    """

    def draw(ax: Axes, rule: str, look: panels.Looks, inches: float) -> panels.Numbers:
        at, slopes = (rows(t, (t["rule"] == rule) & (t["step"] == steps.get(rule))) for t in (values, fitted))
        lines = {n: dotted.get((rule, n), NAN) for n in look}
        panels.sizes_panel(ax, rows(at, at["quantity"] == quantity), look, lines, data.axis, inches)
        judge, outside = rows(slopes, slopes["quantity"] == (judged_by or quantity)), {}
        for name, kind, lo, hi in judge[["name", "kind", "lo", "hi"]].to_numpy():
            flat = expected.get((rule, name), 0.0)
            outside[name] = bool(lo - flat > LIMITS[kind] or hi - flat < -LIMITS[kind])
        own = dict(rows(slopes, slopes["quantity"] == quantity)[["name", "slope"]].to_numpy())
        return {name: (own.get(name, NAN), outside.get(name, False)) for name in look}

    return panels.Strip(quantity, label, names, "slope in", draw)


def stable_rank(data: SweepData) -> Drawing:
    """‖·‖_F²/‖·‖₂² of updates and gradients over the steps: where it grows with width, an entrywise size law asks too much."""
    quantities = {"update_stable_rank": "ΔW", "grad_stable_rank": "G"}
    note = "G: the gradient. Stable rank: squared Frobenius norm over squared spectral norm."
    return _by_group(data, quantities, "stable rank", note, "log")


def clip_fraction(data: SweepData) -> Drawing:
    """Share of a tensor's entries that Sophia clips, over the steps: where it falls, the direction is not a sign any more."""
    note = "Rows of a table that no token has hit yet stand still and count as not clipped."
    return _by_group(data, {"clip_fraction": "clipped"}, "share clipped", note, "share")


def alignment(data: SweepData) -> Drawing:
    """‖W·x‖/(‖W‖₂·‖x‖) and the same of ΔW over the steps: 1 where the inputs lie along the top singular direction."""
    quantities = {"weight_alignment": "W", "update_alignment": "ΔW"}
    note = (
        "Alignment: ‖Wx‖/(‖W‖₂‖x‖), the same for ΔW, with the layer's inputs x on the probe batch. Dotted: a Gaussian W that "
    )
    note += "knows nothing of x, √fan_out/(√fan_out + √fan_in)."
    return _by_group(data, quantities, "alignment", note, "share", chance="weight_alignment")


def shampoo_spectra(data: SweepData) -> Drawing:
    """Eigenvalues of Shampoo's L (left) and R (right) over the steps: largest, median, effective rank, share that is damped."""
    quantities = {f"{side}_{what}": letter for what in SIDES for side, letter in (("left", "L"), ("right", "R"))}
    tensors = tensor_rows(data, list(quantities))
    values = long(tensors, {q: tensors[q] for q in quantities})
    linear = values["quantity"].str.endswith("_damped").to_numpy(bool)
    values = rows(values, linear | (values["value"] > 0))
    cells = []
    for rule, group in dict.fromkeys(zip(values["rule"], values["group"], strict=True)):
        row = f"{textwrap.fill(rule, 22)}\n{group}"
        cells.append([
            panels.Cell(rule, group, (f"left_{w}", f"right_{w}"), title, row, "share" if w == "damped" else "log", title)
            for w, title in SIDES.items()
        ])  # fmt: skip
    note = (
        "λ: eigenvalues of L and R, the averages of GGᵀ and GᵀG (a median of 0 is left out); effective rank: Σλ/λmax; damped: "
    )
    note += "λ below the damping."
    return panels.against_steps(data, values, cells, quantities, note) if cells else None


def quantities(data: SweepData) -> Drawing:
    """Every recorded quantity that no other figure draws: a row of panels per rule and quantity, a column per group."""
    known = {*CONTEXT, *(need for figure in FIGURES.values() for need in figure.needs)}
    names = {str(q): str(q) for q in data.norms.columns if q not in known and data.has(str(q))}
    tensors = tensor_rows(data, list(names), what=("tensor", "feature"))
    if not names:
        return None
    values = long(tensors, {q: tensors[q] for q in names})
    groups, cells = dict.fromkeys(values["group"]), []
    for rule in dict.fromkeys(values["rule"]):
        for quantity in dict.fromkeys(values["quantity"]):
            value = values["value"].to_numpy(float)[values["quantity"] == quantity]
            kind = "share" if ((value >= 0) & (value <= 1)).all() else "log" if (value > 0).all() else "linear"
            row = f"{textwrap.fill(rule, 22)}\n{textwrap.fill(quantity.replace('_', ' '), 22)}"
            cells.append([panels.Cell(rule, group, (quantity,), group, row, kind, quantity) for group in groups])
    return panels.against_steps(data, values, cells, names, "") if cells else None


def _by_group(data: SweepData, quantities: Mapping[str, str], label: str, note: str, kind: str, chance: str = "") -> Drawing:
    """Draw quantities over the steps, a row of panels per rule and a column per group of tensors."""
    tensors = tensor_rows(data, list(quantities))
    values = long(tensors, {q: tensors[q] for q in quantities}, positive=kind == "log")
    if set(quantities) - set(values["quantity"]):
        return None
    cells = [
        [panels.Cell(rule, group, tuple(quantities), group, f"{textwrap.fill(rule, 22)}\n{label}", kind) for group in groups]
        for groups in [dict.fromkeys(values["group"])]
        for rule in dict.fromkeys(values["rule"])
    ]
    return panels.against_steps(data, values, cells, quantities, note, chance)


def tensor_rows(data: SweepData, columns: list[str], what: Sequence[str] = ("tensor",)) -> pd.DataFrame:
    """Rows at each rule's lr of the feature check, with rule, size, group, and `columns` (NaN where absent).

    group: the module of a block that holds the tensor ('attention', 'mlp'), or its kind outside blocks. `what`: 'tensor' rows,
    'feature' rows of modules, or both.
    """
    norms, tables, parts = data.norms, [], by_rule(data.points)
    for v in data.verdicts:
        if v.features is None or v.features.log2_lr is None:
            continue
        own = norms["run_id"].isin(list(parts[v.rule]["run_id"])) & norms["what"].isin(list(what))
        own &= (norms["log2_lr"] == v.features.log2_lr) & norms["kind"].isin(list(LIMITS))
        tables.append(rows(norms, own).assign(rule=v.rule, size=norms[v.axis]))
    numbers = [*columns, "multiplier", "fan_in", "fan_out"]
    names = ["rule", "run_id", "name", "kind", "step", "size", "seed", *numbers]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names)
    table = table.reindex(columns=names).astype(dict.fromkeys(numbers, float))
    inside = {name: short(name).split(".")[0] for name in dict.fromkeys(table["name"]) if BLOCK.match(name)}
    if len(set(inside.values())) > 3:
        inside = dict.fromkeys(inside, "blocks")
    return table.assign(group=[inside.get(n, k) for n, k in zip(table["name"], table["kind"], strict=True)])


def long(tensors: pd.DataFrame, quantities: Mapping[str, object], positive: bool = False) -> pd.DataFrame:
    """One row per quantity, tensor, step and run: finite, and above zero if `positive` (for log axes)."""
    keep = ["rule", "name", "group", "kind", "step", "size", "seed", "fan_in", "fan_out"]
    parts = [tensors[keep].assign(quantity=q, value=np.asarray(v, float)) for q, v in quantities.items()]
    table = pd.concat(parts, ignore_index=True)
    value = table["value"].to_numpy(float)
    return rows(table, np.isfinite(value) & ((value > 0) | (not positive)))


def fit(values: pd.DataFrame) -> pd.DataFrame:
    """slope, lo, hi of log2 value on log2 size per rule, quantity, tensor and step that all sizes of the rule have."""
    sizes = {rule: len(set(part)) for rule, part in values.groupby("rule", sort=False)["size"]}
    fitted = fit_slopes(values, [*SLOPE_KEYS, "kind"])
    return rows(fitted, fitted.pop("n_sizes").to_numpy() == [sizes[rule] for rule in fitted["rule"]])


def init_std(tensors: pd.DataFrame, norms: pd.DataFrame) -> np.ndarray:
    """Init std of each row's tensor in its run, NaN where step 0 was not probed."""
    zero = rows(norms, (norms["step"] == 0) & (norms["what"] == "feature"))
    rms = {} if "rms" not in zero else dict(zip(zip(zero["run_id"], zero["name"], strict=True), zero["rms"], strict=True))
    first = rows(tensors, tensors["step"] == 0)
    gaussian = first["weight_norm"] / (np.sqrt(first["fan_out"]) + np.sqrt(first["fan_in"]))
    std = dict(zip(zip(first["run_id"], first["name"], strict=True), gaussian, strict=True))
    of_rows = [
        rms.get((run, name.removesuffix(".weight")), np.nan) if kind == "embedding" else std.get((run, name), np.nan)
        for run, name, kind in tensors[["run_id", "name", "kind"]].to_numpy()
    ]
    return np.array(of_rows, float)


def judged_steps(data: SweepData) -> dict[str, int]:
    return {v.rule: v.features.step for v in data.verdicts if v.features is not None and v.features.step is not None}


def last_common(fitted: pd.DataFrame) -> int:
    """The last step at which a slope was fitted for every tensor that has one at all."""
    per_step = fitted.groupby("step")["name"].nunique()
    return int(max(step for step, n in per_step.items() if n == per_step.max()))  # pyright: ignore


def _names(data: SweepData, values: pd.DataFrame) -> list[str]:
    checks = [v.features for v in data.verdicts if v.features is not None]
    known = set(values["name"])
    return [n for n in representative(checks, "update", most=10) if n in known]


def _join(steps: Mapping[str, int]) -> str:
    return "/".join(dict.fromkeys(map(str, steps.values())))
