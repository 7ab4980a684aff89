"""Shampoo: the gradient whitened from both sides (arXiv 1802.09568; moving averages as in arXiv 2002.09018)."""

import torch
from torch import Tensor

from spectral_mup.optim.linalg import damped_power, eigh
from spectral_mup.optim.stacked import Group, Stack, StackedOptimizer, State, bias_corrections


class Shampoo(StackedOptimizer):
    """U = L^(-1/4)·M·R^(-1/4), L and R the averages of G·Gᵀ and Gᵀ·G, M that of G. ‖U‖₂ is of order 1 for every shape.

    Args:
        accumulate: "ema": L ← β2·L + (1 − β2)·G·Gᵀ over 1 − β2^t; "sum": L ← L + G·Gᵀ, whose steps decay like t^(-1/2).
        betas: β1 of M, over 1 − β1^t (0: M = G), and β2.
        eps: Damping relative to the largest eigenvalue of L and of R.
        interval: Steps between two computations of the roots, by eigh in float64. They are taken at every step as long as L and
            R are younger than their window 1/(1 − β2): a gradient that brings directions which the first few had not, met by
            their roots, makes ‖U‖₂ of order 100.
        grafting: "none", or "adam": U times ‖Adam's direction‖_F/‖U‖_F, of the same β1 and β2; its spectral norm then grows
            with √(fan_out·fan_in) over the stable rank of U, so the size law is another.
    """

    capturable = True

    def __init__(
        self, params, lr=0.02, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-6, accumulate="ema", interval=1, grafting="none"
    ) -> None:
        defaults = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        super().__init__(params, defaults | dict(accumulate=accumulate, interval=interval, grafting=grafting))

    def check(self, group: Group) -> None:
        super().check(group)
        self.check_option(group, "accumulate", "ema or sum", ("ema", "sum").__contains__)
        self.check_option(group, "grafting", "none or adam", ("none", "adam").__contains__)
        self.check_option(group, "interval", "at least 1", lambda x: x >= 1)

    def init_state(self, weight: Tensor, group: Group) -> State:
        n, fan_out, fan_in = weight.shape
        sides = {"left": fan_out, "left_root": fan_out, "right": fan_in, "right_root": fan_in}
        state = {name: weight.new_zeros(n, side, side) for name, side in sides.items()}
        state["exp_avg"] = torch.zeros_like(weight)
        return state | ({"exp_avg_sq": torch.zeros_like(weight)} if group["grafting"] == "adam" else {})

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        return bias_corrections(group, step)

    def steady(self, group: Group, step: int) -> bool:
        """Return whether the roots stay unchanged."""
        return step * (1.0 - group["betas"][1]) > 1.0 and step % group["interval"] != 0

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor:
        beta1, beta2 = group["betas"]
        averaged, refresh = group["accumulate"] == "ema", not self.steady(group, step)
        for side, gram in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
            state[side].mul_(beta2 if averaged else 1.0).add_(gram, alpha=1.0 - beta2 if averaged else 1.0)
            if refresh:
                mean = state[side] / group["correction2"] if averaged else state[side]
                state[f"{side}_root"].copy_(damped_power(mean, -0.25, group["eps"]))
        m = state["exp_avg"].lerp_(gradient, 1.0 - beta1) / group["correction1"]
        u = state["left_root"] @ m @ state["right_root"]
        if group["grafting"] == "adam":
            v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2) / group["correction2"]
            adam = m / v.sqrt_().clamp_min_(torch.finfo(v.dtype).tiny)
            norm = u.norm(dim=(-2, -1), keepdim=True)
            u = u * (adam.norm(dim=(-2, -1), keepdim=True) / norm.clamp_min(torch.finfo(v.dtype).tiny))
        return u

    def diagnose(self, stack: Stack) -> dict[str, Tensor]:
        """Describe the eigenvalues λ of L ("left") and R ("right"), bias-corrected.

        Returns:
            SIDE_largest: λ_max.
            SIDE_median: The median over λ_max.
            SIDE_rank: Effective rank Σλ/λ_max.
            SIDE_damped: Share of the λ below the damping eps·λ_max.
        """
        beta2, told = stack.group["betas"][1], {}
        scale = 1.0 - beta2**stack.step if stack.group["accumulate"] == "ema" else 1.0
        for side in ("left", "right"):
            values = eigh(stack.state[side] / scale)[0].clamp_min(0.0)
            relative = values / values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
            told[f"{side}_largest"] = values[:, -1]
            told[f"{side}_median"] = relative.median(-1).values
            told[f"{side}_rank"] = relative.sum(-1)
            told[f"{side}_damped"] = (relative < stack.group["eps"]).double().mean(-1)
        return told
