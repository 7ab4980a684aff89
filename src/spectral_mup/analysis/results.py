"""The results folder of a sweep read back: the points and the verdicts that report.py wrote, without a run at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.analysis.optimum import Optimum, tabulate
from spectral_mup.analysis.report import OF_FEATURES, OF_OPTIMUM, OF_VERDICT
from spectral_mup.analysis.verdict import NAN, Verdict, by_rule, curves_of


class ResultsError(ValueError):
    """A results folder that is not there or cannot be read; the message is one line with the fix in it."""


@dataclass(frozen=True, eq=False)
class Results:
    """What was found of one sweep and one optimizer; `verdicts` and `points` name rules as the sweep does."""

    folder: Path
    name: str
    optimizer: str
    commit: str
    points: pd.DataFrame
    verdicts: list[Verdict]


def read_results(folder: Path) -> list[Results]:
    """Read verdicts.json and curves.csv: one Results an optimizer, in the order of the verdicts.

    Numbers are those that were judged then, nothing is fitted again. Of an Optimum, what is not written (draws, parabola) is
    empty; its mean curve comes from the points. Raises ResultsError.
    """
    path = folder / "verdicts.json"
    try:
        said = json.loads(path.read_text("utf-8"))
        path = folder / "curves.csv"
        points = pd.read_csv(path)
        parts = by_rule(points)
        path = folder / "verdicts.json"
        found: dict[str, Results] = {}
        for row in said["verdicts"]:
            if row["rule"] not in parts:
                raise ResultsError(f"{folder}: curves.csv has no rule '{row['rule']}' of verdicts.json; {_again(folder)}")
            part = parts[row["rule"]]
            optimizer, rule = (str(part[column].iloc[0]) for column in ("optimizer", "rule"))
            verdict = replace(_verdict(row, part), rule=rule)
            other = found.get(optimizer)
            all_points = part if other is None else pd.concat([other.points, part], ignore_index=True)
            verdicts = [*(other.verdicts if other else []), verdict]
            found[optimizer] = Results(folder, said["name"], optimizer, said["commit"], all_points, verdicts)
    except FileNotFoundError:
        raise ResultsError(f"{path}: not there; {_again(folder)}") from None
    except ResultsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # of JSON, of UTF-8, of pandas, of an entry that is gone
        what = f"no entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ResultsError(f"{path}: damaged ({what}); {_again(folder)}") from None
    return list(found.values())


def _again(folder: Path) -> str:
    return f"write it again with python analyze.py and the sweep's overrides, or move {folder} away"


def _verdict(row: Mapping[str, Any], part: pd.DataFrame) -> Verdict:
    slope, regret = row["slope"], row["regret"]
    sizes = [int(o[row["axis"]]) for o in row["optima"]]
    curves = curves_of(part, row["axis"], sizes)
    features = row.get("features")
    if features is not None:
        kept: dict[str, Any] = {n: tuple(x) if isinstance(x := features[n], list) else x for n in OF_FEATURES}
        features = FeatureCheck(**kept, table=pd.DataFrame(), values=pd.DataFrame())
    return Verdict(
        **{n: row[n] for n in OF_VERDICT} | {"bend": _number(row["bend"])},
        slope=_number(slope["estimate"]),
        slope_lo=_number(slope["lo"]),
        slope_hi=_number(slope["hi"]),
        regret=_number(regret["estimate"]),
        regret_lo=_number(regret["lo"]),
        regret_hi=_number(regret["hi"]),
        regret_at_least=bool(regret["at_least"]),
        optima={s: _optimum(o, curves[s]) for s, o in zip(sizes, row["optima"], strict=True)},
        features=features,
    )


def _optimum(row: Mapping[str, Any], curve: pd.DataFrame) -> Optimum | None:
    if "log2_lr" not in row:  # nothing finished at this size
        return None
    _, full, _ = tabulate(curve)
    none = np.empty(0)
    return Optimum(
        **{n: _number(row[n]) for n in OF_OPTIMUM},
        open_sides=tuple(row["open_sides"].split()),
        seed_variance=NAN,
        fit_variance=NAN,
        residuals=none,
        samples=none,
        log2_lrs=full.columns.to_numpy(float),
        mean_losses=full.to_numpy(float).mean(0),
        parabola=None,
        span=(NAN, NAN),
    )


def _number(value: Any) -> Any:
    """Undefined numbers, which are null in JSON, as NaN again."""
    return NAN if value is None else value
