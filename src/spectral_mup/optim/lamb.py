"""LAMB: Adam's direction rescaled to the norm of each weight (arXiv 1904.00962, with its bias correction)."""

import torch
from torch import Tensor

from spectral_mup.optim.stacked import Group, Stack, StackedOptimizer, State, bias_corrections


class LAMB(StackedOptimizer):
    """U = (‖W‖_F/‖u‖_F)·u with u = r + λ·W as published, r = m̂/(√v̂ + ε); with `decoupled`, u = r and decay acts on its own.

    Inside the trust ratio the shrink of a step is lr·λ·‖W‖/‖u‖; decoupled it is lr·λ, whatever the norms. The ratio is per
    tensor, unbounded, and 1 where ‖W‖ = 0 or ‖u‖ = 0. Vectors never take it, and nothing does with `trust=False`: both then
    train by Adam. A tensor whose init is zero keeps an Adam-like norm: leave the ratio out for it.
    """

    matrices_only, capturable = False, True

    def __init__(self, params, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-6, trust=True, decoupled=True) -> None:
        defaults = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        super().__init__(params, defaults | dict(trust=trust, decoupled=decoupled))

    def init_state(self, weight: Tensor, group: Group) -> State:
        state = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        return state | ({"trust_ratio": weight.new_ones(len(weight))} if _trusts(weight, group) else {})

    def decay(self, group: Group) -> float:
        return group["weight_decay"] if group["decoupled"] else 0.0

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        return bias_corrections(group, step)

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor:
        beta1, beta2 = group["betas"]
        m = state["exp_avg"].lerp_(gradient, 1.0 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        u = (m / group["correction1"]).div_((v / group["correction2"]).sqrt_().add_(group["eps"]))
        if not group["decoupled"]:
            u.add_(weight, alpha=group["weight_decay"])
        if not _trusts(weight, group):
            return u
        dims = tuple(range(1, weight.ndim))
        weight_norm, u_norm = (torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (weight, u))
        ratio = torch.where((weight_norm > 0) & (u_norm > 0), weight_norm / u_norm, 1.0)
        state["trust_ratio"].copy_(ratio.flatten())
        return u.mul_(ratio)

    def diagnose(self, stack: Stack) -> dict[str, Tensor]:
        """Return trust_ratio, ‖W‖_F/‖u‖_F as it was applied, of tensors that take it."""
        return {"trust_ratio": stack.state["trust_ratio"]} if "trust_ratio" in stack.state else {}


def _trusts(weight: Tensor, group: Group) -> bool:
    return group["trust"] and weight.ndim > 2  # a stack of vectors has two axes
