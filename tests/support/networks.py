"""Small models that the tests of the public functions share."""

import torch
from torch import nn

from spectral_mup.models.configs import Llama2Config, NanoGPTConfig
from spectral_mup.models.nanogpt import NanoGPT

M = 4
OF_ANY_FAMILY = {
    "context": 16, "heads": None, "head_size": None, "mlp_ratio": None, "mlp_hidden": None, "mlp_multiple": None,
    "tied": False, "dropout": 0.0, "init_std": {"embedding": None, "hidden": None, "readout": None},
}  # fmt: skip


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def batch(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of an `mlp`, and classes that follow from them."""
    g = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(64, 8, generator=g)
    return x, (x[:, 0] * x[:, 1]).sign().long() + 1


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def gpt(width: int, depth: int = 2, tied: bool = False) -> NanoGPT:
    return NanoGPT(nanogpt(head_size=8, tied=tied), 50, width, depth)


def nanogpt(**keys) -> NanoGPTConfig:
    """NanoGPT with biases and an MLP of four times the width."""
    return NanoGPTConfig(**OF_ANY_FAMILY | {"family": "nanogpt", "mlp_ratio": 4.0, "bias": True} | keys)


def llama2(**keys) -> Llama2Config:
    return Llama2Config(**OF_ANY_FAMILY | {"family": "llama2", "kv_heads": None, "kv_ratio": None, "rope_base": 10000.0} | keys)


def groups_of(groups, key: str = "lr") -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["names"]}


def decayed(model: nn.Module, weight_decay: float) -> list[dict]:
    """torch's groups where weights decay, and gains and biases do not."""
    of = {vectors: [p for p in model.parameters() if (p.ndim < 2) == vectors] for vectors in (False, True)}
    return [{"params": of[False], "weight_decay": weight_decay}, {"params": of[True], "weight_decay": 0.0}]


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
