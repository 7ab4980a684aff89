"""Figures of what the probe measures of single tensors, in the layouts of tensor_panels.py.

Each answers one question about why an lr transfers or drifts, and is None where the runs did not record what it needs.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_mup.analysis.feature_check import HIDDEN, LIMITS, OUTER, classes, first_and_last, representative
from spectral_mup.analysis.figures import FIGURES, SweepData
from spectral_mup.analysis.figures import tensor_panels as panels
from spectral_mup.analysis.figures.style import Looks, slashed, step_at, steps_on_x
from spectral_mup.analysis.figures.tensor_panels import Cell, Strip
from spectral_mup.analysis.stats import NAN, fit_slopes, rows
from spectral_mup.analysis.verdict import by_rule

Drawing = tuple[Figure, pd.DataFrame] | None
Slopes = dict[tuple[str, str], float]  # by (rule, tensor)
ALL = "all tensors"
NATURAL = r"$\sqrt{n_{out}/n_{in}}$"
SIDES = {"largest": ("λmax", "log"), "median": ("median λ / λmax", "log"), "rank": ("effective rank", "log")}
SIDES |= {"damped": ("share damped", "share")}  # of Shampoo's L and R: title, kind of axis
SLOPE_KEYS = ["rule", "quantity", "name", "step"]  # what a slope is fitted for, over the sizes
# columns of the norms that say of what and when a row is, or that enter other quantities: `quantities` does not draw them
CONTEXT = """run_id rule width depth log2_lr seed step name what kind fan_in fan_out multiplier lr rms delta_rms grad_norm
weight_norm update_norm""".split()


class SlopePage:
    """A page of single tensors against the size, a row of panels per quantity, with their slopes beside it."""

    def __init__(self, data: SweepData, values: pd.DataFrame) -> None:
        sizes = {rule: len(set(part)) for rule, part in values.groupby("rule")["size"]}
        fitted = fit_slopes(values, [*SLOPE_KEYS, "kind"])
        self.data, self.values = data, values
        self.slopes = rows(fitted, fitted.pop("n_sizes") == [sizes[rule] for rule in fitted["rule"]])  # those all sizes have
        steepest, recorded = representative(list(data.checks.values()), "update", most=10), set(values["name"])
        self.names = [name for name in steepest if name in recorded]

    def strip(self, quantity: str, label: str, steps: dict[str, int], dotted: Slopes, expected: Slopes, judged_by="") -> Strip:
        """Make the strip of a quantity of every rule against the size at the rule's step, and in the table its slopes.

        A slope is bold if all the interval of `judged_by` is further from the `expected` one (default 0) than the kind's limit.
        """

        def draw(ax: Axes, rule: str, look: Looks, inches: float) -> panels.Numbers:
            at, slopes = (rows(t, (t["rule"] == rule) & (t["step"] == steps.get(rule))) for t in (self.values, self.slopes))
            lines = {n: dotted.get((rule, n), NAN) for n in look}
            panels.sizes_panel(ax, rows(at, at["quantity"] == quantity), look, lines, self.data, inches)
            judge, outside = rows(slopes, slopes["quantity"] == (judged_by or quantity)), {}
            for name, kind, lo, hi in judge[["name", "kind", "lo", "hi"]].to_numpy():
                flat = expected.get((rule, name), 0.0)
                outside[name] = bool(lo - flat > LIMITS[kind] or hi - flat < -LIMITS[kind])
            own = dict(rows(slopes, slopes["quantity"] == quantity)[["name", "slope"]].to_numpy())
            return {name: (own.get(name, NAN), outside.get(name, False)) for name in look}

        return Strip(quantity, label, self.names, "slope in", draw)

    def drawing(self, strips: Sequence[Strip], note: str) -> Drawing:
        rules = list(dict.fromkeys(self.values["rule"]))
        text = f"{panels.sweep_note(self.data)} Lines: mean over seeds (faint: single seeds), relative to the base. Blocks: "
        text += f"the last one. {note}"
        fig = panels.strip_page(rules, strips, text + panels.left_out(self.data, rules), 1.75, self.data.printing)
        values, slopes = (rows(t, t["name"].isin(self.names)) for t in (self.values, self.slopes))
        drawn = values.merge(slopes.drop(columns="kind"), on=SLOPE_KEYS, how="left")
        return fig, drawn.reindex(columns=["rule", "name", *panels.SLOPE_COLUMNS])


def spectral_norms(data: SweepData) -> Drawing:
    """Draw spectral norms of weights and updates, times multiplier/√(fan_out/fan_in).

    They are flat in width under the spectral condition.
    """
    tensors = tensor_rows(data, ["weight_norm", "update_norm"])
    natural = tensors["multiplier"] * np.sqrt(tensors["fan_in"] / tensors["fan_out"])
    tensors = tensors.assign(**{"W": natural * tensors["weight_norm"], "ΔW": natural * tensors["update_norm"]})
    values = long(tensors, ["W", "ΔW"], positive=True)
    page, steps = SlopePage(data, values), data.judged_steps
    if {"W", "ΔW"} - set(values["quantity"]) or not page.names:
        return None
    weights = rows(page.slopes, page.slopes["quantity"] == "W")
    last = {}  # of each rule the last step at which a slope was fitted for every tensor that has one at all
    for rule, part in weights.groupby("rule", sort=False):
        fitted = part.groupby("step")["name"].nunique()
        last[str(rule)] = max(zip(fitted, fitted.index, strict=True))[1]
    at_init = rows(weights, (weights["step"] == 0) & (weights["kind"] == "embedding"))
    flat = dict.fromkeys(zip(page.slopes["rule"], page.slopes["name"], strict=True), 0.0)
    of_weights = flat | {(rule, name): slope for rule, name, slope in at_init[["rule", "name", "slope"]].to_numpy()}
    note = f"Weights at step {slashed(last.values())}, updates at step {slashed(steps.values())}; c: forward multiplier. "
    note += "The spectral condition wants constants; of W of an embedding, for the slope at init (dotted), as a table of N "
    note += "rows has ‖W‖₂ ∝ √N + √width. Right: fitted slopes, bold where the whole interval is further than "
    note += f"{HIDDEN:.2f} (embedding, readout {OUTER:.2f}) from that."
    top = page.strip("W", rf"c$\|W\|_2$ / {NATURAL}, relative", last, of_weights, of_weights)
    bottom = page.strip("ΔW", rf"c$\|\Delta W\|_2$ / {NATURAL}, relative", steps, flat, flat)
    return page.drawing([top, bottom], note)


def trust_ratios(data: SweepData) -> Drawing:
    """Draw LAMB's ‖W‖_F/‖u‖_F of every tensor against width, and over the steps how far its slope is from the init std's.

    The std is measured at step 0: the RMS of an embedding's output; else ‖W‖₂/(√fan_out + √fan_in), that of a Gaussian matrix.
    """
    tensors = tensor_rows(data, ["trust_ratio", "weight_norm"])
    tensors = rows(tensors, np.isfinite(tensors["trust_ratio"]) | (tensors["step"] == 0))
    tensors = first_and_last(tensors) if data.axis == "depth" else tensors
    std = init_std(tensors, data.norms)
    over = tensors["trust_ratio"].to_numpy(float) / np.where(std > 0, std, np.nan)
    tensors = tensors.assign(**{"trust": tensors["trust_ratio"], "over std": over})
    page, steps = SlopePage(data, long(tensors, ["trust", "over std"], positive=True)), data.judged_steps
    if not page.names:
        return None
    judged = rows(page.slopes, page.slopes["step"].to_numpy() == [steps.get(rule, -1) for rule in page.slopes["rule"]])
    at = {(r, q, n): s for r, q, n, s in judged[["rule", "quantity", "name", "slope"]].to_numpy()}
    expected = {(r, n): at.get((r, "trust", n), NAN) - at.get((r, "over std", n), NAN) for r in steps for n in page.names}

    def over_steps(ax: Axes, rule: str, look: Looks, inches: float) -> panels.Numbers:
        s = page.slopes
        own = rows(s, (s["rule"] == rule) & (s["quantity"] == "over std") & (s["step"] > 0))
        for name, style in look.items():
            line = rows(own, own["name"] == name).sort_values("step")
            ax.plot(step_at(line["step"]), line["slope"], **style)
        ax.axhspan(-HIDDEN, HIDDEN, color="0.88", lw=0, zorder=0)
        ax.axhline(0, color="0.6", lw=0.6, ls=":", zorder=0)
        ax.axvline(float(step_at(steps[rule])), color="0.6", lw=0.7, ls="--", zorder=0)
        lo, hi = ax.get_ylim()
        ax.set_ylim(min(lo, -0.6), max(hi, 0.6))
        steps_on_x(ax, sorted(set(own["step"])), inches)
        return {n: (expected.get((rule, n), NAN), False) for n in look}

    note = f"Top: trust ratio ‖W‖_F/‖u‖_F at step {slashed(steps.values())}; dotted: slope of the tensor's init std, to which "
    note += (
        "the ratio is proportional while weights and directions keep their shape. Bottom: distance of the fitted slope from it "
    )
    note += "over the steps; grey: "
    note += f"±{HIDDEN:.2f}. Right: fitted slopes (bold: the interval of the distance lies outside ±{HIDDEN:.2f}, or "
    note += f"±{OUTER:.2f} of embedding and readout), and slopes of the init std measured at step 0."
    ratios = page.strip("trust", "trust ratio, relative", steps, expected, {}, judged_by="over std")
    distances = Strip("over std", "slope minus init std's", page.names, "init std", over_steps)
    return page.drawing([ratios, distances], note)


def stable_rank(data: SweepData) -> Drawing:
    """Draw ‖·‖_F²/‖·‖₂² of updates and gradients over the steps.

    Where it grows with width, an entrywise size law asks too much.
    """
    quantities = {"update_stable_rank": "ΔW", "grad_stable_rank": "G"}
    note = "G: the gradient. Stable rank: squared Frobenius norm over squared spectral norm."
    return _by_group(data, quantities, "stable rank", note, "log")


def clip_fraction(data: SweepData) -> Drawing:
    """Draw the share of entries that Sophia clips, over the steps, a panel per rule.

    Where it falls, directions are no longer signs.
    """
    values = long(tensor_rows(data, ["clip_fraction"]), ["clip_fraction"]).assign(group=ALL)
    cells = [
        Cell(rule, ALL, ("clip_fraction",), data.printing.name(rule), "share clipped", "share") for rule in rules_of(values)
    ]
    note = "Rows of a table that no token has hit yet stand still and count as not clipped."
    return panels.against_steps(data, values, [cells], {"clip_fraction": "clipped"}, note)


def alignment(data: SweepData) -> Drawing:
    """Draw ‖W·x‖/(‖W‖₂·‖x‖) and the same of ΔW over the steps: 1 where the inputs lie along the top singular direction."""
    quantities = {"weight_alignment": "W", "update_alignment": "ΔW"}
    note = "Alignment: ‖Wx‖/(‖W‖₂‖x‖), the same for ΔW, with the layer's inputs x on the probe batch. Dotted: a Gaussian W "
    note += "that knows nothing of x, √fan_out/(√fan_out + √fan_in)."
    return _by_group(data, quantities, "alignment", note, "share", chance="weight_alignment")


def shampoo_spectra(data: SweepData) -> Drawing:
    """Draw eigenvalues of Shampoo's L (left) and R (right) over the steps: largest, median, effective rank, share damped."""
    quantities = {f"{side}_{what}": letter for what in SIDES for side, letter in (("left", "L"), ("right", "R"))}
    values = long(tensor_rows(data, list(quantities)), list(quantities))
    linear = values["quantity"].str.endswith("_damped").to_numpy(bool)
    values = rows(values, linear | (values["value"] > 0))
    values = values.assign(group=ALL)
    cells = [
        [Cell(rule, ALL, (f"left_{w}", f"right_{w}"), t, data.printing.name(rule), kind, t) for w, (t, kind) in SIDES.items()]
        for rule in rules_of(values)
    ]
    note = "λ: eigenvalues of L and R, the averages of GGᵀ and GᵀG (a median of 0 is left out); effective rank: Σλ/λmax; "
    note += "damped: λ below the damping."
    return panels.against_steps(data, values, cells, quantities, note)


def quantities(data: SweepData) -> Drawing:
    """Draw every recorded quantity that no other figure draws: a row of panels per rule and quantity, a column per group."""
    known = {*CONTEXT, *(need for figure in FIGURES.values() for need in figure.needs)}
    names = {str(q): str(q) for q in data.norms.columns if q not in known and data.has(str(q))}
    values = long(tensor_rows(data, list(names), what=("tensor", "feature")), list(names))
    kinds = {str(quantity): _kind(part.to_numpy(float)) for quantity, part in values.groupby("quantity", sort=False)["value"]}
    cells = [
        [Cell(rule, group, (q,), data.printing.name(group), _row(data, rule, q.replace("_", " ")), kind, q) for group in groups]
        for groups in [dict.fromkeys(values["group"])]
        for rule in rules_of(values)
        for q, kind in kinds.items()
    ]
    return panels.against_steps(data, values, cells, names, "")


def _kind(value: np.ndarray) -> str:
    if ((value >= 0) & (value <= 1)).all():
        return "share"
    return "log" if (value > 0).all() else "linear"


def _row(data: SweepData, rule: str, label: str) -> str:
    """Return the label of a row of panels."""
    return f"{textwrap.fill(data.printing.name(rule), 22)}\n{textwrap.fill(label, 22)}"


def rules_of(values: pd.DataFrame) -> list[str]:
    """Return the rules of a table, in order."""
    return list(dict.fromkeys(values["rule"]))


def _by_group(data: SweepData, quantities: Mapping[str, str], label: str, note: str, kind: str, chance: str = "") -> Drawing:
    """Draw quantities over the steps, a row of panels per rule and a column per group of tensors."""
    values = long(tensor_rows(data, list(quantities)), list(quantities), positive=kind == "log")
    if set(quantities) - set(values["quantity"].unique()):
        return None
    cells = [
        [
            Cell(rule, group, tuple(quantities), data.printing.name(group), _row(data, rule, label), kind)
            for group in values["group"].unique()
        ]
        for rule in rules_of(values)
    ]
    return panels.against_steps(data, values, cells, quantities, note, chance)


def tensor_rows(data: SweepData, columns: list[str], what: Sequence[str] = ("tensor",)) -> pd.DataFrame:
    """Return rows at each rule's lr of the feature check, with rule, size, group, and `columns` (NaN where absent).

    group: the module of a block that holds the tensor ('attention', 'mlp'), or its kind outside blocks. `what`: 'tensor' rows,
    'feature' rows of modules, or both.
    """
    norms, parts = data.norms, by_rule(data.points)
    shown = rows(norms, norms["what"].isin(list(what)) & norms["kind"].isin(list(LIMITS)))
    tables = [
        rows(shown, shown["run_id"].isin(list(parts[rule]["run_id"])) & (shown["log2_lr"] == check.log2_lr)).assign(rule=rule)
        for rule, check in data.checks.items()
    ]
    numbers = [*columns, "multiplier", "fan_in", "fan_out"]
    names = ["rule", "run_id", "name", "kind", "step", "size", "seed", *numbers]
    table = pd.concat(tables, ignore_index=True).rename(columns={data.axis: "size"})
    table = table.reindex(columns=names).astype(dict.fromkeys(numbers, float))
    of_name = classes(table["name"], table["kind"])
    return table.assign(group=[of_name[name] for name in table["name"]])


def long(tensors: pd.DataFrame, quantities: list[str], positive: bool = False) -> pd.DataFrame:
    """Make one row per quantity, tensor, step and run: finite, and above zero if `positive` (for log axes)."""
    keep = ["rule", "name", "group", "kind", "step", "size", "seed", "fan_in", "fan_out"]
    table = tensors.melt(keep, quantities, "quantity", "value")
    value = table["value"].to_numpy(float)
    return rows(table, np.isfinite(value) & ((value > 0) | (not positive)))


def init_std(tensors: pd.DataFrame, norms: pd.DataFrame) -> np.ndarray:
    """Return the init std of each row's tensor in its run, NaN where step 0 was not probed."""
    zero = rows(norms, (norms["step"] == 0) & (norms["what"] == "feature")).reindex(columns=["run_id", "name", "rms"])
    rms = zero.set_index(["run_id", "name"])["rms"].to_dict()
    first = rows(tensors, tensors["step"] == 0).set_index(["run_id", "name"])
    std = (first["weight_norm"] / (np.sqrt(first["fan_out"]) + np.sqrt(first["fan_in"]))).to_dict()
    of_rows = [
        rms.get((run, name.removesuffix(".weight")), np.nan) if kind == "embedding" else std.get((run, name), np.nan)
        for run, name, kind in tensors[["run_id", "name", "kind"]].to_numpy()
    ]
    return np.array(of_rows, float)
