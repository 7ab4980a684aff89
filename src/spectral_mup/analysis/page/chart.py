"""The losses of every size over the learning rate as plain numbers, which the page's script draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.bowl import Optimum, losses_in_view
from spectral_mup.analysis.stats import rows
from spectral_mup.analysis.verdict import Verdict, loss_name
from spectral_mup.config.tune import named

VIRIDIS = np.array([[139, 214, 70], [72, 193, 110], [33, 145, 140], [59, 82, 139], [68, 1, 84]])  # small to large, as figures


def chart(verdicts: Sequence[Verdict], parts: Mapping[str, pd.DataFrame], called: Callable[[str], str]) -> dict[str, Any]:
    """One panel per rule; `parts`: the points of each rule. Losses to five digits."""
    axis, sizes = verdicts[0].axis, sorted({size for v in verdicts for size in v.optima})
    best, hi = losses_in_view([o for v in verdicts for o in v.finished.values()])
    points = pd.concat(parts.values())
    done = points["loss"].to_numpy(float)[points["status"] == "done"]
    best = min(best, done.min(initial=np.inf))  # a seed may lie below its bowl
    lrs = points["log2_lr"].to_numpy(float)
    return {
        "axis": axis.replace("_", " "),
        "base": verdicts[0].base,
        "x": f"log2 of the {named('base learning rate', verdicts[0].tuned)}",
        "value": named("lr", verdicts[0].tuned),
        "y": loss_name(points),
        "view": [float(lrs.min()), float(lrs.max()), _short(best), _short(hi)],
        "colours": dict(zip(map(str, sizes), _colours(len(sizes)), strict=True)),
        "panels": [
            {"rule": called(v.rule), "verdict": v.verdict, "sizes": [_curve(parts[v.rule], v, size) for size in v.optima]}
            for v in verdicts
        ],
    }


def _curve(part: pd.DataFrame, v: Verdict, size: int) -> dict[str, Any]:
    runs = rows(part, (part[v.axis] == size) & (part["status"] != "missing"))
    points = []
    for lr, here in runs.groupby("log2_lr"):
        seeds = [
            [int(s), _short(loss) if status == "done" else None]
            for s, loss, status in here[["seed", "loss", "status"]].to_numpy()
        ]
        points.append([float(lr), seeds])  # pyright: ignore[reportArgumentType]
    return {"size": size, "points": points} | _optimum(v.optima[size])


def _optimum(o: Optimum | None) -> dict[str, Any]:
    """Means of the seeds, the bowl, and its minimum."""
    if o is None:
        return {"means": [], "bowl": [], "best": None}
    use = o.curve.finished_SL.any(0)
    means = [[float(x), _short(y)] for x, y in zip(o.curve.log2_lrs[use], o.curve.mean_L[use], strict=True)]
    inside = o.curve.log2_lrs[o.curve.window]
    under = np.linspace(inside[0], inside[-1], 25) if o.fitted else np.array([])
    bowl = [[round(float(x), 3), _short(y)] for x, y in zip(under, o.bowl_at(under), strict=True)] if o.fitted else []
    return {"means": means, "bowl": bowl, "best": [round(o.log2_lr, 3), _short(o.loss), o.bracketed]}


def _colours(n: int) -> list[str]:
    at = np.linspace(0, len(VIRIDIS) - 1, n)
    rgb = [np.interp(at, range(len(VIRIDIS)), channel).round().astype(int) for channel in VIRIDIS.T]
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in zip(*rgb, strict=True)]


def _short(x: float) -> float:
    return float(f"{x:.5g}")
