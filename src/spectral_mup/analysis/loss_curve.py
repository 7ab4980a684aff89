"""The losses of one size over the learning rate and seeds: where the best one lies, what brackets it, what a bowl may span."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

WALL = 0.05  # a point whose loss exceeds the best by more than this fraction is a wall: it would bend the bowl
CLIFF = 0.5  # and by more than this: it says no more than that the run went wrong, as one that diverged
REACH = 2.0  # octaves on each side of the best point that a bowl may span
SIDES = "lower", "higher"


def worse_by(fraction: float, loss: float) -> float:
    """Return the loss that is worse by this fraction of its size; a loss may be negative, as a density's."""
    return loss + fraction * abs(loss)


@dataclass(frozen=True, eq=False)
class LossCurve:
    """Losses of one size over lr and seed; NaN: not run, inf: diverged. lrs in log2, ascending; S: seeds, L: lrs.

    An lr is part of the curve if at least half of the seeds that ran it finished; else it is a wall: tested, and worse.
    """

    log2_lrs: np.ndarray
    losses_SL: np.ndarray

    @classmethod
    def of_runs(cls, log2_lrs: ArrayLike, seeds: ArrayLike, losses: ArrayLike) -> Self:
        """Tabulate runs, given by their lrs, seeds and losses in any order; cells without a run are NaN."""
        lrs, lr = np.unique(np.asarray(log2_lrs, float), return_inverse=True)
        own, seed = np.unique(np.asarray(seeds), return_inverse=True)
        losses_SL = np.full((len(own), len(lrs)), np.nan)
        losses_SL[seed, lr] = losses
        return cls(lrs, losses_SL)

    @cached_property
    def finished_SL(self) -> np.ndarray:
        finished_SL, diverged_SL = np.isfinite(self.losses_SL), np.isposinf(self.losses_SL)
        return finished_SL & (finished_SL.sum(0) >= np.maximum(diverged_SL.sum(0), 1))

    @cached_property
    def mean_L(self) -> np.ndarray:
        """Mean loss over the seeds, the level of a seed that lacks some lrs allowed for; NaN where too few finished.

        Levels by least squares of y_sl = level_s + mean_l over the finished runs, summing to zero; not of walls, where a seed
        that almost diverged says nothing of its level elsewhere.
        """
        w_SL = self.finished_SL.astype(float)
        y_SL, n_L = np.where(self.finished_SL, self.losses_SL, 0.0), np.maximum(w_SL.sum(0), 1)
        mean_L = y_SL.sum(0) / n_L
        mean_L = np.where(self.finished_SL.any(0), mean_L, np.nan)
        if w_SL.min(initial=1.0) < w_SL.max(initial=0.0):
            near_SL = w_SL * (mean_L <= worse_by(WALL, np.nanmin(mean_L)))
            laplacian_SS = np.diag(near_SL.sum(1)) - near_SL / n_L @ near_SL.T
            level_S = np.linalg.pinv(laplacian_SS, rcond=1e-9) @ np.nansum(near_SL * (y_SL - mean_L), 1)
            mean_L = mean_L - level_S @ w_SL / n_L
        return mean_L

    @cached_property
    def best(self) -> int | None:
        """Index of the best lr tested; None where none finished."""
        return int(np.nanargmin(self.mean_L)) if self.finished_SL.any() else None

    @property
    def n_seeds(self) -> int:
        return int(self.finished_SL.any(1).sum())

    @cached_property
    def neighbours(self) -> tuple[float, float]:
        """The tested lrs next to the best one, below and above; -inf and inf where there is none."""
        tested = self.log2_lrs[~np.isnan(self.losses_SL).all(0)]
        at = self.log2_lrs[self.best] if self.best is not None else np.nan
        return float(tested[tested < at].max(initial=-np.inf)), float(tested[tested > at].min(initial=np.inf))

    @property
    def open_sides(self) -> tuple[str, ...]:
        """'lower', 'higher': where no lr was tested beyond the best one, so that the optimum may lie anywhere there."""
        return tuple(side for side, lr in zip(SIDES, self.neighbours, strict=True) if np.isinf(lr))

    @cached_property
    def window(self) -> np.ndarray:
        """Indices of the lrs under the bowl."""
        use = np.flatnonzero(np.nan_to_num(self.mean_L, nan=np.inf) <= worse_by(CLIFF, np.nanmin(self.mean_L)))
        x, y = self.log2_lrs[use], self.mean_L[use]
        j = int(y.argmin())
        inside = (y <= worse_by(WALL, y[j])) & (np.abs(x - x[j]) <= REACH)
        outside = np.flatnonzero(~inside)
        lo = int(outside[outside < j].max(initial=-1)) + 1
        hi = int(outside[outside > j].min(initial=len(x))) - 1
        return use[max(min(lo, j - 1), 0) : max(hi, j + 1) + 1]

    @cached_property
    def walled(self) -> tuple[float, ...]:
        """The neighbours of the best lr that diverged or lie over 5 % above it: they hide the bowl's side."""
        if self.best is None:
            return ()
        loss = dict(zip(self.log2_lrs, self.mean_L, strict=True))
        limit = worse_by(WALL, loss[self.log2_lrs[self.best]])
        return tuple(lr for lr in self.neighbours if np.isfinite(lr) and not loss[lr] <= limit)
