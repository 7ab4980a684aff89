"""Which runs share a task, and how long it will take: measured where earlier runs tell, else unknown. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral_mup.cluster.progress import pluralize
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder

UNKNOWN_PACK = 4  # runs for each worker of a task while nobody knows how long one takes


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a run from what earlier ones took on the same kind of device; `runs` is how many told."""

    of_shape: dict[tuple[int, int], float]
    per_cost: float | None
    runs: int

    def seconds(self, point: RunConfig) -> float | None:
        """Expected seconds of one run on one worker: from runs of its width and depth, else by cost; None if unknown."""
        rate = self.of_shape.get(_shape(point), self.per_cost)
        return None if rate is None else rate * point.cost

    def total(self, points: Iterable[RunConfig]) -> float | None:
        """Sum over runs; None if any is unknown."""
        known = [self.seconds(p) for p in points]
        return None if None in known else sum(x for x in known if x is not None)

    @property
    def source(self) -> str:
        return f"from {pluralize(self.runs, 'earlier run')}" if self.runs else "unknown"


def estimate(runs: Path, points: Iterable[RunConfig], device: str) -> Estimate:
    """What the runs among `points` that are done tell of time on this kind of device ('cpu' or 'cuda')."""
    rates: dict[tuple[int, int], list[float]] = {}
    for point in points:
        timing = RunFolder(runs, point.run_id).timing()
        if timing and timing["device"] == device and timing["steps"] > 0:
            seconds = timing["seconds"] / timing["steps"] * point.train.steps
            rates.setdefault(_shape(point), []).append(seconds / point.cost)
    every = [rate for some in rates.values() for rate in some]
    of_shape = {shape: statistics.median(some) for shape, some in rates.items()}
    return Estimate(of_shape, statistics.median(every) if every else None, len(every))


def pack(points: Sequence[RunConfig], expected: Estimate, seconds: float, workers: int) -> list[list[RunConfig]]:
    """Cut runs into packs, each of one width and depth, that `workers` processes train in about `seconds`.

    Packs of a shape are of equal length, give or take one run; the largest shapes come first.
    """
    shapes: dict[tuple[int, int], list[RunConfig]] = {}
    for point in points:
        shapes.setdefault(_shape(point), []).append(point)
    packs = []
    for some in sorted(shapes.values(), key=lambda ps: ps[0].cost, reverse=True):
        each = expected.seconds(some[0])
        size = UNKNOWN_PACK * workers if each is None else max(workers, int(seconds * workers / max(each, 1e-3)))
        count = -(-len(some) // size)
        packs += [some[i * len(some) // count : (i + 1) * len(some) // count] for i in range(count)]
    return packs


def _shape(point: RunConfig) -> tuple[int, int]:
    return point.curve.width, point.curve.depth
