"""The committed curves judged again by the estimator of today: old and new verdicts in a table, the results files written anew.

    python benchmarks/judge_again.py [--before 7ba9758]

Reads every sweeps/results/**/curves.csv, and the verdicts.json beside it as commit `before` has it. Writes verdicts.json and
optima.csv, redraws what needs no norms (lr_transfer, summary), and sweeps/results/judged_again.csv. The checks of features are
judged again from the slopes in features.csv, also where no curves are kept.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.analysis.feature_check import FeatureCheck, conclude, module_verdicts
from spectral_mup.analysis.figures import FIGURES, SweepData
from spectral_mup.analysis.figures.style import save
from spectral_mup.analysis.figures.summary import summary_figure
from spectral_mup.analysis.results import write_results
from spectral_mup.analysis.stats import rows, write_csv
from spectral_mup.analysis.summary import gather, summary_table
from spectral_mup.analysis.verdict import Verdict, by_rule, judge

RESULTS = Path(__file__).parent.parent / "sweeps" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="7ba9758")
    before = parser.parse_args().before
    found = []
    for path in sorted(RESULTS.rglob("verdicts.json")):
        folder = path.parent
        shown = ["git", "-C", str(folder), "show", f"{before}:./verdicts.json"]
        old = json.loads(subprocess.run(shown, check=True, capture_output=True, text=True).stdout)
        features = pd.read_csv(folder / "features.csv")
        checks = {v["rule"]: check_again(v, features, old["axis"]) for v in old["verdicts"]}
        if (folder / "curves.csv").exists():
            points = pd.read_csv(folder / "curves.csv")
            parts = by_rule(points)
            verdicts = [
                replace(judge(parts[v["rule"]], v["axis"], v["base"], label=v["rule"]), features=checks[v["rule"]])
                for v in old["verdicts"]
            ]
            write_results(folder, points, verdicts, {key: value for key, value in old.items() if key != "verdicts"})
            data = SweepData(points, pd.DataFrame(), verdicts, {v.axis: v.base for v in verdicts}, old["axis"])
            redraw(FIGURES["lr_transfer"](data), folder / "lr_transfer")
            found += [compared(folder, *both) for both in zip(old["verdicts"], verdicts, strict=True)]
        else:
            for v in old["verdicts"]:
                v["features"] |= {"passed": checks[v["rule"]].passed, "summary": checks[v["rule"]].summary}
            path.write_text(json.dumps(old, indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
            write_csv(pd.concat([c.table.assign(rule=rule) for rule, c in checks.items()]), folder / "features.csv")
    for path in sorted(RESULTS.rglob("summary.csv")):
        sweeps, _ = gather(path.parent)
        write_csv(summary_table(sweeps), path)
        redraw(summary_figure(sweeps), path.parent / "summary")
    table = pd.DataFrame(found)
    write_csv(table, RESULTS / "judged_again.csv")
    print(table.to_string(index=False, float_format="{:+.4g}".format))


def check_again(old: dict[str, Any], features: pd.DataFrame, axis: str) -> FeatureCheck:
    """The feature check of a rule from the slopes that it found."""
    table = rows(features, features["rule"] == old["rule"]).drop(columns="rule")
    table = table.assign(verdict=module_verdicts(table))
    kept = old["features"]
    judged = [r for r in table.to_dict("records") if r["judged"] and r["quantity"] == "feature"]
    passed, summary = (None, kept["summary"]) if kept["step"] is None else conclude(judged, axis)
    summary += " (indicative)" * (kept["indicative"] and passed is not None)
    same = {name: kept[name] for name in ("failed", "failed_updates", "indicative", "log2_lr", "step")}
    return FeatureCheck(passed, summary, **same, table=table, values=pd.DataFrame())


def redraw(drawing: Any, stem: Path) -> None:
    """Draw the formats of a figure that are kept."""
    with tempfile.TemporaryDirectory() as folder:
        save(drawing[0], Path(folder) / stem.name, drawing[1])
        for kind in ("pdf", "svg", "png"):
            if (kept := stem.with_suffix(f".{kind}")).exists():
                kept.write_bytes((Path(folder) / kept.name).read_bytes())


def compared(folder: Path, old: dict[str, Any], new: Verdict) -> dict[str, Any]:
    """A row of the table: verdict, slope and half width of its interval, regret (a fraction) with its interval."""
    slope, regret = old["slope"], old["regret"]
    half = None if slope["lo"] is None else (slope["hi"] - slope["lo"]) / 2
    row = {"sweep": folder.relative_to(RESULTS).as_posix(), "rule": new.rule, "axis": new.axis}
    row |= {"before": old["verdict"], "slope_before": slope["estimate"], "half_before": half, "verdict": new.verdict}
    row |= {"slope": new.slope, "half": (new.slope_hi - new.slope_lo) / 2, "regret_before": regret["estimate"]}
    row |= {"regret": new.regret, "regret_lo": new.regret_lo, "regret_hi": new.regret_hi}
    features = {True: "passed", False: "failed", None: "undecided"}
    row |= {"features_before": features[old["features"]["passed"]], "features": features[new.features and new.features.passed]}
    return row | {"reason": new.reason}


if __name__ == "__main__":
    main()
