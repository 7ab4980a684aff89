"""The curves that a commit holds, judged by the estimator of today: a table of its verdicts and ours.

    python benchmarks/judge_again.py [--before 7ba9758]

Reads curves.csv, verdicts.json and features.csv of every sweep under sweeps/results as commit `before` has them, and writes
sweeps/results/judged_again.csv. Feature checks are judged from the slopes in features.csv.
"""

import argparse
import json
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.analysis.feature_check import conclude, module_verdicts
from spectral_mup.analysis.stats import rows, write_csv
from spectral_mup.analysis.verdict import Verdict, by_rule, judge

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("sweeps/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="7ba9758")
    before, found = parser.parse_args().before, []

    def read(path: Path) -> str:
        return git("show", f"{before}:{path.as_posix()}")

    for name in git("ls-tree", "-r", "--name-only", before, f"{RESULTS}/").splitlines():
        folder = Path(name).parent
        if Path(name).name == "curves.csv":
            old, parts = json.loads(read(folder / "verdicts.json")), by_rule(pd.read_csv(StringIO(read(folder / "curves.csv"))))
            features = pd.read_csv(StringIO(read(folder / "features.csv")))
            for v in old["verdicts"]:
                judged = judge(parts[v["rule"]], v["axis"], v["base"], label=v["rule"])
                found.append(compared(folder, v, judged, pass_again(v, features, old["axis"])))
    table = pd.DataFrame(found)
    write_csv(table, ROOT / RESULTS / "judged_again.csv")
    print(table.to_string(index=False, float_format="{:+.4g}".format))


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def pass_again(old: dict[str, Any], features: pd.DataFrame, axis: str) -> bool | None:
    """Whether the features of a rule pass, from the slopes that were found."""
    if old["features"]["step"] is None:
        return None
    table = rows(features, (features["rule"] == old["rule"]) & features["judged"] & (features["quantity"] == "feature"))
    return conclude(table.assign(verdict=module_verdicts(table)).to_dict("records"), axis)[0]


def compared(folder: Path, old: dict[str, Any], new: Verdict, passed: bool | None) -> dict[str, Any]:
    """A row of the table: verdict, slope and half width of its interval, regret (a fraction) with its interval."""
    slope, regret = old["slope"], old["regret"]
    half = None if slope["lo"] is None else (slope["hi"] - slope["lo"]) / 2
    row = {"sweep": folder.relative_to(RESULTS).as_posix(), "rule": new.rule, "axis": new.axis}
    row |= {"before": old["verdict"], "slope_before": slope["estimate"], "half_before": half, "verdict": new.verdict}
    row |= {"slope": new.slope, "half": (new.slope_hi - new.slope_lo) / 2, "regret_before": regret["estimate"]}
    row |= {"regret": new.regret, "regret_lo": new.regret_lo, "regret_hi": new.regret_hi}
    features = {True: "passed", False: "failed", None: "undecided"}
    row |= {"features_before": features[old["features"]["passed"]], "features": features[passed]}
    return row | {"reason": new.reason}


if __name__ == "__main__":
    main()
