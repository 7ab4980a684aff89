"""From points and norms to the folder of a sweep's results, and to the table on the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.feature_check import check_features, first_of
from spectral_mup.analysis.optimum import Optimum, rows
from spectral_mup.analysis.verdict import Verdict, by_rule, judge

LARGER = {"width": "wider", "depth": "deeper"}
ORDER = ["family", "optimizer", "rule", "width", "depth", "log2_lr", "seed"]
# fields of Verdict, Optimum and FeatureCheck as verdicts.json has them
OF_VERDICT = "rule axis base verdict reason tolerance regret_limit basis bend larger_is_better counts".split()
OF_OPTIMUM = "log2_lr lo hi loss loss_sd grid_log2_lr grid_loss bracketed basis n_seeds n_points dof".split()
OF_FEATURES = "passed summary failed failed_updates indicative log2_lr step".split()


def report(
    points: pd.DataFrame,
    norms: pd.DataFrame,
    *,
    name: str,
    out_dir: Path | str,
    base_width: int | None = None,
    tolerance: float = 0.25,
    regret_limit: float = 0.005,
    command: str = "",
    commit: str = "",
    axis: str = "width",
    base_depth: int | None = None,
) -> list[Verdict]:
    """Judge a sweep, write everything that can be said about it into out_dir, and return the verdicts.

    curves.csv      every point                      optima.csv    one row a rule and size
    features.csv    slopes of all modules and steps  verdicts.json the rest, strict JSON (undefined numbers: null)
    lr_transfer, feature_norms, feature_steps        .pdf .svg .png, and .csv of what is drawn
    DIAGNOSTICS                                      the same of each whose columns the norms have
    layers                                           the same, over depth
    The same points and norms give the same bytes. Without norms there are no feature figures and no diagnostics.
    """
    if points.empty:
        raise ValueError(f"sweep {name} has no points: nothing to report")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rank = {rule: i for i, rule in enumerate(dict.fromkeys(points["rule"]))}  # rules stay in the sweep's order
    points = points.sort_values(ORDER, ignore_index=True, key=lambda c: c.map(rank) if c.name == "rule" else c)
    verdicts = judge_all(points, norms, axis, base_depth if axis == "depth" else base_width, tolerance, regret_limit)

    write_csv(points, out / "curves.csv")
    write_csv(pd.DataFrame([_optimum_row(v, size, o) for v in verdicts for size, o in v.optima.items()]), out / "optima.csv")
    tables = [v.features.table.assign(rule=v.rule) for v in verdicts if v.features is not None]
    write_csv(pd.concat(tables, ignore_index=True), out / "features.csv")
    said = {"name": name, "axis": axis, "command": command, "commit": commit, "run_ids": sorted(points["run_id"])}
    said["verdicts"] = [_verdict_row(v) for v in verdicts]
    (out / "verdicts.json").write_text(json.dumps(_strict(said), indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")

    # matplotlib takes a second to import: only where something is drawn
    from spectral_mup.analysis.figures.depth_layers import layers
    from spectral_mup.analysis.figures.diagnostics import DIAGNOSTICS
    from spectral_mup.analysis.figures.lr_transfer import FIGURES, save

    measured = any(v.features is not None and v.features.step is not None for v in verdicts)
    for stem, figure in FIGURES.items():
        if measured or not stem.startswith("feature"):
            drawing, data = figure(points, verdicts)
            save(drawing, out / stem, data)
    for stem, diagnostic in (DIAGNOSTICS | {"layers": layers}).items():
        drawn = diagnostic(points, norms, verdicts) if measured else None
        if drawn is not None:
            save(drawn[0], out / stem, drawn[1])
    return verdicts


def along(points: pd.DataFrame, axis: str, base: Mapping[str, int]) -> pd.DataFrame:
    """Return the points on which an axis is judged: those at the base of the other one."""
    other = "depth" if axis == "width" else "width"
    return rows(points, points[other] == base[other])


def report_joint(points: pd.DataFrame, base: Mapping[str, int], out_dir: Path | str) -> str:
    """Write joint_regret .csv .pdf .svg .png of a sweep over width and depth, and return its lines for the screen."""
    from spectral_mup.analysis.figures.style import save
    from spectral_mup.analysis.joint_regret import joint_figure, joint_regret, joint_text

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    table = joint_regret(points, base)
    save(joint_figure(points, table, base), out / "joint_regret", table)
    return joint_text(table)


def judge_all(
    points: pd.DataFrame, norms: pd.DataFrame, axis: str, base: int | None, tolerance: float, regret_limit: float
) -> list[Verdict]:
    """Return one verdict per rule with its feature check, made at the lr nearest the base's optimum."""
    verdicts = []
    for label, part in by_rule(points).items():
        v = judge(part, axis, base, tolerance, regret_limit, label=label)
        found = [o for o in (v.optima.get(v.base), *v.optima.values()) if o is not None]
        near = found[0].log2_lr if found else float(np.median(part["log2_lr"].to_numpy(float)))
        own = norms if norms.empty else rows(norms, norms["run_id"].isin(list(part["run_id"])))
        verdicts.append(replace(v, features=check_features(own, near, axis=axis, sizes=list(v.optima))))
    return verdicts


def text(verdicts: Sequence[Verdict]) -> str:
    """Return the table for the screen: plain text, one line a rule, then what the numbers alone do not say.

    log2 lr* is the optimum, '<' or '>' where it is not bracketed on that side; 'none' where nothing finished.
    """
    sizes = sorted({size for v in verdicts for size in v.optima})
    axis = verdicts[0].axis
    head = ["rule", f"over {axis}", "slope [95 %]", "regret", "interval of"]
    lines = [[*head, *(f"lr* {axis[0]}{s}" for s in sizes), *(f"loss {axis[0]}{s}" for s in sizes)]]
    for v in verdicts:
        optima = [v.optima.get(s) for s in sizes]
        lines.append([v.rule, *found(v), v.basis or "-", *map(best_lr, optima), *map(best_loss, optima)])
    said = aligned(lines)
    said.append(f"lr*: log2 of the best learning rate. Regret: cost of the lr tuned at {axis} {verdicts[0].base}.")
    if any("fit" in v.basis.split(", ") for v in verdicts):
        unseen = "a shift that the seed gives to a whole curve goes unseen"
        said.append(f"intervals rest on the fit alone (one seed): {unseen}, more seeds would show the spread")
    for v in verdicts:
        runs = ", ".join(f"{n} {status}" for status, n in v.counts.items() if n)
        larger = f"; {LARGER[axis]} is {'' if v.larger_is_better else 'NOT always '}better" * (v.larger_is_better is not None)
        said.append(f"{v.rule}: {runs}{larger}")
        if v.features is not None:
            at = f" (step {v.features.step}, log2 lr {v.features.log2_lr:g})" if v.features.log2_lr is not None else ""
            said.append(f"  feature norms{at}: {v.features.summary}")
            if v.features.failed_updates:
                said.append(f"  update norms that drift: {first_of(v.features.failed_updates)}")
        if v.reason:
            said.append(f"  undecided: {v.reason}")
    return "\n".join(said)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table with columns of equal width, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    said = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [said[0], "-" * max(map(len, said)), *said[1:]]


def found(v: Verdict) -> tuple[str, str, str]:
    """Return verdict, slope and regret as cells of a table."""
    slope = f"{v.slope:+.2f} [{v.slope_lo:+.2f}, {v.slope_hi:+.2f}]" if math.isfinite(v.slope) else "-"
    return v.verdict, slope, f"{'>=' * v.regret_at_least}{v.regret:.2%}" if math.isfinite(v.regret) else "-"


def best_loss(o: Optimum | None) -> str:
    """Return the loss at the optimum as a cell of a table."""
    return f"{o.loss:.3f}" if o else "none"


def best_lr(o: Optimum | None) -> str:
    """Return log2 of the optimum as a cell of a table, '<' or '>' on the sides where nothing worse was tested."""
    if o is None:
        return "none"
    sides = {"lower": "<", "higher": ">"}
    return "".join(sides[s] for s in o.open_sides) + f"{o.log2_lr:.2f}"


def _optimum_row(v: Verdict, size: int, o: Optimum | None) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": v.rule, v.axis: size}
    if o is None:
        return row | {"bracketed": False}
    return row | {n: getattr(o, n) for n in OF_OPTIMUM} | {"open_sides": " ".join(o.open_sides)}


def _verdict_row(v: Verdict) -> dict[str, Any]:
    row = {n: getattr(v, n) for n in OF_VERDICT}
    row["slope"] = {"estimate": v.slope, "lo": v.slope_lo, "hi": v.slope_hi}
    row["regret"] = {"estimate": v.regret, "lo": v.regret_lo, "hi": v.regret_hi, "at_least": v.regret_at_least}
    row["optima"] = [_optimum_row(v, size, o) for size, o in v.optima.items()]
    if v.features is not None:
        row["features"] = {n: getattr(v.features, n) for n in OF_FEATURES}
    return row


def _strict(value: Any) -> Any:
    """Return value with plain types and null for every number that JSON has not (NaN, inf)."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table; the same numbers give the same bytes."""
    frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
