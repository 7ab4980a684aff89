"""The lr over the steps of a run, and when a run counts as diverged."""

import math


def schedule_factor(step: int, *, steps: int, warmup: int, schedule: str, final_lr: float) -> float:
    """lr of a step (from 0) as a fraction of the peak: linear warmup, then constant, or linear or cosine to `final_lr`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    shape = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_lr + (1.0 - final_lr) * shape


def divergence(losses: list[float], factor: float, patience: int, since: int = 0) -> int | None:
    """Step (from 1) at which a run diverged, or None: not finite, or above factor·losses[0] for `patience` steps in a row.

    Steps up to `since` are known not to have been the one.
    """
    high, first = 0, max(0, since - patience)
    for step, loss in enumerate(losses[first:], first + 1):
        if not math.isfinite(loss):
            return step
        high = high + 1 if loss > factor * losses[0] else 0
        if high >= patience:
            return step
    return None
