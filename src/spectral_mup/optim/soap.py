"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321)."""

import torch
from torch import Tensor

from spectral_mup.optim.linalg import eigh
from spectral_mup.optim.stacked import Group, StackedOptimizer, State, bias_corrections


class SOAP(StackedOptimizer):
    """U = Q_L·(M'/(√v̂ + ε))·Q_Rᵀ, M' = Q_Lᵀ·m̂·Q_R, v of the entries of Q_Lᵀ·G·Q_R; Q_L and Q_R diagonalise L and R.

    L ← β2·L + (1 − β2)·G·Gᵀ, R likewise with Gᵀ·G. The first call fills them, takes their eigenvectors and makes no step.
    After every `interval`-th step the basis is turned by one power iteration and QR, columns in falling order of their
    eigenvalues, and v moves with its column. The momentum m stays in the coordinates of W, so no turn changes it.
    Both sides are preconditioned, without blocks.
    """

    capturable = True

    def __init__(self, params, lr=3e-3, weight_decay=0.0, betas=(0.95, 0.95), eps=1e-8, interval=10) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, interval=interval))

    def check(self, group: Group) -> None:
        super().check(group)
        self.check_option(group, "interval", "at least 1", lambda x: x >= 1)

    def init_state(self, weight: Tensor, group: Group) -> State:
        n, fan_out, fan_in = weight.shape
        sides = {"left": fan_out, "left_basis": fan_out, "right": fan_in, "right_basis": fan_in}
        state = {name: weight.new_zeros(n, side, side) for name, side in sides.items()}
        return state | {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        return bias_corrections(group, step - 1)  # the first call takes no step

    def steady(self, group: Group, step: int) -> bool:
        """Return whether the basis is kept."""
        return (step - 1) % group["interval"] != 0

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor | None:
        beta1, beta2 = group["betas"]
        if step == 1:
            self._accumulate(gradient, state, beta2)
            for side in ("left", "right"):
                state[f"{side}_basis"].copy_(eigh(state[side])[1].flip(-1))
            return None
        left, right = state["left_basis"], state["right_basis"]
        m = state["exp_avg"].lerp_(gradient, 1.0 - beta1)
        turned = left.mT @ gradient @ right
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1.0 - beta2)
        m_turned = left.mT @ m @ right / group["correction1"]
        u = left @ (m_turned / ((v / group["correction2"]).sqrt_() + group["eps"])) @ right.mT
        # After the step, so that a gradient is never measured in a basis that it shaped.
        self._accumulate(gradient, state, beta2)
        if not self.steady(group, step):
            self._turn(state)
        return u

    def _accumulate(self, gradient: Tensor, state: State, beta2: float) -> None:
        state["left"].lerp_(gradient @ gradient.mT, 1.0 - beta2)
        state["right"].lerp_(gradient.mT @ gradient, 1.0 - beta2)

    def _turn(self, state: State) -> None:
        v = state["exp_avg_sq"]
        for side in ("left", "right"):
            basis = state[f"{side}_basis"]
            product = state[side] @ basis
            order = (basis * product).sum(-2).argsort(-1, descending=True)
            basis.copy_(torch.linalg.qr(product.gather(-1, order[..., None, :].expand_as(basis)))[0])
            moved = order[..., :, None] if side == "left" else order[..., None, :]
            v.copy_(v.gather(-2 if side == "left" else -1, moved.expand_as(v)))
