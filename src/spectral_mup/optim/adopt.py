"""ADOPT: Adam whose second moment is always that of earlier gradients (arXiv 2411.02853)."""

import torch
from torch import Tensor

from spectral_mup.optim.stacked import Group, StackedOptimizer, State


class ADOPT(StackedOptimizer):
    """U = m with m ← β1·m + (1 − β1)·clip(G/max(√v, ε), ±t^(1/4)) and only then v ← β2·v + (1 − β2)·G².

    The first call sets v ← G² and takes no step and no decay; t counts from 1 at the second. No bias correction. Decay is
    decoupled. `clip=False` leaves the clip out, as in the paper's first version.
    """

    matrices_only, capturable = False, True

    def __init__(self, params, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.9999), eps=1e-6, clip=True) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, clip=clip))

    def init_state(self, weight: Tensor, group: Group) -> State:
        return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        return {"bound": (step - 1) ** 0.25}

    def steady(self, group: Group, step: int) -> bool:
        return step > 1

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor | None:
        (beta1, beta2), m, v = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        if step == 1:
            v.addcmul_(gradient, gradient)
            return None
        normalised = v.sqrt().clamp_min_(group["eps"])
        torch.div(gradient, normalised, out=normalised)
        if group["clip"]:
            normalised.clamp_(-group["bound"], group["bound"])
        m.lerp_(normalised, 1.0 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        return m
