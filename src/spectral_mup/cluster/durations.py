"""How long runs take: as earlier runs like them took, else by a guess. Imports no torch."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize

GUESS = {"cpu": (1.5, 120e9), "cuda": (0.7, 100e12)}
"""Seconds to begin and end a run, and FLOP/s: one core of an AMD EPYC in the default sweep, and one worker on an H200."""


class Durations:
    """Seconds that one worker needs for a run.

    It is a guess, times the median factor by which earlier runs exceeded theirs: those of the same shape, else all.
    """

    def __init__(self, device: str) -> None:
        self.device = device  # 'cpu' or 'cuda'
        self._factors: defaultdict[tuple[int, int, int], list[float]] = defaultdict(list)

    def learn(self, run: RunConfig, seconds: float) -> None:
        """Learn from a run that took this many seconds."""
        self._factors[run.shape].append(seconds / self._guess(run))

    def seconds(self, run: RunConfig) -> float:
        """Return the expected seconds of a run; a mere guess before it has learned from any."""
        factors = self._factors.get(run.shape) or [factor for of_shape in self._factors.values() for factor in of_shape]
        return self._guess(run) * (statistics.median(factors) if factors else 1)

    def total(self, runs: Iterable[tuple[RunConfig, float]]) -> float:
        """Return the expected seconds of runs, each given as (a run, how many like it)."""
        return sum(n * self.seconds(run) for run, n in runs)

    def _guess(self, run: RunConfig) -> float:
        start, flops = GUESS[self.device]
        return start + 6 * run.cost / flops

    @property
    def run_count(self) -> int:
        """Number of runs learned from."""
        return sum(map(len, self._factors.values()))

    @property
    def source(self) -> str:
        return f"from {pluralize(self.run_count, 'earlier run')}" if self.run_count else "a guess until a run has ended"


def measured_durations(runs_dir: Path, runs: Iterable[RunConfig], device: str) -> Durations:
    """Return durations learned from those of the runs that are done on this kind of device."""
    durations = Durations(device)
    for run in runs:
        timing = RunFolder(runs_dir, run.run_id).peek("timing.json")
        if timing and timing["device"] == device and timing["steps"] > 0:
            durations.learn(run, timing["seconds"] / timing["steps"] * run.train.steps)
    return durations
