"""The feature-norm (coordinate) check: do features and updates keep their size as the model grows?

A passed check does not prove that the lr transfers, as users of microsoft/mup found; a failed one says why not.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.stats import fit_slopes, rows

HIDDEN, OUTER = 0.15, 0.10  # |slope| allowed of hidden modules, and of embedding and readout
LIMITS = {"hidden": HIDDEN, "embedding": OUTER, "readout": OUTER}
LAST_STEP = 20  # later steps mix feature learning with what the data did
SIGN = 0.9  # share of clipped entries from which a direction is as good as a sign
FEW_SIZES, FEW_SEEDS = 4, 3  # below either, a check is only indicative

BLOCK = re.compile(r"^(.*?)\.?\b(\d+|first|last)(?:\.(.*))?$")  # 'blocks.3.attn.q' → 'blocks', '3', 'attn.q'


@dataclass(frozen=True, eq=False)
class FeatureCheck:
    """Slopes of feature and update norms against size at one lr.

    `passed` judges the features at `step`; None is 'not decided', with the reason in `summary`. `table` has one row per
    (quantity, name, step): kind, slope, lo, hi, limit, verdict, n_sizes, n_seeds, judged; `values` the (quantity, name, kind,
    step, size, seed, value) rows they were fitted to.
    """

    passed: bool | None
    summary: str
    failed: tuple[str, ...]  # modules whose features grow or shrink
    failed_updates: tuple[str, ...]  # tensors whose updates do: a diagnosis, not part of `passed`
    indicative: bool
    log2_lr: float | None
    step: int | None
    table: pd.DataFrame = field(repr=False)
    values: pd.DataFrame = field(repr=False)
    remark: str = ""  # what the optimizer's own record says


def check_features(norms: pd.DataFrame, near: float, *, axis: str = "width", sizes: list[int] | None = None) -> FeatureCheck:
    """Fit d log2(norm) / d log2(size) per module, tensor and step, at the common lr nearest `near`.

    Ordinary least squares over every (size, seed); 95 % interval slope ± t(0.975, N-2)·se. A module passes if abs(slope) ≤ 0.15
    (hidden) or 0.10 (embedding, readout) and the interval is at most twice the limit wide, fails if the whole interval lies
    outside, and else is undecided; judged at the last step ≤ 20 that all sizes probed, the other steps are in the table. A run
    that diverged has rows up to where it did. Zeros (a hidden feature behind a zero readout has not moved at step 1) leave a
    slope undefined. `sizes` are those that the sweep declared; where they share no lr, nothing is decided. Over depth the first
    and the last block of each model are compared (`first_and_last`), and updates inside blocks are multiplied by the depth
    (`norm_values`). Features of the first block are in the table but not judged: its MLP sees its own attention, a share 1/L of
    all branches.
    """
    values = norm_values(norms, axis)
    sizes = sorted({int(s) for s in (values["size"] if sizes is None else sizes)})
    cells = shared_cells(values, sizes)
    reasons = {"no norms were recorded": not len(early_features(values)), f"only one {axis}": len(sizes) < 2}
    reasons |= {f"no lr has norms of steps 1 to {LAST_STEP} at every {axis}": not cells}
    if why := next((reason for reason, holds in reasons.items() if holds), ""):
        none = values.iloc[:0]
        return FeatureCheck(None, f"not decided: {why}", (), (), True, None, None, _table(none), none)

    log2_lr = min((lr for lr, _ in cells), key=lambda lr: (abs(lr - near), lr))
    step = max(step for lr, step in cells if lr == log2_lr)
    values = rows(values, (values["log2_lr"] == log2_lr) & np.isin(values["size"], sizes))
    table = _table(values)
    table["judged"] = (table["step"] == step) & (table["n_sizes"] == len(sizes))  # not blocks that only deep models have
    table["judged"] &= (table["quantity"] == "update") | ~np.array([".first." in name for name in table["name"]], bool)
    judged = table.loc[table["judged"]].to_dict("records")
    features, updates = ([r for r in judged if r["quantity"] == quantity] for quantity in ("feature", "update"))
    failed, failed_updates = (tuple(r["name"] for r in of if r["verdict"] == "failed") for of in (features, updates))
    passed, summary = conclude(features, axis)
    indicative = len(sizes) < FEW_SIZES or max((r["n_seeds"] for r in features), default=0) < FEW_SEEDS
    summary += " (indicative)" * (indicative and passed is not None)
    remark = sign_descent(norms, log2_lr, axis)
    return FeatureCheck(passed, summary, failed, failed_updates, indicative, log2_lr, step, table, values, remark)


def sign_descent(norms: pd.DataFrame, log2_lr: float, axis: str) -> str:
    """Say of an optimizer that clips, as Sophia, where it clips nearly all entries at every size; else nothing."""
    if "clip_fraction" not in norms:
        return ""
    said = (norms["log2_lr"] == log2_lr) & norms["clip_fraction"].notna()  # features have none, nor have tensors before a step
    of_sizes = rows(norms, said).groupby(axis)["clip_fraction"]
    least = min((float(part.to_numpy(float).mean()) for _, part in of_sizes), default=0.0)
    return f"share clipped {least:.2f} or more at every {axis}: a step is that of sign descent" if least >= SIGN else ""


def early_features(values: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of features up to LAST_STEP."""
    return rows(values, (values["quantity"] == "feature") & (values["step"] <= LAST_STEP))


def shared_cells(values: pd.DataFrame, sizes: Sequence[int]) -> list[tuple[float, int]]:
    """Return each (log2 lr, step) at which features can be judged: up to LAST_STEP, and probed at all `sizes`."""
    seen = early_features(values).groupby(["log2_lr", "step"])["size"]
    return [(float(lr), int(step)) for (lr, step), here in seen if set(here) >= set(sizes)]  # pyright: ignore


def conclude(features: Sequence[dict[str, Any]], axis: str) -> tuple[bool | None, str]:
    """Return whether all judged features passed, and a summary that names those that did not, the steepest first."""
    steepest = sorted((r for r in features if np.isfinite(r["slope"])), key=lambda r: -abs(r["slope"]))
    if failed := [f"{r['name']} ({r['slope']:+.2f})" for r in steepest if r["verdict"] == "failed"]:
        return False, f"failed: {first_of(failed)}"
    if unclear := [f"{r['name']} ({_interval(r)})" for r in steepest if r["verdict"] == "undecided"]:
        passed = sum(r["verdict"] == "passed" for r in features)
        counted = f"{passed} of {len(features)} modules passed, {len(unclear)} undecided" if passed else f"all {len(unclear)}"
        return None, f"undecided: {counted} ({first_of(unclear, 3)}); more seeds or sizes would decide"
    undefined = [r["name"] for r in features if not np.isfinite(r["slope"])]
    if undefined or not features:
        return None, "not decided: no change to measure in " + (first_of(undefined) or f"modules that every {axis} has")
    return True, "passed"


def norm_values(norms: pd.DataFrame, axis: str = "width") -> pd.DataFrame:
    """Return long rows (quantity, name, kind, log2_lr, step, size, seed, value): finite, steps from 1 on.

    Quantities:
        feature: RMS of the change of a module's output since step 0 (delta_rms).
        update: Spectral norm of the update in its natural units, multiplier · ‖ΔW‖₂ · sqrt(fan_in / fan_out).

    The updates of L residual branches add up, so that those of one tensor in them must shrink as 1/L, whatever power of L its
    multiplier has (arXiv 2505.01618, 2310.02244): over depth they are multiplied by L, and flat is right for all.
    """
    columns = ["quantity", "name", "kind", "log2_lr", "step", "size", "seed", "value"]
    if norms.empty:
        return pd.DataFrame(columns=columns)
    numbers = norms.reindex(columns=["delta_rms", "multiplier", "update_norm", "fan_in", "fan_out"]).astype(float)
    feature = (norms["what"] == "feature").to_numpy(bool)
    update = numbers["multiplier"] * numbers["update_norm"] * np.sqrt(numbers["fan_in"] / numbers["fan_out"])
    value = np.where(feature, numbers["delta_rms"], update)
    values = norms.assign(quantity=np.where(feature, "feature", "update"), size=norms[axis], value=value)
    values = values.reindex(columns=columns)
    if axis == "depth":
        inside = np.array([BLOCK.match(n) is not None for n in values["name"]], bool) & ~feature
        values = first_and_last(values.assign(value=np.where(inside, values["size"], 1) * value))
    return rows(values, np.isin(values["kind"], list(LIMITS)) & (values["step"] >= 1) & np.isfinite(values["value"]))


def first_and_last(table: pd.DataFrame) -> pd.DataFrame:
    """Rename the first and last block of each model ('blocks.0.mlp.up' → 'blocks.first.mlp.up') and drop those between.

    `table` has name and size (a depth); a model with a single block yields both rows. The output of the first block itself is
    dropped: it is the stream after a share 1/L of the branches, at another place in every depth.
    """
    matches = {name: block for name in set(table["name"]) if (block := BLOCK.match(name))}
    last: dict[tuple[str, int], int] = {}
    for name, size in zip(table["name"], table["size"], strict=True):
        if block := matches.get(name):
            last[block[1], size] = max(last.get((block[1], size), 0), int(block[2]))

    def names(name: str, size: int) -> list[str]:
        if not (block := matches.get(name)):
            return [name]
        ends = {"first": block[2] == "0" and block[3] is not None, "last": int(block[2]) == last[block[1], size]}
        return [f"{name[: block.start(2)]}{end}{name[block.end(2) :]}" for end, here in ends.items() if here]

    named = table.assign(name=list(map(names, table["name"], table["size"])))
    return named.explode("name").dropna(subset="name").reset_index(drop=True)


def relative(check: FeatureCheck, quantity: str, name: str) -> np.ndarray:
    """Return rows (size, seed, value, log2 of value over its mean at the smallest size) at the judged step."""
    v = check.values
    at = rows(v, (v["quantity"] == quantity) & (v["name"] == name) & (v["step"] == check.step) & (v["value"] > 0))
    log2 = np.log2(at["value"].astype(float))
    at = at[["size", "seed", "value"]].assign(log2=log2 - log2[at["size"] == at["size"].min()].mean())
    return at.to_numpy(float)


def representative(checks: Sequence[FeatureCheck], quantity: str, most: int) -> list[str]:
    """Name what lies outside blocks and in the last block; of more than `most` names, the steepest."""
    table = pd.concat([check.table for check in checks])
    table = rows(table, table["judged"] & (table["quantity"] == quantity))
    slope: dict[str, float] = {}
    for name, value in table[["name", "slope"]].to_numpy():
        slope[name] = max(slope.get(name, 0.0), abs(value) if np.isfinite(value) else 0.0)
    last: dict[tuple, tuple[float, str]] = {}
    for name in slope:
        block = BLOCK.match(name)
        key = (block[1], block[3]) if block else (name,)
        place = float({"first": "-1", "last": "inf"}.get(block[2], block[2])) if block else 0.0
        last[key] = max(last.get(key, (-2.0, "")), (place, name))
    names = [name for _, name in last.values()]
    steepest = sorted(names, key=lambda n: -slope[n])[:most]
    return [n for n in names if n in steepest]


def classes(names: Iterable[str], kinds: Iterable[str]) -> dict[str, str]:
    """Return the class of every module or tensor: its module in a block, 'attention' or 'mlp', or its kind outside blocks.

    All in blocks are 'blocks' where there would be more than three classes of them.
    """
    of_name = dict(zip(names, kinds, strict=True))
    inside = {name: short(name).split(".")[0] for name in of_name if BLOCK.match(name)}
    return of_name | (inside if len(set(inside.values())) <= 3 else dict.fromkeys(inside, "blocks"))


def by_class(check: FeatureCheck) -> FeatureCheck:
    """Return the check of whole classes of modules: geometric means over their modules, with slopes of their own.

    Over depth, of the last block. The residual stream after a block stands for no class of modules, and is left out.
    """
    v = rows(check.values, (check.values["value"] > 0) & ~np.array([".first." in name for name in check.values["name"]], bool))
    of_name = classes(v["name"], v["kind"])
    v = v.assign(name=[of_name[name] for name in v["name"]], value=np.log2(v["value"].astype(float)))
    v = rows(v, (v["name"] != "block") | (len({*of_name.values()} - {"embedding", "readout"}) < 2))
    keys = ["quantity", "name", "kind", "log2_lr", "step", "size", "seed"]
    values = pd.DataFrame(v.groupby(keys, sort=False, as_index=False)["value"].mean())
    values["value"] = np.exp2(values["value"])
    values = values.sort_values("kind", key=lambda kind: kind.map({"embedding": 0, "hidden": 1, "readout": 2}), kind="stable")
    table = _table(values).assign(judged=lambda t: t["step"] == check.step)
    return replace(check, table=table, values=values)


def _interval(row: dict[str, Any]) -> str:
    interval = f" [{row['lo']:+.2f}, {row['hi']:+.2f}]" if np.isfinite(row["lo"]) else ", no interval"
    return f"{row['slope']:+.2f}{interval}"


def first_of(names: Sequence[str], most: int = 5) -> str:
    """List names in one line, at most `most` of them and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def short(name: str) -> str:
    """Strip a name of its block and of 'weight': 'blocks.3.attn.q.weight' → 'attn.q'."""
    block = BLOCK.match(name)
    return re.sub(r"\.?weight$", "", (block[3] or "block") if block else name) or name


def module_verdicts(table: pd.DataFrame) -> np.ndarray:
    """Judge every row by its slope, lo, hi and limit: 'passed', 'failed' or 'undecided'."""
    limit = table["limit"]
    inside = (table["slope"].abs() <= limit) & (table["hi"] - table["lo"] <= 2 * limit)
    outside = (table["lo"] > limit) | (table["hi"] < -limit)
    return np.where(inside, "passed", np.where(outside, "failed", "undecided"))


def _table(values: pd.DataFrame) -> pd.DataFrame:
    """Fit one line per (quantity, name, step), in the order in which the names were recorded."""
    keys = ["quantity", "name", "kind", "step"]
    table = fit_slopes(values, keys)
    table["limit"] = np.array([LIMITS[kind] for kind in table["kind"]], float)
    n_sizes = table.pop("n_sizes")
    n_seeds = [len(set(part)) for _, part in values.groupby(keys, sort=False)["seed"]]
    return table.assign(verdict=module_verdicts(table), n_sizes=n_sizes, n_seeds=n_seeds, judged=False)
