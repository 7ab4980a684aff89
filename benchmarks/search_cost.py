"""What a verdict costs: simulated sweeps searched by the plan that trains real ones, against a fixed grid of 12 lrs × 3 seeds.

    python benchmarks/search_cost.py [SWEEPS]       sweeps a cell, 150 by default

Losses are drawn from an asymmetric bowl (nats over octaves), shifted by `slope` octaves a doubling of the width, with a tilt a
seed and noise a run; widths 64, 128, 256 cost 3, 8, 15 core-seconds a run, as on the two cores of the committed sweeps.
Printed for each cell: core-seconds, runs, and how often the verdict is right, wrong, or none.
"""

import math
import sys
from statistics import fmean, median

import numpy as np
import pandas as pd

from spectral_mup.analysis.bowl import bowl
from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

SECONDS = {64: 3.0, 128: 8.0, 256: 15.0}
CURVES = {  # curvature (nats/octave²), skew (per octave), tilt of a seed, noise of a run
    "easy": (0.06, 0.5, 0.004, 0.003),
    "noisy": (0.05, 0.6, 0.010, 0.010),
    "flat": (0.02, 0.6, 0.004, 0.004),
}
SLOPES = (0.0, -0.1, -0.25, 0.25, -1.0)
FIXED = 12 * 3 * sum(SECONDS.values())


def simulate(sweep, curve: str, slope: float, seed: int) -> dict[str, float | str]:
    """Search one sweep to its end."""
    rng, (a, skew, tilt, noise) = np.random.default_rng(seed), CURVES[curve]
    optimum, tilts, losses = -6 + rng.uniform(-0.5, 0.5), {}, {}

    def train(run: RunConfig) -> float:
        x = run.log2_lr - optimum - slope * math.log2(run.width / 64)
        t = tilts.setdefault((run.width, run.seed), tilt * rng.standard_normal())
        return 2 + a * float(bowl(np.clip(x, -8, 8), skew)) + t * x + noise * rng.standard_normal()

    def known(run: RunConfig) -> float | None:
        return losses.get(run.run_id)

    while todo := (plan := make_plan(sweep, known)).todo:
        losses |= {run.run_id: train(run) for run in todo}
    (end,) = plan.endings
    assert end.judgement is not None
    verdict, _, e = end.judgement
    seconds, half = sum(SECONDS[run.width] for run in plan.runs), (e.slope_hi - e.slope_lo) / 2
    return {"seconds": seconds, "runs": len(plan.runs), "looks": end.looks, "verdict": verdict, "half": half}


def main(sweeps: int) -> None:
    sweep = open_sweep(load_config(["sweep=default", "rule=[spectral]"]))
    rows = []
    for curve in CURVES:
        for slope in SLOPES:
            found = [simulate(sweep, curve, slope, seed) for seed in range(sweeps)]
            verdicts = [f["verdict"] for f in found]
            share = {v: 100 * verdicts.count(v) / sweeps for v in ("transfers", "drifts", "costs", "undecided")}
            means = {k: fmean(float(f[k]) for f in found) for k in ("seconds", "runs", "looks")}
            rows.append({"curve": curve, "slope": slope, **means, "ratio": FIXED / means["seconds"], **share,
                         "half width": median(float(f["half"]) for f in found)})  # fmt: skip
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%8.2f"), flush=True)
    print(f"fixed grid: {FIXED:.0f} core-seconds, 108 runs")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
