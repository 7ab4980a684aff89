"""Which runs share a task, and how long it will take, measured on earlier runs if there are any. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize

UNKNOWN_PACK = 4  # runs for each worker of a task while their duration is unknown


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a run from `runs` earlier ones on the same kind of device: per unit of cost, by shape and overall."""

    of_shape: dict[tuple[int, int], float]
    per_cost: float | None
    runs: int

    def seconds(self, run: RunConfig) -> float | None:
        """Expected seconds of one run on one worker: from runs of its width and depth, else by cost; None if unknown."""
        rate = self.of_shape.get(_shape(run), self.per_cost)
        return None if rate is None else rate * run.cost

    def total(self, runs: Iterable[RunConfig]) -> float | None:
        """Sum over runs; None if any is unknown."""
        known = [self.seconds(run) for run in runs]
        return None if None in known else sum(x for x in known if x is not None)

    @property
    def source(self) -> str:
        return f"from {pluralize(self.runs, 'earlier run')}" if self.runs else "unknown"


def estimate(runs_dir: Path, runs: Iterable[RunConfig], device: str) -> Estimate:
    """Durations measured on those of the runs that are done on this kind of device ('cpu' or 'cuda')."""
    rates: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        timing = RunFolder(runs_dir, run.run_id).read("timing.json")
        if timing and timing["device"] == device and timing["steps"] > 0:
            seconds = timing["seconds"] / timing["steps"] * run.train.steps
            rates.setdefault(_shape(run), []).append(seconds / run.cost)
    every = [rate for of_shape in rates.values() for rate in of_shape]
    medians = {shape: statistics.median(of_shape) for shape, of_shape in rates.items()}
    return Estimate(medians, statistics.median(every) if every else None, len(every))


def pack(runs: Sequence[RunConfig], expected: Estimate, seconds: float, workers: int) -> list[list[RunConfig]]:
    """Split runs into packs, each of one width and depth, that `workers` processes train in about `seconds`.

    Packs of a shape are of equal length, give or take one run; the largest shapes come first.
    """
    shapes: dict[tuple[int, int], list[RunConfig]] = {}
    for run in runs:
        shapes.setdefault(_shape(run), []).append(run)
    packs = []
    for same_shape in sorted(shapes.values(), key=lambda runs: runs[0].cost, reverse=True):
        each = expected.seconds(same_shape[0])
        size = UNKNOWN_PACK * workers if each is None else max(workers, int(seconds * workers / max(each, 1e-3)))
        count = -(-len(same_shape) // size)
        packs += [same_shape[i * len(same_shape) // count : (i + 1) * len(same_shape) // count] for i in range(count)]
    return packs


def _shape(run: RunConfig) -> tuple[int, int]:
    return run.curve.width, run.curve.depth
