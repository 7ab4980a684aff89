"""Notice a schedule that overwrites the ratios between the groups' learning rates, which are the scaling itself.

A schedule must multiply each group's lr. Of torch's, OneCycleLR (max_lr), CyclicLR (base_lr, max_lr) and SWALR (swa_lr) set one
lr for all groups unless given a list; CosineAnnealingLR and CosineAnnealingWarmRestarts end at one eta_min and
ReduceLROnPlateau at one min_lr unless that is 0 (or, for min_lr, a list). The others multiply.
"""

import warnings
from typing import Any

import torch

TOLERANCE = 0.01  # relative, of lr/base_lr between groups


class ScheduleWatch:
    """A hook before each step that warns once where lr/base_lr, base_lr being a group's peak, differs between groups.

    Groups without a base_lr, those whose lr is a tensor (to read it may wait for a GPU), and compiled steps are not looked at.
    """

    def __init__(self) -> None:
        self.warned = False

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.warned or torch.compiler.is_compiling():
            return
        shares = [share for group in optimizer.param_groups if (share := _share(group)) is not None]
        if shares and max(shares) - min(shares) > TOLERANCE * max(shares):
            self.warned = True
            warnings.warn(
                f"{type(optimizer).__name__}: lr/base_lr is {min(shares):.3g} in one group, {max(shares):.3g} in another, so "
                "a schedule has overwritten the ratios of the scaling; give OneCycleLR and its like a list, as in "
                'max_lr=[g["lr"] for g in optimizer.param_groups], and eta_min=0',
                stacklevel=3,
            )


def _share(group: dict[str, Any]) -> float | None:
    """Return lr/base_lr; None where a group has no base_lr, or its lr is a tensor."""
    lr, peak = group["lr"], group.get("base_lr")
    if not peak or isinstance(lr, torch.Tensor):
        return None
    return float(lr) / peak
