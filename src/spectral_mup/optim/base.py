"""The one step that all matrix optimizers of this package share.

Parameters of equal shape are stacked to (n, fan_out, fan_in); `direction` maps the stacked gradient to the stacked direction U;
one place applies W ← (1 − lr·λ)·W − lr·U. A new optimizer is a subclass with `init_state` and `direction`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StackedOptimizer(torch.optim.Optimizer):
    """Base of optimizers whose direction is a function of a stack of equal-shaped matrices.

    State is kept stacked and shown per parameter as views of the stack, so state_dict, deepcopy and checkpoints see an
    ordinary torch optimizer. Raises ValueError on parameters that are not matrices and on sparse gradients.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._stacks: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"{type(self).__name__} acts on matrices, got a parameter of shape {tuple(p.shape)}; "
                        "give vectors and other tensors to AdamW"
                    )

    def init_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Fresh state for a stack of weights (n, fan_out, fan_in); every tensor keeps the leading axis n."""
        raise NotImplementedError(f"{type(self).__name__}.init_state")

    def direction(self, gradient: Tensor, weight: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: int) -> Tensor:
        """U for stacked gradients and weights (n, fan_out, fan_in), before lr; updates `state` in place; step from 1."""
        raise NotImplementedError(f"{type(self).__name__}.direction")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stacks = {}  # loaded tensors are no views of the old stacks

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            group["step"] = group.get("step", 0) + 1
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise ValueError(f"{type(self).__name__} does not accept sparse gradients")
                    by_shape.setdefault((index, *p.shape), []).append(p)
            for key, params in by_shape.items():
                weight = torch.stack([p.detach() for p in params])
                gradient = torch.stack([p.grad for p in params])  # type: ignore[misc]
                state = self._stacked_state(key, params, weight)
                u = self.direction(gradient, weight, state, group, group["step"]).to(weight.dtype)
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
                torch._foreach_add_(params, list(u.unbind(0)), alpha=-group["lr"])  # pyright: ignore[reportPrivateImportUsage]
        return loss

    def _stacked_state(self, key: tuple[int, ...], params: list[Tensor], weight: Tensor) -> dict[str, Tensor]:
        stacked = self._stacks.get(key)
        if stacked is not None and all(len(t) == len(params) for t in stacked.values()):
            return stacked
        fresh = self.init_state(weight)
        for name, tensor in fresh.items():
            for i, p in enumerate(params):
                if name in self.state[p]:
                    tensor[i].copy_(self.state[p][name])
                self.state[p][name] = tensor[i]
        self._stacks[key] = fresh
        return fresh
