"""Figures of what the probe tells of single tensors: functions of points, norms and verdicts that return (Figure, data drawn).

Each answers one question about why an lr transfers or drifts, and is None where the runs did not record what it needs.
The layouts are in panels.py, the print rules in page.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral_mup.analysis.feature_check import BLOCK, LIMITS, first_and_last, fit_slope, representative, short
from spectral_mup.analysis.figures.tensor_panels import Cell, Strip, against_size, against_steps
from spectral_mup.analysis.optimum import rows
from spectral_mup.analysis.verdict import Verdict, by_rule

Drawing = tuple[Figure, pd.DataFrame] | None
NATURAL = r"$\sqrt{n_{out}/n_{in}}$"
SIDES = {"largest": "λmax", "median": "median λ / λmax", "rank": "effective rank", "damped": "share damped"}
LINE = ["rule", "quantity", "name", "step"]  # what a slope is fitted for, over the sizes


def spectral_norms(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """Spectral norms of weights and updates, times multiplier/√(fan_out/fan_in): flat in width under the spectral condition.

    Over depth the condition asks another power of each tensor of a block, so this is drawn over width only.
    """
    if verdicts[0].axis != "width":
        return None
    tensors = tensor_rows(points, norms, verdicts, ["weight_norm", "update_norm"])
    natural = tensors["multiplier"] * np.sqrt(tensors["fan_in"] / tensors["fan_out"])
    values = long(tensors, {"W": natural * tensors["weight_norm"], "ΔW": natural * tensors["update_norm"]}, positive=True)
    names = _names(verdicts, values)
    if {"W", "ΔW"} - set(values["quantity"]) or not names:
        return None
    fitted, steps = fit(values), judged_steps(verdicts)
    weights = rows(fitted, fitted["quantity"] == "W")
    last = {str(rule): last_common(part) for rule, part in weights.groupby("rule", sort=False)}
    at_init = rows(weights, weights["step"] == 0)[["rule", "name", "kind", "slope"]].to_numpy()
    tables = {(rule, name): slope for rule, name, kind, slope in at_init if kind == "embedding"}
    flat = dict.fromkeys(zip(fitted["rule"], fitted["name"], strict=True), 0.0)
    strips = [
        Strip("W", rf"c$\|W\|_2$ / {NATURAL}", last, "slope in", flat | tables),
        Strip("ΔW", rf"c$\|\Delta W\|_2$ / {NATURAL}", steps, "slope in", flat),
    ]
    note = f"Weights at step {_said(last)}, updates at step {_said(steps)}; c: forward multiplier. Dotted: constant, as the "
    note += "spectral condition asks; of W of an embedding, the slope at init, for a table of N rows has ‖W‖₂ ∝ √N + √width. "
    note += "Right: fitted slopes, bold where the whole interval is further than 0.15 (embedding, readout 0.10) from dotted."
    return against_size(points, verdicts, names, values, fitted, strips, note)


def trust_ratios(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """LAMB's ‖W‖_F/‖u‖_F of every tensor against width, and over the steps how far its slope is from that of the init std.

    The std is measured at step 0: the RMS of an embedding's output; else ‖W‖₂/(√fan_out + √fan_in), that of a Gaussian matrix.
    """
    tensors = tensor_rows(points, norms, verdicts, ["trust_ratio", "weight_norm"])
    tensors = rows(tensors, np.isfinite(tensors["trust_ratio"]) | (tensors["step"] == 0))
    tensors = first_and_last(tensors) if verdicts[0].axis == "depth" else tensors
    std = init_std(tensors, norms)
    over = tensors["trust_ratio"].to_numpy(float) / np.where(std > 0, std, np.nan)
    values = long(tensors, {"trust": tensors["trust_ratio"], "over std": over}, positive=True)
    names = _names(verdicts, values)
    if not names:
        return None
    fitted, steps = fit(values), judged_steps(verdicts)
    judged = rows(fitted, fitted["step"].to_numpy() == [steps.get(rule, -1) for rule in fitted["rule"]])
    at = {(r, q, n): s for r, q, n, s in judged[["rule", "quantity", "name", "slope"]].to_numpy()}
    nan = float("nan")
    expected = {(r, n): at.get((r, "trust", n), nan) - at.get((r, "over std", n), nan) for r in steps for n in names}
    strips = [
        Strip("trust", r"trust ratio $\|W\|_F/\|u\|_F$", steps, "slope in", expected),
        Strip("over std", "slope minus that of the init std", steps, "init std", expected, over_steps=True),
    ]
    note = (
        f"Top: step {_said(steps)}; dotted: slope of the tensor's init std, to which the ratio is proportional while weights "
    )
    note += "and directions keep their shape. Bottom: distance of the fitted slope from it over the steps; grey: ±0.15. "
    note += "Right: fitted slopes (bold: the interval of the distance lies outside ±0.15, or ±0.10 of embedding and readout), "
    note += "and slopes of the init std measured at step 0."
    return against_size(points, verdicts, names, values, fitted, strips, note, judged_by="over std")


def stable_rank(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """‖·‖_F²/‖·‖₂² of updates and gradients over the steps: where it grows with width, an entrywise size law asks too much."""
    quantities = {"update_stable_rank": "ΔW", "grad_stable_rank": "G"}
    note = "G: the gradient. Stable rank: squared Frobenius norm over squared spectral norm."
    return _by_group(points, norms, verdicts, quantities, "stable rank", note)


def clip_fraction(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """Share of a tensor's entries that Sophia clips, over the steps: where it falls, the direction is no sign any more."""
    note = "Rows of a table that no token has hit yet stand still and count as not clipped."
    return _by_group(points, norms, verdicts, {"clip_fraction": "clipped"}, "share clipped", note, log=False)


def alignment(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """‖W·x‖/(‖W‖₂·‖x‖) and the same of ΔW over the steps: 1 where the inputs lie along the top singular direction."""
    quantities = {"weight_alignment": "W", "update_alignment": "ΔW"}
    note = (
        "Alignment: ‖Wx‖/(‖W‖₂‖x‖), the same for ΔW, with the layer's inputs x on the probe batch. Dotted: a Gaussian W that "
    )
    note += "knows nothing of x, √fan_out/(√fan_out + √fan_in)."
    return _by_group(points, norms, verdicts, quantities, "alignment", note, log=False, chance="weight_alignment")


def shampoo_spectra(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict]) -> Drawing:
    """Eigenvalues of Shampoo's L (left) and R (right) over the steps: largest, median, effective rank, share that is damped."""
    quantities = {f"{side}_{what}": letter for what in SIDES for side, letter in (("left", "L"), ("right", "R"))}
    tensors = tensor_rows(points, norms, verdicts, list(quantities))
    values = long(tensors, {q: tensors[q] for q in quantities})
    if values.empty:
        return None
    linear = values["quantity"].str.endswith("_damped").to_numpy(bool)
    values = rows(values, linear | (values["value"] > 0))
    cells = []
    for rule in dict.fromkeys(values["rule"]):
        for group in dict.fromkeys(values["group"][values["rule"] == rule]):
            pairs = {what: (f"left_{what}", f"right_{what}") for what in SIDES}
            cells.append(
                [
                    Cell(rule, group, pair, SIDES[w], w != "damped", f"{textwrap.fill(rule, 22)}\n{group}")
                    for w, pair in pairs.items()
                ]
            )
    note = (
        "λ: eigenvalues of L and R, the averages of GGᵀ and GᵀG (a median of 0 is left out); effective rank: Σλ/λmax; damped: "
    )
    note += "λ below the damping."
    return against_steps(points, verdicts, values, cells, quantities, note)


def _by_group(
    points: pd.DataFrame,
    norms: pd.DataFrame,
    verdicts: Sequence[Verdict],
    quantities: Mapping[str, str],
    said: str,
    note: str,
    log: bool = True,
    chance: str = "",
) -> Drawing:
    """Draw quantities over the steps, a row a rule and a column a group of tensors."""
    tensors = tensor_rows(points, norms, verdicts, list(quantities))
    values = long(tensors, {q: tensors[q] for q in quantities}, positive=log)
    if set(quantities) - set(values["quantity"]):
        return None
    groups = dict.fromkeys(values["group"])
    cells = [
        [Cell(rule, group, tuple(quantities), group, log, f"{textwrap.fill(rule, 22)}\n{said}") for group in groups]
        for rule in dict.fromkeys(values["rule"])
    ]
    return against_steps(points, verdicts, values, cells, quantities, note, chance)


def tensor_rows(points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict], columns: list[str]) -> pd.DataFrame:
    """Return the tensor rows at each rule's lr of the feature check, with rule, size, group, and `columns` (NaN where absent).

    group: the module of a block that holds the tensor ('attention', 'mlp'), or its kind outside blocks.
    """
    found, parts = [], by_rule(points)
    for v in verdicts:
        if v.features is None or v.features.log2_lr is None:
            continue
        mine = norms["run_id"].isin(list(parts[v.rule]["run_id"])) & (norms["what"] == "tensor")
        mine &= (norms["log2_lr"] == v.features.log2_lr) & norms["kind"].isin(list(LIMITS))
        found.append(rows(norms, mine).assign(rule=v.rule, size=norms[v.axis]))
    numbers = [*columns, "multiplier", "fan_in", "fan_out"]
    names = ["rule", "run_id", "name", "kind", "step", "size", "seed", *numbers]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=names)
    table = table.reindex(columns=names).astype(dict.fromkeys(numbers, float))
    blocks = {name: BLOCK.match(name) for name in dict.fromkeys(table["name"])}
    inside = {name: short(name).split(".")[0] for name, block in blocks.items() if block}
    if len(set(inside.values())) > 3:
        inside = dict.fromkeys(inside, "blocks")
    return table.assign(group=[inside.get(n, k) for n, k in zip(table["name"], table["kind"], strict=True)])


def long(tensors: pd.DataFrame, quantities: Mapping[str, object], positive: bool = False) -> pd.DataFrame:
    """Return one row a quantity, tensor, step and run: finite, and above zero if `positive` (for log axes)."""
    keep = ["rule", "name", "group", "kind", "step", "size", "seed", "fan_in", "fan_out"]
    parts = [tensors[keep].assign(quantity=q, value=np.asarray(v, float)) for q, v in quantities.items()]
    table = pd.concat(parts, ignore_index=True)
    value = table["value"].to_numpy(float)
    return rows(table, np.isfinite(value) & ((value > 0) | (not positive)))


def fit(values: pd.DataFrame) -> pd.DataFrame:
    """Return slope, lo, hi of log2 value on log2 size per rule, quantity, tensor and step that all sizes of the rule have."""
    sizes = {rule: len(set(part)) for rule, part in values.groupby("rule", sort=False)["size"]}
    fitted = []
    for key, part in values.groupby([*LINE, "kind"], sort=False):
        if len(set(part["size"])) == sizes[key[0]]:  # pyright: ignore[reportIndexIssue]
            fitted.append((*key, *fit_slope(part["size"].to_numpy(float), part["value"].to_numpy(float))))  # pyright: ignore
    return pd.DataFrame(fitted, columns=[*LINE, "kind", "slope", "lo", "hi"])


def init_std(tensors: pd.DataFrame, norms: pd.DataFrame) -> np.ndarray:
    """Return the init std of each row's tensor in its run, NaN where step 0 was not probed."""
    zero = rows(norms, (norms["step"] == 0) & (norms["what"] == "feature"))
    rms = {} if "rms" not in zero else dict(zip(zip(zero["run_id"], zero["name"], strict=True), zero["rms"], strict=True))
    first = rows(tensors, tensors["step"] == 0)
    gaussian = first["weight_norm"] / (np.sqrt(first["fan_out"]) + np.sqrt(first["fan_in"]))
    std = dict(zip(zip(first["run_id"], first["name"], strict=True), gaussian, strict=True))
    found = []
    for run, name, kind in tensors[["run_id", "name", "kind"]].to_numpy():
        module = name.removesuffix(".weight")
        found.append(rms.get((run, module), np.nan) if kind == "embedding" else std.get((run, name), np.nan))
    return np.array(found, float)


def judged_steps(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return {v.rule: v.features.step for v in verdicts if v.features is not None and v.features.step is not None}


def last_common(fitted: pd.DataFrame) -> int:
    """Return the last step at which a slope was fitted for every tensor that has one at all."""
    per_step = fitted.groupby("step")["name"].nunique()
    return int(max(step for step, n in per_step.items() if n == per_step.max()))  # pyright: ignore


def _names(verdicts: Sequence[Verdict], values: pd.DataFrame) -> list[str]:
    checks = [v.features for v in verdicts if v.features is not None]
    known = set(values["name"])
    return [n for n in representative(checks, "update", most=10) if n in known]


def _said(steps: Mapping[str, int]) -> str:
    return "/".join(dict.fromkeys(map(str, steps.values())))


DIAGNOSTICS: dict[str, Callable[[pd.DataFrame, pd.DataFrame, Sequence[Verdict]], Drawing]] = {
    "spectral_norms": spectral_norms,
    "stable_rank": stable_rank,
    "alignment": alignment,
    "trust_ratios": trust_ratios,
    "clip_fraction": clip_fraction,
    "shampoo_spectra": shampoo_spectra,
}
