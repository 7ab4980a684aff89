"""Muon: momentum orthogonalised by Newton–Schulz (github.com/KellerJordan/Muon, arXiv 2502.16982)."""

import torch
from torch import Tensor

from spectral_mup.optim.linalg import newton_schulz
from spectral_mup.optim.stacked import Group, StackedOptimizer, State


class Muon(StackedOptimizer):
    """U = NewtonSchulz(g + μ·b) with b ← μ·b + g (Nesterov), or of b alone. ‖U‖₂ ≈ 1 for every shape.

    No √(fan_out/fan_in) inside: how the lr follows the shape is the rule's business. The iteration runs in `dtype`,
    "float32" or "bfloat16" (or "float64" to test); `eps` is added to the Frobenius norm before dividing by it.
    """

    capturable = True

    def __init__(
        self, params, lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=5, eps=1e-7, dtype="float32"
    ) -> None:
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
        super().__init__(params, defaults | dict(ns_steps=ns_steps, eps=eps, dtype=dtype))

    def check(self, group: Group) -> None:
        super().check(group)
        self.check_option(group, "dtype", "float32, bfloat16 or float64", ("float32", "bfloat16", "float64").__contains__)
        self.check_option(group, "ns_steps", "at least 1", lambda x: x >= 1)

    def init_state(self, weight: Tensor, group: Group) -> State:
        return {"momentum_buffer": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor:
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        x = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        return newton_schulz(x, group["ns_steps"], group["eps"], getattr(torch, group["dtype"]))
