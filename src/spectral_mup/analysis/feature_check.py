"""The feature-norm (coordinate) check: do features and updates keep their size as the model grows?

A passed check does not prove that the lr transfers, as users of microsoft/mup found; a failed one says why not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.stats import fit_slopes, rows

LIMITS = {"hidden": 0.15, "embedding": 0.10, "readout": 0.10}  # |slope| allowed, by kind
LAST_STEP = 20  # later steps mix feature learning with what the data did
FEW_SIZES, FEW_SEEDS = 4, 3  # below either, a check is only indicative

BLOCK = re.compile(r"^(.*?)\.?\b(\d+|first|last)(?:\.(.*))?$")  # 'blocks.3.attn.q' → 'blocks', '3', 'attn.q'


@dataclass(frozen=True, eq=False)
class FeatureCheck:
    """Slopes of feature and update norms against size at one lr.

    `passed` judges the features at `step`; None is 'not decided', with the reason in `summary`.
    `table` has one row per (quantity, name, step): kind, slope, lo, hi, limit, verdict, n_sizes,
    n_seeds, judged; `values` the (quantity, name, kind, step, size, seed, value) rows they were fitted to.
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


def check_features(
    norms: pd.DataFrame, near: float, *, axis: str = "width", sizes: Sequence[int] | None = None
) -> FeatureCheck:
    """Fit d log2(norm) / d log2(size) per module, tensor and step, at the common lr nearest `near`.

    Ordinary least squares over every (size, seed); 95 % interval slope ± t(0.975, N-2)·se. A module passes if
    abs(slope) ≤ 0.15 (hidden) or 0.10 (embedding, readout), fails if its whole interval lies outside, and is
    undecided if only its estimate does, judged at the last step ≤ 20 that all sizes probed; the other steps are in
    the table. A run that diverged has rows up to where it did. Zeros (a hidden feature behind a zero readout has not
    moved at step 1) leave a slope undefined. `sizes` are those that the sweep declared; where they share no lr,
    nothing is decided. Over depth the first and the last block of each model are compared (`first_and_last`), and
    updates inside blocks are multiplied by the depth (`norm_values`). Features of the first block are in the table
    but not judged: its MLP sees its own attention, a share 1/L of all branches.
    """
    values = norm_values(norms, axis)
    sizes = sorted({int(s) for s in (values["size"] if sizes is None else sizes)})
    early = rows(values, (values["quantity"] == "feature") & (values["step"] <= LAST_STEP))
    cells = _common_cells(early, sizes)
    if len(sizes) < 2 or not cells:
        why = f"no lr has norms of steps 1 to {LAST_STEP} at every {axis}"
        why = "no norms were recorded" if early.empty else f"only one {axis}" if len(sizes) < 2 else why
        none = values.iloc[:0]
        return FeatureCheck(None, f"not decided: {why}", (), (), True, None, None, _table(none), none)

    log2_lr = min((lr for lr, _ in cells), key=lambda lr: (abs(lr - near), lr))
    step = max(step for lr, step in cells if lr == log2_lr)
    values = rows(values, (values["log2_lr"] == log2_lr) & np.isin(values["size"], sizes))
    table = _table(values)
    table["judged"] = (table["step"] == step) & (table["n_sizes"] == len(sizes))  # not blocks that only deep models have
    table["judged"] &= (table["quantity"] == "update") | ~np.array([".first." in name for name in table["name"]], bool)
    judged = table.loc[table["judged"]].to_dict("records")
    features = [r for r in judged if r["quantity"] == "feature"]
    passed, summary = _conclude(features, axis)
    indicative = len(sizes) < FEW_SIZES or max((r["n_seeds"] for r in features), default=0) < FEW_SEEDS
    return FeatureCheck(
        passed=passed,
        summary=summary + " (indicative)" * (indicative and passed is not None),
        failed=tuple(r["name"] for r in features if r["verdict"] == "failed"),
        failed_updates=tuple(r["name"] for r in judged if r["quantity"] == "update" and r["verdict"] == "failed"),
        indicative=indicative,
        log2_lr=log2_lr,
        step=step,
        table=table,
        values=values,
    )


def _common_cells(early: pd.DataFrame, sizes: Sequence[int]) -> list[tuple[float, int]]:
    """The (log2 lr, step) at which every size has features."""
    seen: dict[tuple[float, int], set[int]] = {}
    for lr, step, size in early[["log2_lr", "step", "size"]].drop_duplicates().to_numpy(float):
        seen.setdefault((float(lr), int(step)), set()).add(int(size))
    return [cell for cell, present in seen.items() if present >= set(sizes)]


def _conclude(features: Sequence[dict[str, Any]], axis: str) -> tuple[bool | None, str]:
    """Whether all judged features passed, and a summary that names those that did not, the steepest first."""
    steepest = sorted((r for r in features if np.isfinite(r["slope"])), key=lambda r: -abs(r["slope"]))
    failed = [f"{r['name']} ({r['slope']:+.2f})" for r in steepest if r["verdict"] == "failed"]
    if failed:
        return False, f"failed: {first_of(failed)}"
    unclear = [f"{r['name']} ({_interval(r)})" for r in steepest if r["verdict"] == "undecided"]
    if unclear:
        passed = sum(r["verdict"] == "passed" for r in features)
        summary = f"undecided: {passed} of {len(features)} modules passed, {len(unclear)} undecided ({first_of(unclear, 3)})"
        return None, f"{summary}; more seeds or sizes would decide"
    undefined = [r["name"] for r in features if not np.isfinite(r["slope"])]
    if undefined or not features:
        return None, "not decided: no change to measure in " + (first_of(undefined) or f"modules that every {axis} has")
    return True, "passed"


def norm_values(norms: pd.DataFrame, axis: str = "width") -> pd.DataFrame:
    """Long rows (quantity, name, kind, log2_lr, step, size, seed, value): finite, steps from 1 on.

    feature: RMS of the change of a module's output since step 0 (delta_rms)
    update:  spectral norm of the update in its natural units, multiplier · ‖ΔW‖₂ · sqrt(fan_in / fan_out)

    The updates of L residual branches add up, so that those of one tensor in them must shrink as 1/L, whatever power of L its
    multiplier has (2505.01618, 2310.02244): over depth they are multiplied by L, and flat is right for all.
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
    blocks, sizes = [BLOCK.match(name) for name in table["name"]], list(table["size"])
    last = last_blocks(blocks, sizes)
    at, names = [], []
    for i, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        ends = [""]
        if block:
            ends = ["first"] * (block[2] == "0" and block[3] is not None)
            ends += ["last"] * (int(block[2]) == last[block[1], size])
        at += [i] * len(ends)
        names += [".".join(filter(None, (block[1], end, block[3]))) if block else table["name"].iloc[i] for end in ends]
    return table.iloc[at].reset_index(drop=True).assign(name=names)


def last_blocks(blocks: Sequence[re.Match[str] | None], sizes: Sequence[int]) -> dict[tuple[str, int], int]:
    """{(name of the stack of blocks, size): index of its last block}, of matches of BLOCK."""
    last: dict[tuple[str, int], int] = {}
    for block, size in zip(blocks, sizes, strict=True):
        if block:
            last[block[1], size] = max(last.get((block[1], size), 0), int(block[2]))
    return last


def relative(check: FeatureCheck, quantity: str, name: str) -> np.ndarray:
    """Rows (size, seed, value, log2 of value over its mean at the smallest size) at the judged step."""
    at = check.values
    at = rows(at, (at["quantity"] == quantity) & (at["name"] == name) & (at["step"] == check.step))
    at = at[["size", "seed", "value"]].to_numpy(float)
    at = at[at[:, 2] > 0]
    if not len(at):
        return np.empty((0, 4))
    log2 = np.log2(at[:, 2])
    return np.column_stack([at, log2 - log2[at[:, 0] == at[:, 0].min()].mean()])


def representative(checks: Sequence[FeatureCheck], quantity: str, most: int) -> list[str]:
    """Names outside blocks and in the last block; of more than `most`, the steepest."""
    slope: dict[str, float] = {}
    for check in checks:
        table = rows(check.table, check.table["judged"] & (check.table["quantity"] == quantity))
        for name, value in table[["name", "slope"]].to_numpy():
            slope[name] = max(slope.get(name, 0.0), abs(value) if np.isfinite(value) else 0.0)
    last: dict[tuple, tuple[float, str]] = {}
    ends = {"first": -1.0, "last": float("inf")}
    for name in slope:
        block = BLOCK.match(name)
        key, index = ((block[1], block[3]), ends.get(block[2]) or float(block[2])) if block else ((name,), 0.0)
        last[key] = max(last.get(key, (-2.0, "")), (index, name))
    names = [name for _, name in last.values()]
    steepest = sorted(names, key=lambda n: -slope[n])[:most]
    return [n for n in names if n in steepest]


def _interval(row: dict[str, Any]) -> str:
    interval = f" [{row['lo']:+.2f}, {row['hi']:+.2f}]" if np.isfinite(row["lo"]) else ", no interval"
    return f"{row['slope']:+.2f}{interval}"


def first_of(names: Sequence[str], most: int = 5) -> str:
    """Names in one line, at most `most` of them and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def short(name: str) -> str:
    """Name without its block and without 'weight': 'blocks.3.attn.q.weight' → 'attn.q'."""
    block = BLOCK.match(name)
    return re.sub(r"\.?weight$", "", (block[3] or "block") if block else name) or name


def _table(values: pd.DataFrame) -> pd.DataFrame:
    """Fit one line per (quantity, name, step), in the order in which the names were recorded."""
    keys = ["quantity", "name", "kind", "step"]
    table = fit_slopes(values, keys)
    limit = np.array([LIMITS[kind] for kind in table["kind"]], float)
    outside = (table["lo"] > limit) | (table["hi"] < -limit)
    verdict = np.where(table["slope"].abs() <= limit, "passed", np.where(outside, "failed", "undecided"))
    n_sizes = table.pop("n_sizes")
    n_seeds = [len(set(part)) for _, part in values.groupby(keys, sort=False)["seed"]]
    return table.assign(limit=limit, verdict=verdict, n_sizes=n_sizes, n_seeds=n_seeds, judged=False)
