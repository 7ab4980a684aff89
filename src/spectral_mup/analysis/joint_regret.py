"""Width and depth together: what the lr tuned on the smallest model costs at every size."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from spectral_mup.analysis.bowl import find_optima
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import by_rule, tabulate

REGRET_COLUMNS = ["rule", "width", "depth", "log2_lr", "loss", "base_log2_lr", "regret", "at_least"]


def joint_regret(points: pd.DataFrame, base: Mapping[str, int]) -> pd.DataFrame:
    """Tabulate the regret of the base model's optimal lr, a fraction: one row per rule, width and depth that has runs.

    The columns are REGRET_COLUMNS: regret = L(η*_base) / L(η*) - 1 with L the curve of that size and η* its own optimum (log2,
    as everywhere); `base` holds the width and depth of the base model. `at_least`: η*_base lies beyond the lrs that finished,
    or η* is not bracketed and a better lr may lie outside. NaN where nothing finished, or nothing at the base.
    """
    table = []
    for rule, part in by_rule(points).items():
        curves = {(int(w), int(d)): tabulate(size) for (d, w), size in part.groupby(["depth", "width"])}  # pyright: ignore
        optima, _ = find_optima(curves)
        tuned = optima.get((base["width"], base["depth"]))
        for width, depth in curves:
            o = optima.get((width, depth))
            regret, beyond = o.regret_at(tuned.log2_lr) if o and tuned else (np.nan, False)
            own = (o.log2_lr, o.loss) if o else (np.nan, np.nan)
            at_least = bool(beyond) or bool(o and tuned and not o.bracketed)
            table.append((rule, width, depth, *own, tuned.log2_lr if tuned else np.nan, float(regret), at_least))
    return pd.DataFrame(table, columns=REGRET_COLUMNS)


def format_joint_regret(table: pd.DataFrame, tuned: str = "lr") -> str:
    """Format one line per rule for the screen: the size at which the base's lr costs most."""
    lines = []
    for rule in dict.fromkeys(table["rule"]):
        part = rows(table, (table["rule"] == rule) & np.isfinite(table["regret"].to_numpy(float)))
        if part.empty:
            lines.append(f"{rule}: no run finished at the base, so the regret over width and depth together is unknown")
            continue
        worst = part.iloc[int(part["regret"].to_numpy(float).argmax())]
        cost, at = f"{'at least ' * bool(worst['at_least'])}{worst['regret']:.2%}", f"{worst['width']}, depth {worst['depth']}"
        lines.append(f"{rule}: over width and depth together the base's {tuned} costs most, {cost}, at width {at}")
    return "\n".join(lines)
