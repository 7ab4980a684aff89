"""An optimizer of my own; conf/optimizer/my_optimizer.yaml declares how its updates grow with width."""

import torch


class SignMomentum(torch.optim.Optimizer):
    """W ← (1 − lr·λ)·W − lr·sign(m) with m ← β·m + (1 − β)·G (arXiv 1802.04434)."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0, momentum=0.9):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    m = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(m.sign(), alpha=group["lr"])
        return loss
