"""Which learning rates a curve needs: bracket the best, then refine around it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


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
        known = {x: value for x in wanted if (value := loss(x)) is not None}
        if len(known) < len(wanted):
            return Search(sorted(wanted), False, False, None)
        best = min(known, key=lambda x: (known[x], x))
        below, above = [x for x in wanted if x < best], [x for x in wanted if x > best]
        bracketed = bool(below and above) and math.isfinite(known[best])
        if not math.isfinite(known[best]):
            new = {min(wanted) - 1}
        elif not bracketed:
            new = {best - 1} if not below else {best + 1}
        else:
            gaps = ((side, gap) for side, gap in ((-1, best - max(below)), (1, min(above) - best)) if gap > resolution)
            new = {best + side * max(math.floor(gap / 2 / resolution) * resolution, resolution) for side, gap in gaps}
        new = set(sorted(new)[: max(0, budget - len(wanted))])
        if not adaptive or not new:
            return Search(sorted(wanted), True, bracketed, best)
        wanted |= new
