"""The search for the best value of one size: by octaves, finer beside a wall.

A replay from the start values and the losses known so far: in whatever order results come in, the same losses give the same
values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spectral_mup.analysis.loss_curve import WALL, worse_by

HALF = 0.5  # octaves: beside a wall, an octave is too far for the shape of the bowl to be seen
Loss = Callable[[float], float | None]
Affordable = Callable[[list[float], int], list[float]]
"""The wanted values that may still be trained, given how many are wanted already."""


@dataclass(frozen=True)
class Bracket:
    """Values (log2) that a curve wants so far, and the best of them once no more are wanted."""

    wanted: list[float]
    bracketed: bool
    best: float | None


def bracket(start: Sequence[float], loss: Loss, affordable: Affordable, resolution: float) -> Bracket:
    """Bracket the best log2 value, then refine around it: a deterministic replay from `start` and the known losses.

    A best point on an edge wants the next octave beyond it. An interior one wants the middles of its two gaps until
    both are at `resolution`, or at half an octave where the neighbour is a wall: over 5 % worse, or diverged (inf), which is
    worse than any other and brackets. Ends where none of these is `affordable`.
    """
    wanted = set(start)
    while True:
        known = {x: value for x in wanted if (value := loss(x)) is not None}
        if len(known) < len(wanted):
            return Bracket(sorted(wanted), False, None)
        best = min(known, key=lambda x: (known[x], x))
        below, above = [x for x in wanted if x < best], [x for x in wanted if x > best]
        bracketed = bool(below and above) and math.isfinite(known[best])
        if not math.isfinite(known[best]):
            new = {min(wanted) - 1}
        elif not bracketed:
            new = {best - 1} if not below else {best + 1}
        else:
            sides = ((side, near, abs(near - best)) for side, near in ((-1, max(below)), (1, min(above))))
            walled = worse_by(WALL, known[best])
            steps = ((side, gap, min(resolution, HALF) if known[near] > walled else resolution) for side, near, gap in sides)
            new = {best + side * max(math.floor(gap / 2 / step) * step, step) for side, gap, step in steps if gap > step}
        new = set(affordable(sorted(new), len(wanted)))
        if not new:
            return Bracket(sorted(wanted), bracketed, best)
        wanted |= new
