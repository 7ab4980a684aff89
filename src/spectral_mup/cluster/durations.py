"""How long runs take: measured on those that are done, or guessed. Imports no torch."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize


@dataclass(frozen=True)
class Durations:
    """Expected seconds of a run from `runs` earlier ones on the same kind of device: per unit of cost, by shape and overall."""

    of_shape: dict[tuple[int, int, int], float]
    per_cost: float | None
    runs: int

    def seconds(self, run: RunConfig) -> float | None:
        """Expected seconds of one run on one worker: from runs of its shape, else by cost; None if unknown."""
        rate = self.of_shape.get(run.shape, self.per_cost)
        return None if rate is None else rate * run.cost

    def total(self, runs: Iterable[RunConfig]) -> float | None:
        """Sum over runs; None if any is unknown."""
        known = [self.seconds(run) for run in runs]
        return None if None in known else sum(x for x in known if x is not None)

    @property
    def source(self) -> str:
        return f"from {pluralize(self.runs, 'earlier run')}" if self.runs else "unknown"


def measured_durations(runs_dir: Path, runs: Iterable[RunConfig], device: str) -> Durations:
    """Durations measured on those of the runs that are done on this kind of device ('cpu' or 'cuda')."""
    rates: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for run in runs:
        timing = RunFolder(runs_dir, run.run_id).peek("timing.json")
        if timing and timing["device"] == device and timing["steps"] > 0:
            seconds = timing["seconds"] / timing["steps"] * run.train.steps
            rates[run.shape].append(seconds / run.cost)
    every = [rate for of_shape in rates.values() for rate in of_shape]
    medians = {shape: statistics.median(of_shape) for shape, of_shape in rates.items()}
    return Durations(medians, statistics.median(every) if every else None, len(every))


def guessed_seconds(run: RunConfig, device: str) -> float:
    """Rough seconds of a run that nothing like was measured of: seconds to begin and end it, and 6 FLOP per unit of cost.

    As one core of an AMD EPYC trained the default sweep, and one worker of an H200.
    """
    start, flops = {"cpu": (1.5, 120e9), "cuda": (0.7, 100e12)}[device]
    return start + 6 * run.cost / flops
