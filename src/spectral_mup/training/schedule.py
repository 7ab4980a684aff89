"""The lr over the steps of a run."""

import math


def schedule_factor(step: int, *, steps: int, warmup: int, schedule: str, final_lr: float) -> float:
    """Return a step's lr (from 0) as a fraction of the peak: linear warmup, then constant, linear or cosine to `final_lr`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    shape = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_lr + (1.0 - final_lr) * shape
