"""The folder of a sweep's results, and the table on the screen, made from points and norms."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.bowl import Optimum, find_optima
from spectral_mup.analysis.collect import as_judged
from spectral_mup.analysis.feature_check import check_features, first_of, norm_values, shared_cells
from spectral_mup.analysis.figures import SweepData, choose_figures, draw_figures
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.joint_regret import format_joint_regret, joint_regret
from spectral_mup.analysis.results import write_results
from spectral_mup.analysis.stats import rows, write_csv
from spectral_mup.analysis.verdict import Verdict, by_rule, curves_of, format_slope, judge, percent
from spectral_mup.config.tune import LR, named
from spectral_mup.runs.run_config import AXES, BASE
from spectral_mup.util.text import table, wrap

LARGER = {"width": "wider", "depth": "deeper", "steps": "longer", "batch_size": "a larger batch"}
OF_MODELS = ("width", "depth")  # the axes over which rules differ and features are judged
LOOKS_NOTE = "Intervals leave room for several looks at a verdict: in 95 % of sweeps all of them hold."
ONE_SEED = "with one seed, an interval rests on how far the sizes lie from a line, and is wide"
COLUMNS = 100  # width of the screen, in characters
ORDER = ["family", "optimizer", "rule", *AXES, "log2_lr", "seed"]


def report(
    points: pd.DataFrame, norms: pd.DataFrame, *, name: str, out_dir: Path | str, axis: str = "width",
    base: Mapping[str, int] | None = None, command: str = "", commit: str = "", train_hours: float | None = None,
    codes: Sequence[str] = (), figures: Sequence[str] | None = None, printing: Printing | None = None, processes: int = 1,
    **judging: Any,
) -> list[Verdict]:  # fmt: skip
    """Judge a sweep over one axis, write everything that can be said about it into out_dir, and return the verdicts.

    The files; the same points and norms give the same bytes:

        curves.csv       one row per point
        optima.csv       one row per rule and size
        features.csv     slopes of all modules and steps
        verdicts.json    the rest, in strict JSON: undefined numbers are null
        FIGURE.*         .pdf, .svg and .png; .txt, its caption; .csv, what is drawn

    `figures` are names of figures.FIGURES or import paths, None for all of FIGURES; those that need what the runs have not
    recorded are left out. `processes` draw them. `base` is {axis: size that was tuned}, by default the smallest; `judging`
    are options of `judge`; `command`, `commit`, `train_hours` and `codes` say in verdicts.json where the points come from.
    Raises ValueError without points.
    """
    if points.empty:
        raise ValueError(f"sweep {name} has no points: nothing to report")
    chosen, base, out = choose_figures(figures), base or {}, Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rank = {rule: i for i, rule in enumerate(dict.fromkeys(points["rule"]))}  # rules stay in the sweep's order
    order = [column for column in ORDER if column in points]
    points = points.sort_values(order, ignore_index=True, key=lambda c: c.map(rank) if c.name == "rule" else c)
    judged = as_judged(points)
    verdicts = judge_all(judged, norms, axis, base.get(axis), **judging)
    about = {"name": name, "axis": axis, "command": command, "commit": commit, "train_hours": train_hours}
    about |= {"codes": codes, "run_ids": sorted(points["run_id"])}
    write_results(out, points, verdicts, about)
    draw_figures(SweepData(judged, norms, verdicts, base, axis, printing or Printing()), out, chosen, processes)
    return verdicts


def points_along(points: pd.DataFrame, axis: str, base: Mapping[str, int]) -> pd.DataFrame:
    """Return the points on which an axis is judged: those at the base of all other axes.

    Over width and depth they are under rules, over steps and batch size under none.
    """
    at_base = np.all([points[other] == base[other] for other in AXES if other != axis], axis=0)
    of_axis = rows(points, at_base & ((points["rule"] != BASE.name) == (axis in OF_MODELS)))
    return of_axis.drop_duplicates(["rule", "run_id"])  # a run at the base is on the curves of several axes


def of_rules(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points under rules, over width and depth; the others are over steps and batch size, which no rule scales."""
    return rows(points, points["rule"] != BASE.name)


def report_joint(
    points: pd.DataFrame, norms: pd.DataFrame, verdicts: Sequence[Verdict], base: Mapping[str, int],
    out_dir: Path | str, figures: Sequence[str] | None = None, printing: Printing | None = None, processes: int = 1,
) -> str:  # fmt: skip
    """Write joint_regret.csv and the figures of a sweep over width and depth, and return what the screen shows of it."""
    chosen, out = choose_figures(figures), Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    points = as_judged(points)
    regret = joint_regret(points, base)
    write_csv(regret, out / "joint_regret.csv")
    draw_figures(SweepData(points, norms, verdicts, base, "joint", printing or Printing()), out, chosen, processes)
    return format_joint_regret(regret, verdicts[0].tuned if verdicts else LR)


def judge_all(points: pd.DataFrame, norms: pd.DataFrame | None, axis: str, base: int | None, **judging: Any) -> list[Verdict]:
    """Return one verdict per rule, over width and depth with its feature check, at the lr nearest the base's optimum.

    `judging` are options of `judge`. Without `norms` (None) no features are checked.
    """
    verdicts = []
    for label, part in by_rule(points).items():
        v = judge(part, axis, base, label=label, **judging)
        tuned = str(part["tuned"].iloc[0]) if "tuned" in part else LR
        v = replace(v, tuned=tuned, reason=named(v.reason, tuned))
        if axis not in OF_MODELS or norms is None:
            verdicts.append(v)
            continue
        near = judged_near(part, v.finished, v.base)
        own = norms if norms.empty else rows(norms, norms["run_id"].isin(list(part["run_id"])))
        verdicts.append(replace(v, features=check_features(own, near, axis=axis, sizes=list(v.optima))))
    return verdicts


def judged_near(part: pd.DataFrame, finished: Mapping[int, Optimum], base: int) -> float:
    """Return the log2 lr near which a rule's features are judged.

    It is the optimum at the base, else at the smallest size that has one, else the median of the lrs.
    """
    optima = [finished.get(base, o) for o in finished.values()]
    return optima[0].log2_lr if optima else float(np.median(part["log2_lr"].to_numpy(float)))


def norms_to_judge(
    points: pd.DataFrame, read: Callable[[Collection[str]], pd.DataFrame], axis: str, base: int | None
) -> set[str]:
    """Return the ids of the runs whose norms `judge_all` and the figures of an axis use.

    They are those at the lr of each rule's feature check, or all of a rule that ended if no lr has norms at every size. `read`
    returns the norms of runs by their ids.
    """
    found: set[str] = set()
    for part in by_rule(as_judged(points)).values() if axis in OF_MODELS else ():
        sizes = sorted(int(s) for s in part[axis].unique())
        optima, _ = find_optima(curves_of(part, axis))
        near = judged_near(part, optima, sizes[0] if base is None else base)
        ended = rows(part, part["status"] != "missing")
        by_lr = {float(lr): here for lr, here in ended.groupby("log2_lr")}  # pyright: ignore
        for lr in sorted(by_lr, key=lambda lr: (abs(lr - near), lr)):
            ids = set(by_lr[lr]["run_id"])
            if set(by_lr[lr][axis]) >= set(sizes) and shared_cells(norm_values(read(ids), axis), sizes):
                break
        else:
            ids = set(ended["run_id"])
        found |= ids
    return found


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Format the table for the screen: plain text, one line per rule, then notes on the numbers."""
    cells, sizes = table_of(verdicts), len({size for v in verdicts for size in v.optima})
    notes = [line for note in notes_on(verdicts) for line in wrap(note.strip(), len(note) - len(note.lstrip()), COLUMNS)]
    return "\n".join([*aligned(cells, groups=[len(cells[0]) - 1 - 2 * sizes, sizes, sizes]), *notes])


def table_of(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Return the cells of the table, the head first, then one row per rule.

    log2 lr* is the optimum, with '<' or '>' if it is not bracketed on that side; 'none' if nothing finished.
    """
    sizes, axis, tuned = sorted({size for v in verdicts for size in v.optima}), verdicts[0].axis, verdicts[0].tuned
    of_axis, best = axis.replace("_", " "), "lr*" if tuned == LR else "best"
    head = ["rule", f"over {of_axis}", f"slope [{percent(verdicts[0].alpha)}]", "regret", "interval of"]
    cells = [[*head, *(f"{best} {axis[0]}{s}" for s in sizes), *(f"loss {axis[0]}{s}" for s in sizes)]]
    for v in verdicts:
        optima = [v.optima.get(s) for s in sizes]
        cells.append([v.rule, *verdict_cells(v), v.basis or "-", *map(best_lr, optima), *map(best_loss, optima)])
    return cells


def notes_on(verdicts: Sequence[Verdict]) -> list[str]:
    """Return lines that say what the numbers in the table mean, and what they do not show."""
    axis, tuned = verdicts[0].axis, verdicts[0].tuned
    of_axis, best = axis.replace("_", " "), "lr*" if tuned == LR else "best"
    about = named(f"log2 of the best learning rate. Regret: cost of the lr tuned at {of_axis} {verdicts[0].base}", tuned)
    lines = [f"{best}: {about}."]
    lines += [LOOKS_NOTE] if verdicts[0].alpha < 0.05 else []
    lines += [ONE_SEED] if any(v.basis.startswith("1 ") for v in verdicts) else []
    for v in verdicts:
        runs = ", ".join(f"{n} {status}" for status, n in v.counts.items() if n)
        larger = f"; {LARGER.get(axis, f'a larger {of_axis}')} is {'' if v.larger_is_better else 'NOT always '}better" * (
            v.larger_is_better is not None
        )
        lines.append(f"{v.rule}: {runs}{larger}")
        if v.features is not None:
            at = f" (step {v.features.step}, log2 {tuned} {v.features.log2_lr:g})" if v.features.log2_lr is not None else ""
            lines.append(f"  feature norms{at}: {v.features.summary}")
            drifting = first_of(v.features.failed_updates)
            lines += [f"  update norms that drift: {drifting}"] if drifting else []
            lines += [f"  {v.features.remark}"] if v.features.remark else []
        lines += [f"  undecided: {v.reason}"] if v.reason else []
    return lines


def aligned(cells: Sequence[Sequence[str]], groups: Sequence[int], keys: int = 1) -> list[str]:
    """Return the lines of a table with its columns aligned and its head underlined.

    The first `keys` columns name the row; the others come in groups of these lengths. A group that would reach beyond COLUMNS
    goes into a further table below, which repeats the names.
    """
    columns = list(zip(*cells, strict=True))
    names, others = columns[:keys], iter(columns[keys:])
    parts = [names + [next(others) for _ in range(groups[0])]]
    for group in ([next(others) for _ in range(n)] for n in groups[1:]):
        parts += [] if _fits(parts[-1] + group) else [[*names]]
        for column in group:
            parts += [] if _fits([*parts[-1], column]) else [[*names]]
            parts[-1].append(column)
    lines: list[str] = []
    for part in parts:
        head, *body = table(list(zip(*part, strict=True)))
        lines += [*[""] * bool(lines), head, "-" * max(map(len, (head, *body))), *body]
    return lines


def _fits(columns: Sequence[Sequence[str]]) -> bool:
    return sum(max(map(len, column)) + 2 for column in columns) - 2 <= COLUMNS


def verdict_cells(v: Verdict) -> tuple[str, str, str]:
    """Format verdict, slope and regret as cells of a table."""
    return (
        v.verdict,
        format_slope(v.slope, v.slope_lo, v.slope_hi) or "-",
        f"{'>=' * v.regret_at_least}{v.regret:.2%}" if math.isfinite(v.regret) else "-",
    )


def best_loss(o: Optimum | None) -> str:
    """Format the loss at the optimum as a cell of a table."""
    return f"{o.loss:.3f}" if o else "none"


def best_lr(o: Optimum | None) -> str:
    """Format log2 of the optimum as a cell of a table, with '<' or '>' for a side where nothing worse was tested."""
    return "".join({"lower": "<", "higher": ">"}[s] for s in o.open_sides) + f"{o.log2_lr:.2f}" if o else "none"
