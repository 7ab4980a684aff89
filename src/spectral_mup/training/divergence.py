"""When a run counts as diverged."""

import math


def divergence(losses: list[float], factor: float, patience: int, since: int = 0) -> int | None:
    """Return the step (from 1) at which a run diverged, or None.

    Diverged is not finite, or above factor·losses[0] for `patience` steps in a row. Steps up to `since` are known not to have
    been the one.
    """
    high, first = 0, max(0, since - patience)
    for step, loss in enumerate(losses[first:], first + 1):
        if not math.isfinite(loss):
            return step
        high = high + 1 if loss > factor * losses[0] else 0
        if high >= patience:
            return step
    return None
