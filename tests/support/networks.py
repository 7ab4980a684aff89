"""Small models that the tests of the public functions share."""

from __future__ import annotations

import torch
from torch import nn

from spectral_mup.models.nanogpt import NanoGPT

M = 4


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def gpt(width: int, depth: int = 2, tied: bool = False) -> NanoGPT:
    return NanoGPT(
        vocab_size=50, context=16, width=width, depth=depth, heads=width // 8, hidden=4 * width, bias=True, tied=tied,
        dropout=0.0, head_dim=8,
    )  # fmt: skip


def groups_of(groups, key: str = "lr") -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["names"]}


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 4, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 8, generator=g), torch.randint(0, 3, (16,), generator=g)
        loss = nn.functional.cross_entropy(model(x), y)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses
