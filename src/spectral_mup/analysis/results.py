"""The results folder of a sweep as files: what report.py found is written here, and read back without any run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.analysis.bowl import Optimum
from spectral_mup.analysis.collect import as_judged
from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.names import PRINTED
from spectral_mup.analysis.stats import NAN, rows, write_csv
from spectral_mup.analysis.verdict import Remedy, Verdict, by_rule, curves_of
from spectral_mup.config.tune import LR
from spectral_mup.runs.run_config import AXES

# fields of Verdict, Optimum and FeatureCheck as verdicts.json has them
OF_VERDICT = "rule axis base verdict reason tolerance regret_limit alpha basis larger_is_better counts tuned".split()
OF_OPTIMUM = "log2_lr lo hi loss curvature skew".split()
FEATURES = "quantity name kind step slope lo hi limit verdict n_sizes n_seeds judged rule".split()  # of features.csv
OF_FEATURES = "passed summary failed failed_updates indicative log2_lr step".split()
ABOUT = "name command commit train_hours codes".split()  # of those on top
NESTED = {  # its entries that hold several fields of Verdict
    "slope": {"estimate": "slope", "lo": "slope_lo", "hi": "slope_hi"},
    "regret": {"estimate": "regret", "lo": "regret_lo", "hi": "regret_hi", "at_least": "regret_at_least"},
}


class ResultsError(ValueError):
    """A results folder that does not exist or cannot be read; the message is one line with the fix in it."""


@dataclass(frozen=True, eq=False)
class Results:
    """What was found for one sweep and one optimizer over one axis; `verdicts` and `points` name rules as the sweep does."""

    folder: Path
    name: str
    optimizer: str
    command: str  # that judged it
    commit: str
    train_hours: float | None  # of all its runs together; None where they are not known
    codes: Sequence[str]  # that trained its runs, as far as they are known
    points: pd.DataFrame
    verdicts: list[Verdict]

    @property
    def family(self) -> str:
        """The model family of its runs."""
        return "/".join(dict.fromkeys(map(str, self.points["family"])))

    @property
    def axis(self) -> str:
        """The sizes over which it was judged, one of AXES."""
        return self.verdicts[0].axis

    def done(self, rule: str | None = None) -> pd.DataFrame:
        """Return the runs that finished, each once: those of a rule, or all; runs of the base size belong to several rules."""
        here = (self.points["status"] == "done") & ((self.points["rule"] == rule) | (rule is None))
        return rows(self.points, here).drop_duplicates("run_id")

    def seeds(self, v: Verdict) -> tuple[int, int]:
        """Count the fewest and most seeds that finished at a size, under the rule of a verdict; zero where none did."""
        done = self.done(v.rule)
        counts = [done.loc[done[v.axis] == size, "seed"].nunique() for size in v.optima]
        return min(counts, default=0), max(counts, default=0)


def labels(sweeps: Sequence[Results]) -> list[str]:
    """Name each by its optimizer, by what was tuned if not the lr, and where that is not unique by the sweep too."""
    keys = [r.verdicts[0].tuned for r in sweeps]
    names = [r.optimizer if key == LR else f"{r.optimizer}, {key}" for r, key in zip(sweeps, keys, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({r.name})" for r, name in zip(sweeps, names, strict=True)]


def by_family_and_axis(sweeps: Sequence[Results]) -> dict[tuple[str, str], list[Results]]:
    """Group the sweeps by (family, axis), in their order: families as in PRINTED, then others; axes as in AXES."""
    known = list(PRINTED)
    rank = {family: known.index(family) if family in known else len(known) for family in (r.family for r in sweeps)}
    keys = sorted({(r.family, r.axis) for r in sweeps}, key=lambda key: (rank[key[0]], key[0], AXES.index(key[1])))
    return {key: [r for r in sweeps if (r.family, r.axis) == key] for key in keys}


def printed_labels(sweeps: Sequence[Results], own: Mapping[str, str] | None = None) -> list[str]:
    """Return `labels`, with optimizers as papers print them, or by `own` names."""
    named = zip(sweeps, labels(sweeps), strict=True)
    known = PRINTED | dict(own or {})
    return [known.get(r.optimizer, r.optimizer) + label.removeprefix(r.optimizer) for r, label in named]


def write_results(folder: Path, points: pd.DataFrame, verdicts: Sequence[Verdict], about: Mapping[str, Any]) -> None:
    """Write curves.csv, optima.csv, features.csv, and verdicts.json with `about` on top; undefined numbers are null there."""
    write_csv(points, folder / "curves.csv")
    write_csv(optima_table(verdicts), folder / "optima.csv")
    tables = [v.features.table.assign(rule=v.rule) for v in verdicts if v.features is not None]
    if tables:
        write_csv(pd.concat(tables, ignore_index=True), folder / "features.csv")
    content = _strict({**about, "verdicts": [_verdict_row(v) for v in verdicts]})
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / "verdicts.json").write_text(text, "utf-8")


def optima_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Make one row per rule and size: OF_OPTIMUM, the best lr tested and its loss, seeds, and on which sides it is open."""
    return pd.DataFrame([_optimum_row(v, size, o) | {"tuned": v.tuned} for v in verdicts for size, o in v.optima.items()])


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Make one row per rule: the fields of its Verdict that are single numbers or words, and its runs by status."""
    nested = [name for fields in NESTED.values() for name in fields.values()]
    head = ["rule", "axis", "base", "verdict", *nested]
    fields = [*head, *(name for name in OF_VERDICT if name not in (*head, "counts", "reason"))]
    return pd.DataFrame([{n: getattr(v, n) for n in fields} | v.counts | {"reason": v.reason} for v in verdicts])


@dataclass(frozen=True, eq=False)
class Written:
    """What is in a folder of results."""

    about: Mapping[str, Any]  # on top of verdicts.json
    runs: pd.DataFrame  # curves.csv
    features: pd.DataFrame  # features.csv; empty where no features were judged
    verdicts: list[Verdict]  # named as in verdicts.json
    parts: list[pd.DataFrame]  # the points of each, as they were judged


def read_results(folder: Path) -> list[Results]:
    """Read a folder's results: one Results per optimizer, in the order of the verdicts. Raises ResultsError."""
    written = read_folder(folder)
    found: dict[str, tuple[list[pd.DataFrame], list[Verdict]]] = {}  # by optimizer
    for v, part in zip(written.verdicts, written.parts, strict=True):
        points, verdicts = found.setdefault(str(part["optimizer"].iloc[0]), ([], []))
        points.append(part)
        verdicts.append(replace(v, rule=str(part["rule"].iloc[0])))
    runs = {optimizer: pd.concat(points, ignore_index=True) for optimizer, (points, _) in found.items()}
    return [
        Results(folder, optimizer=o, points=runs[o], verdicts=verdicts, **written.about) for o, (_, verdicts) in found.items()
    ]


def read_folder(folder: Path) -> Written:
    """Read verdicts.json, curves.csv and features.csv.

    Numbers are those that were judged then, nothing is judged again; curves are made anew from the points. Raises ResultsError.
    """
    path = folder / "verdicts.json"
    again = f"write it again with python analyze.py and the sweep's overrides, or move {folder} away"
    try:
        content = json.loads(path.read_text("utf-8"))
        path = folder / "curves.csv"
        runs = pd.read_csv(path)
        of_rule = by_rule(as_judged(runs))
        path = folder / "features.csv"
        features = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=FEATURES)
        path = folder / "verdicts.json"
        if absent := [row["rule"] for row in content["verdicts"] if row["rule"] not in of_rule]:
            raise ResultsError(f"{folder}: curves.csv has no rule '{absent[0]}' of verdicts.json; {again}")
        parts = [of_rule[row["rule"]] for row in content["verdicts"]]
        verdicts = [_verdict(row, part) for row, part in zip(content["verdicts"], parts, strict=True)]
        about = {"train_hours": None, "codes": []} | content
        return Written({name: about[name] for name in ABOUT}, runs, features, verdicts, parts)
    except FileNotFoundError:
        raise ResultsError(f"{path}: does not exist; {again}") from None
    except ResultsError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # of JSON, UTF-8, pandas, an entry
        what = f"no entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ResultsError(f"{path}: damaged ({what}); {again}") from None


def _optimum_row(v: Verdict, size: int, o: Optimum | None) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": v.rule, v.axis: size}
    if o is None:
        return row | {"bracketed": False}
    of_grid = {"grid_log2_lr": o.curve.log2_lrs[o.curve.best], "grid_loss": o.curve.mean_L[o.curve.best]}
    seeds = {"n_seeds": o.curve.n_seeds, "seeds": " ".join(f"{x:.6g}" for x in o.seeds)}
    more = {"bracketed": o.bracketed, "open_sides": " ".join(o.open_sides)}
    return row | {n: getattr(o, n) for n in OF_OPTIMUM} | of_grid | seeds | more


def _verdict_row(v: Verdict) -> dict[str, Any]:
    row = {n: getattr(v, n) for n in OF_VERDICT}
    row |= {entry: {key: getattr(v, name) for key, name in fields.items()} for entry, fields in NESTED.items()}
    row["remedy"] = v.remedy._asdict() if v.remedy else None
    row["optima"] = [_optimum_row(v, size, o) for size, o in v.optima.items()]
    if v.features is not None:
        row["features"] = {n: getattr(v.features, n) for n in OF_FEATURES}
    return row


def _strict(value: Any) -> Any:
    """Return plain types, and null for every number that JSON does not know (NaN, inf)."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verdict(row: Mapping[str, Any], part: pd.DataFrame) -> Verdict:
    row = {"tuned": LR, **row}
    own = {n: row[n] for n in OF_VERDICT}
    own |= {name: _number(row[entry], key) for entry, fields in NESTED.items() for key, name in fields.items()}
    own["remedy"] = Remedy(**row["remedy"] | {"sizes": tuple(row["remedy"]["sizes"])}) if row["remedy"] else None
    curves = curves_of(part, row["axis"])
    features = row.get("features")
    if features is not None:
        kept: dict[str, Any] = {n: tuple(x) if isinstance(x := features[n], list) else x for n in OF_FEATURES}
        features = FeatureCheck(**kept, table=pd.DataFrame(), values=pd.DataFrame())
    optima = {size: _optimum(o, curve) for (size, curve), o in zip(curves.items(), row["optima"], strict=True)}
    return Verdict(**own, optima=optima, features=features)


def _optimum(row: Mapping[str, Any], curve: LossCurve) -> Optimum | None:
    if "log2_lr" not in row:  # nothing finished at this size
        return None
    if curve.best is None:
        raise ValueError("an optimum whose runs are not in curves.csv")
    seeds, sides = tuple(map(float, row["seeds"].split())), tuple(row["open_sides"].split())
    return Optimum(**{n: _number(row, n) for n in OF_OPTIMUM}, seeds=seeds, open_sides=sides, curve=curve)


def _number(row: Mapping[str, Any], name: str) -> Any:
    """Return what JSON has as null: no bound of an interval, or NaN; any other number unchanged."""
    return {"lo": -math.inf, "hi": math.inf}.get(name, NAN) if row[name] is None else row[name]
