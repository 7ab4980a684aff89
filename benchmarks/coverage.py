"""How often the intervals hold what they say they hold: sweeps simulated from known optima, estimated, and compared.

    python benchmarks/coverage.py [--sweeps 600] [--only easy flat] [--out sweeps/results/coverage]

A cell is a scenario, a grid and a number of seeds; its sweeps of three sizes, 64 to 256, take the true slopes in turn. Of every
cell it is promised that the 95 % interval of the slope holds the truth in at least 93 % of the sweeps that have one, and is in
the median at most 0.6 as wide as that of the estimator before, whose half widths old_half_widths.csv has from the same sweeps.
Cells are marked: * covers less, w wider. Then how often a verdict is wrong, either way, where the true slope is exactly at the
limit of ±0.25: by rights in 5 %.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from spectral_mup.analysis.loss_curve import LossCurve
from spectral_mup.analysis.verdict import judge_curves

SIZES = (64, 128, 256)
SLOPES = (0.0, 0.1, -0.1, 0.25, -0.25, -1.0)
GRIDS = ("octave", "half")
SEEDS = (1, 2, 3)
FOLDER = Path(__file__).parent.parent / "sweeps" / "results" / "coverage"


@dataclass(frozen=True)
class Scenario:
    """Curves of three sizes around known optima; d: octaves from the optimum."""

    curvature: float = 0.06  # nats/octave² at the smallest size
    skew: float = 0.5  # of a linex bowl
    tilt: float = 0.004  # sd over seeds of the slope of a seed's loss (nats/octave): it moves the seed's optimum
    noise: float = 0.003  # sd of a run (nats)
    growth: float = 1.0  # curvature of each size over that of the size before
    skew_growth: float = 1.0
    pieces: bool = False  # two half parabolas, the right one three times as steep, in place of the linex bowl
    wall: float = 0.0  # nats added where d > 1.2
    diverges: float = 0.0  # share of runs that diverge at 0.6 < d ≤ 1.2; all do beyond
    shared: float = 0.0  # share of the tilt's variance that a seed has in common at all sizes
    noise_growth: float = 0.0  # log2 of the noise grows by this per octave

    def loss(self, d: np.ndarray, size: int) -> np.ndarray:
        """Expected loss over the optimum's, d octaves from it; `size`: 0, 1, 2."""
        a, k = self.curvature * self.growth**size, self.skew * self.skew_growth**size
        if self.pieces:
            loss = a * np.where(d < 0, 0.6, 1.9) * d**2
        else:
            loss = a * 2 / k**2 * (np.expm1(np.minimum(k * d, 6)) - k * d)
        return loss + self.wall * (d > 1.2)


SCENARIOS = {
    "easy": Scenario(),
    "flat": Scenario(curvature=0.02, skew=0.6, noise=0.004),
    "noisy": Scenario(curvature=0.05, skew=0.6, tilt=0.01, noise=0.01),
    "asymmetric": Scenario(pieces=True, tilt=0.005, noise=0.004),
    "steep wall": Scenario(skew=1.5, wall=0.3, tilt=0.005, noise=0.004),
    "one lr diverges": Scenario(diverges=0.4),
    "curvature falls": Scenario(growth=0.5, tilt=0.005, noise=0.004),
    "curvature rises": Scenario(curvature=0.02, skew=0.6, growth=2.0, tilt=0.005, noise=0.004),
    "skew rises": Scenario(growth=0.7, skew_growth=1.5, tilt=0.005, noise=0.004),
    "seeds share tilt": Scenario(tilt=0.006, shared=0.5),
    "noise grows": Scenario(noise=0.004, noise_growth=1.0),
}


@dataclass(frozen=True)
class Sweep:
    """One simulated sweep: of every size its log2 lrs and losses (NaN: not run, inf: diverged), and what is true of it."""

    curves: dict[int, tuple[np.ndarray, np.ndarray]]
    slope: float
    optima: dict[int, float]
    regret: float


def sweeps(scenario: str, grid: str, seeds: int, n: int, slopes: Sequence[float] = SLOPES) -> Iterator[Sweep]:
    """Simulate n sweeps of a cell, always the same."""
    rng = np.random.default_rng([list(SCENARIOS).index(scenario), GRIDS.index(grid), seeds])
    for i in range(n):
        yield simulate(SCENARIOS[scenario], grid, seeds, slopes[i % len(slopes)], rng)


def simulate(scenario: Scenario, grid: str, seeds: int, slope: float, rng: np.random.Generator) -> Sweep:
    """One sweep on points half an octave apart; or an octave, with half octaves beside the best where a neighbour is a wall."""
    first, shared_S = -8 + rng.uniform(-0.5, 0.5), rng.normal(0, 1, seeds)
    curves, optima = {}, {}
    for j, size in enumerate(SIZES):
        best = optima[size] = first + slope * j
        own_S = np.sqrt(scenario.shared) * shared_S + np.sqrt(1 - scenario.shared) * rng.normal(0, 1, seeds)
        tilt_S, level_S = scenario.tilt * own_S, 2.0 + rng.normal(0, 0.01, seeds)

        def train(x: np.ndarray) -> np.ndarray:
            d = x - best  # noqa: B023
            noise = rng.normal(0, 1, (seeds, len(x))) * scenario.noise * 2 ** (scenario.noise_growth * d)
            loss = level_S[:, None] + scenario.loss(d, j) + tilt_S[:, None] * d + noise  # noqa: B023
            diverged = (rng.random(loss.shape) < scenario.diverges) & (d > 0.6) | (scenario.diverges > 0) & (d > 1.2)
            return np.where(diverged, np.inf, loss)

        if grid == "half":
            x = np.round(best * 2) / 2 + np.array([-2, -1, -0.5, 0, 0.5, 1])
            y = train(x)
        else:
            x = np.round(best) + np.arange(-2.0, 3)
            y = train(x)
            mean = y.mean(0)
            at = int(mean[1:4].argmin()) + 1
            if (mean[[at - 1, at + 1]] > 1.05 * mean[at]).any():
                more = x[at] + np.array([-0.5, 0.5])
                x, y = np.append(x, more), np.hstack([y, train(more)])
                x, y = np.sort(x), y[:, np.argsort(x)]
        curves[size] = x, y
    regret = float(scenario.loss(np.array(-2 * slope), len(SIZES) - 1)) / 2.0
    return Sweep(curves, slope, optima, regret)


def cell(scenario: str, grid: str, seeds: int, n: int, slopes: Sequence[float] = SLOPES) -> dict[str, float | str]:
    """Judge n sweeps of a cell: shares in percent, half widths in octaves per doubling, regret in percent of the loss."""
    found = []
    for sweep in sweeps(scenario, grid, seeds, n, slopes):
        judged = judge_curves({size: LossCurve(*curve) for size, curve in sweep.curves.items()}, SIZES[0])
        e = judged.estimate
        whole = len(e.optima) == len(SIZES) and all(o.fitted for o in e.optima.values())
        own = np.mean([o.lo <= sweep.optima[size] <= o.hi for size, o in e.optima.items()])
        regret = e.regret_lo <= sweep.regret <= (np.inf if e.regret_at_least else e.regret_hi)
        covers, predicted = e.slope_lo <= sweep.slope <= e.slope_hi, np.nan
        if whole:
            _, lo, hi = e.predict(2 * SIZES[-1])
            predicted = lo <= sweep.optima[SIZES[-1]] + sweep.slope <= hi
        wrong = {"drifts": abs(sweep.slope) <= 0.25, "transfers": abs(sweep.slope) >= 0.25}.get(judged.verdict, False)
        half = (e.slope_hi - e.slope_lo) / 2
        found.append((whole, covers, half, e.slope - sweep.slope, own, regret, predicted, wrong))
    table = np.array(found, float)
    seen = table[table[:, 0] > 0]
    covers, own, regret, predicted = 100 * np.nanmean(seen[:, [1, 4, 5, 6]], axis=0)
    return {
        "scenario": scenario, "grid": grid, "seeds": seeds, "sweeps": n, "no_interval": 100 - 100 * table[:, 0].mean(),
        "coverage": covers, "half_width": float(np.median(seen[:, 2])), "bias": seen[:, 3].mean(),
        "own": own, "regret": regret, "prediction": predicted, "false_verdicts": 100 * table[:, 7].mean(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=600)
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), metavar="SCENARIO")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    cells = [(scenario, grid, seeds) for scenario in options.only for grid in GRIDS for seeds in SEEDS]
    table = pd.DataFrame([cell(*key, options.sweeps) for key in cells])
    before = pd.read_csv(FOLDER / "old_half_widths.csv")[["scenario", "grid", "seeds", "half_width"]]
    table = table.merge(before.set_axis(["scenario", "grid", "seeds", "before"], axis=1), how="left")
    table["ratio"] = table["half_width"] / table["before"]
    table["mark"] = np.where(table["coverage"] < 93, "*", "") + np.where(table["ratio"] > 0.6, "w", "")
    print(
        table.round({name: 3 if name in ("half_width", "before", "bias", "ratio") else 1 for name in table}).to_string(
            index=False
        )
    )
    limits = pd.DataFrame([cell(*key, options.sweeps, slope) for key in cells for slope in ((0.25,), (-0.25,))])
    limits["slope"] = [0.25, -0.25] * len(cells)
    wrong = limits.pivot(index="scenario", columns=["grid", "seeds", "slope"], values="false_verdicts").reindex(options.only)
    print("\nwrong verdicts (%) where the true slope is at the limit\n" + wrong.round(1).to_string())
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "coverage.csv", index=False, float_format="%.4g")
    limits[["scenario", "grid", "seeds", "slope", "sweeps", "coverage", "false_verdicts"]].to_csv(
        options.out / "limits.csv", index=False, float_format="%.4g"
    )


if __name__ == "__main__":
    main()
