"""Sophia-G: momentum over a sampled diagonal of the Gauss–Newton matrix, clipped per entry (arXiv 2305.14342)."""

import warnings
from typing import Any

import torch
from torch import Tensor

from spectral_mup.optim.stacked import Group, Stack, StackedOptimizer, State


class Sophia(StackedOptimizer):
    """U = clip(m/max(γ·h, ε), ±1), m ← β1·m + (1 − β1)·G, and every k steps h ← β2·h + (1 − β2)·B·ĝ⊙ĝ.

    ĝ is the gradient of the mean loss over B tokens on labels drawn from softmax(logits) (Gauss–Newton–Bartlett). A trainer
    brings it by `update_hessian` (see UsesSampledLabels), as `Trainer` does; without it h stays 0 and the direction is sign(m),
    which the first step warns of. In your own loop, five lines before the step's own backward:

        if step % sophia.hessian_interval == 0:
            logits = model(x)
            labels = torch.distributions.Categorical(logits=logits.detach()).sample()
            torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
            sophia.update_hessian(labels.numel())
            sophia.zero_grad()

    γ is `gamma`, and with gamma_rule "inverse_grad" gamma over the group's `eps_scale`, the growth of a gradient's entries
    against the base model (1 if the group has none): m/(γ·h) falls with them as m/h does, and the clipped fraction stays.
    """

    matrices_only, capturable = False, True
    _sampled = False

    def __init__(
        self, params, lr=1e-3, weight_decay=0.0, betas=(0.96, 0.99), eps=1e-12, gamma=0.05, gamma_rule="fixed",
        hessian_interval=10,
    ) -> None:  # fmt: skip
        defaults = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, gamma=gamma, gamma_rule=gamma_rule)
        super().__init__(params, defaults | dict(hessian_interval=hessian_interval))

    def check(self, group: Group) -> None:
        super().check(group)
        self.check_option(group, "gamma_rule", "fixed or inverse_grad", ("fixed", "inverse_grad").__contains__)
        self.check_option(group, "hessian_interval", "at least 1", lambda x: x >= 1)
        k = self.hessian_interval
        self.check_option(group, "hessian_interval", f"one for all groups, {k} by the constructor", k.__eq__)

    @property
    def hessian_interval(self) -> int:
        """k: one interval for all groups, of which one extra backward can serve all."""
        return self.defaults["hessian_interval"]

    def before_step(self) -> None:
        super().before_step()
        if not self._sampled and any(group["lr"] for group in self.param_groups):
            self._sampled = True
            warnings.warn(
                "Sophia: update_hessian was never called, so h is 0 and steps are those of sign momentum; call it before every "
                f"hessian_interval-th step ({self.hessian_interval}), as Sophia's docstring shows, or use spectral_mup.Trainer",
                stacklevel=4,
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._sampled = True  # before the state was saved

    @torch.no_grad()
    def update_hessian(self, tokens: int) -> None:
        """Set h ← β2·h + (1 − β2)·tokens·p.grad², p.grad being that of the mean loss over `tokens` sampled labels."""
        self._sampled = True
        for stack in self.stacks():
            beta2, g = stack.group["betas"][1], stack.gradient
            stack.state["hessian"].mul_(beta2).addcmul_(g, g, value=(1.0 - beta2) * tokens)

    def init_state(self, weight: Tensor, group: Group) -> State:
        return {"exp_avg": torch.zeros_like(weight), "hessian": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor:
        m = state["exp_avg"].lerp_(gradient, 1.0 - group["betas"][0])
        u = _bound(state, group)
        return torch.div(m, u, out=u).clamp_(-1.0, 1.0)

    def diagnose(self, stack: Stack) -> dict[str, Tensor]:
        """Return clip_fraction, the share of entries with |m| ≥ max(γ·h, ε), whose step is a sign."""
        clipped = stack.state["exp_avg"].abs() >= _bound(stack.state, stack.group)
        return {"clip_fraction": clipped.reshape(len(clipped), -1).float().mean(1)}


def _bound(state: State, group: Group) -> Tensor:
    """Return max(γ·h, ε), with the group's γ."""
    gamma = group["gamma"] / (group.get("eps_scale", 1.0) if group["gamma_rule"] == "inverse_grad" else 1.0)
    return (gamma * state["hessian"]).clamp_min_(group["eps"])
