"""A sweep as a declaration: which Points it has, which are done, which learning rates come next. Imports no torch.

A plan is a pure function of the config and the results so far. Whoever computes it, in whatever order results came in,
gets the same Points; so a launcher may die at any moment and the next one goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spectral_mup.config.schema import NULL_IS_ABSENT, TEAM_KEYS, Config
from spectral_mup.runs.run_folder import RunFolder, run_id

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Curve:
    """One loss-against-lr curve of a sweep."""

    rule: str
    width: int
    depth: int


@dataclass(frozen=True)
class Point:
    """One training run: frozen, and named by the hash of everything that decides its numbers."""

    curve: Curve
    log2_lr: float
    seed: int
    science: Mapping[str, Any] = field(compare=False, repr=False)
    run_id: str = ""


@dataclass(frozen=True)
class Plan:
    """Points a sweep has so far, and those to do now. `open` curves may ask for more once these are done."""

    points: list[Point]
    todo: list[Point]
    open: list[Curve]
    unbracketed: list[Curve]


Outcome = Callable[[Point], float | None]
"""Loss of a Point that is done (inf if it diverged), None if it is not."""


class Sweep:
    """The Points of a config; `fingerprint` identifies the content of its corpus."""

    def __init__(self, config: Config, fingerprint: str) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self._points: dict[tuple[Curve, float, int], Point] = {}

    def curves(self) -> list[list[Curve]]:
        """Chains of curves, narrow to wide, each starting its lr search at the optimum of the one before."""
        s = self.config.sweep
        sizes = [(width, depth) for depth in sorted(s.depth) for width in sorted(s.width)]
        return [[Curve(rule, width, depth) for width, depth in sizes] for rule in self.config.rule]

    def point(self, curve: Curve, log2_lr: float, seed: int) -> Point:
        key = (curve, log2_lr, seed)
        if key not in self._points:
            science = self._science(curve, log2_lr, seed)
            self._points[key] = Point(curve, log2_lr, seed, science, run_id(science))
        return self._points[key]

    def _science(self, curve: Curve, log2_lr: float, seed: int) -> dict[str, Any]:
        """All that decides a run's numbers and nothing else: no path, host, worker or device count, or clock."""
        c = self.config
        return {
            "schema_version": SCHEMA_VERSION,
            "model": {k: v for k, v in asdict(c.model).items() if v is not None or k not in NULL_IS_ABSENT},
            "width": curve.width,
            "depth": curve.depth,
            "base_width": c.sweep.base_width,
            "base_depth": c.sweep.base_depth,
            "optimizer": asdict(c.optimizer),
            "rule": {"name": curve.rule} | asdict(c.rule[curve.rule]),
            "data": {"source": c.data.source, "vocab_size": c.data.vocab_size, "content": self.fingerprint},
            "train": {k: v for k, v in asdict(c.train).items() if k not in TEAM_KEYS},
            "probe": asdict(c.probe),
            "log2_lr": log2_lr,
            "seed": seed,
        }

    def plan(self, outcome: Outcome) -> Plan:
        """Replay the search with the results so far. Points that `outcome` does not know are to do, largest first."""
        lr, grid = self.config.lr, self.config.sweep.lr
        points, todo, open_curves, unbracketed = [], [], [], []
        for chain in self.curves():
            base_best: float | None = None
            anchor: float | None = None
            for curve in chain:
                start = (
                    grid if anchor is None else [anchor - 1, anchor, anchor + 1, *([] if base_best is None else [base_best])]
                )

                def loss(log2_lr: float, curve: Curve = curve) -> float | None:
                    seeds = [outcome(self.point(curve, log2_lr, seed)) for seed in self.config.sweep.seed]
                    known = [x for x in seeds if x is not None]
                    return sum(known) / len(known) if len(known) == len(seeds) else None

                search = search_lrs(start, loss, lr.adaptive, lr.resolution, lr.budget)
                new = [self.point(curve, x, seed) for x in search.wanted for seed in self.config.sweep.seed]
                points += new
                todo += [p for p in new if outcome(p) is None]
                if not search.finished:
                    open_curves.append(curve)
                    if lr.adaptive:
                        break  # the next width's search starts where this one ends
                elif not search.bracketed:
                    unbracketed.append(curve)
                if lr.adaptive and search.finished:
                    anchor = search.best
                    base_best = anchor if base_best is None else base_best
        todo.sort(key=cost, reverse=True)
        return Plan(points, todo, open_curves, unbracketed)

    def remaining_curves(self, plan: Plan) -> int:
        """Curves that the plan has not reached yet."""
        seen = {p.curve for p in plan.points}
        return sum(curve not in seen for chain in self.curves() for curve in chain)


@dataclass(frozen=True)
class Search:
    """Learning rates (log2) that a curve wants so far; finished when no more will be wanted."""

    wanted: list[float]
    finished: bool
    bracketed: bool
    best: float | None


def search_lrs(
    start: list[float], loss: Callable[[float], float | None], adaptive: bool, resolution: float, budget: int
) -> Search:
    """Bracket the best log2 lr, then refine around it: a deterministic replay from `start` and the known losses.

    The best point on an edge asks for the next octave beyond it; an interior one asks for the middles of its two gaps until
    both are at `resolution`. A diverged run (loss inf) is worse than any other and brackets. Stops at `budget` points.
    """
    wanted = set(start)
    while True:
        losses = {x: loss(x) for x in wanted}
        if any(v is None for v in losses.values()):
            return Search(sorted(wanted), False, False, None)
        known = {x: v for x, v in losses.items() if v is not None}
        best = min(known, key=lambda x: (known[x], x))
        below = [x for x in wanted if x < best]
        above = [x for x in wanted if x > best]
        bracketed = bool(below and above) and math.isfinite(known[best])
        if not adaptive or len(wanted) >= budget:
            return Search(sorted(wanted), True, bracketed, best)
        if not math.isfinite(known[best]):
            new = {min(wanted) - 1}
        elif not bracketed:
            new = {best - 1} if not below else {best + 1}
        else:
            new = set()
            for side, gap in ((-1, best - max(below)), (1, min(above) - best)):
                if gap > resolution:
                    new.add(best + side * max(math.floor(gap / 2 / resolution) * resolution, resolution))
        new = set(sorted(new)[: budget - len(wanted)])
        if not new:
            return Search(sorted(wanted), True, True, best)
        wanted |= new


def cost(point: Point) -> float:
    """Relative cost of a run, about its parameter count times tokens: only ratios between runs mean anything."""
    s = point.science
    per_token = 12 * s["depth"] * s["width"] ** 2 + 2 * 256 * s["width"] + 20_000 * s["depth"]
    return per_token * s["train"]["steps"] * s["train"]["batch_size"] * s["model"]["context"]


def result_reader(runs: Path) -> Outcome:
    """Outcome that reads run folders, each result once. Raises RecordError on a folder that contradicts itself."""
    known: dict[str, float] = {}
    checked: set[str] = set()

    def outcome(point: Point) -> float | None:
        if point.run_id not in known:
            folder = RunFolder(runs, point.run_id)
            if point.run_id not in checked:
                folder.check_config()
                checked.add(point.run_id)
            result = folder.result()
            if result is None:
                return None
            known[point.run_id] = result["val_loss"] if result["status"] == "done" else math.inf
        return known[point.run_id]

    return outcome


def open_sweep(config: Config) -> Sweep:
    """The sweep of a checked config. Raises data.DataError, a ValueError, if its corpus is not here."""
    from spectral_mup.data import fingerprint

    return Sweep(config, fingerprint(config.data.source, config.data.path, config.data.vocab_size))
