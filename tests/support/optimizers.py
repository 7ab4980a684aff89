"""Parameters and gradients for tests of optimizers."""

from functools import partial

import torch

from spectral_mup.optim.adopt import ADOPT
from spectral_mup.optim.lamb import LAMB
from spectral_mup.optim.muon import Muon
from spectral_mup.optim.shampoo import Shampoo
from spectral_mup.optim.soap import SOAP
from spectral_mup.optim.sophia import Sophia
from spectral_mup.optim.stacked import UsesSampledLabels
from spectral_mup.theory.size_laws import SIZE_LAWS, Exponents

MATRICES = [(16, 16), (32, 8), (8, 32), (16, 16), (64, 48)]

ENTRYWISE = {"adopt": ADOPT, "lamb": LAMB, "sophia": Sophia}
ON_MATRICES = {"muon": Muon, "shampoo": Shampoo, "soap": partial(SOAP, interval=2)}
ALL = ENTRYWISE | ON_MATRICES


def parameters(shapes=MATRICES, seed: int = 0, dtype=torch.float32) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in shapes]


def gradients(weights: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Noise that depends on the step, and a pull to 0 that depends on the weights."""
    g = torch.Generator().manual_seed(100 + step)
    return [torch.randn(w.shape, generator=g, dtype=w.dtype) + 0.1 * w.detach() for w in weights]


def sampled_gradients(weights: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Stands for the gradient on sampled labels."""
    g = torch.Generator().manual_seed(9000 + step)
    return [0.1 * torch.randn(w.shape, generator=g, dtype=w.dtype) for w in weights]


def descend(optimizer: torch.optim.Optimizer, params, steps: int, start: int = 0, tokens: int = 64) -> None:
    """Take `steps` steps on `gradients`, as the trainer does for an optimizer that wants sampled labels too."""
    for step in range(start, start + steps):
        if isinstance(optimizer, UsesSampledLabels) and step % optimizer.hessian_interval == 0:
            for p, gradient in zip(params, sampled_gradients(params, step), strict=True):
                p.grad = gradient
            optimizer.update_hessian(tokens)
        for p, gradient in zip(params, gradients(params, step), strict=True):
            p.grad = gradient
        optimizer.step()


def law_name(size: Exponents) -> str | None:
    """The name of a size law; None for one that has none."""
    plain = {q: x for q, x in size.items() if x}
    return next((name for name, law in SIZE_LAWS.items() if law == plain), None)
