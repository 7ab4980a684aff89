"""Muon: momentum orthogonalised by Newton–Schulz (github.com/KellerJordan/Muon, arXiv 2502.16982)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_mup.optim.linalg import newton_schulz
from spectral_mup.optim.stacked import StackedOptimizer


class Muon(StackedOptimizer):
    """U = NewtonSchulz(g + μ·b) with b ← μ·b + g (Nesterov), or of b alone. ‖U‖₂ ≈ 1 for every shape.

    No √(fan_out/fan_in) inside: how the lr follows the shape is the rule's business. The iteration runs in `dtype`,
    "float32" or "bfloat16" (or "float64" to test); `eps` is added to the Frobenius norm before dividing by it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        eps: float = 1e-7,
        dtype: str = "float32",
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float64"):
            raise ValueError(f"Muon: dtype is float32, bfloat16 or float64, not '{dtype}'")
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
        super().__init__(params, defaults | dict(ns_steps=ns_steps, eps=eps, dtype=dtype))

    def init_state(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, weight: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: int) -> Tensor:
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        x = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        return newton_schulz(x, group["ns_steps"], group["eps"], getattr(torch, group["dtype"]))
