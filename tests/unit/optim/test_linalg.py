"""Where eigenvectors are computed, and how many kernels a step launches."""

import pytest
import torch
from support.optimizers import descend, gradients, parameters
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_mup.optim import linalg
from spectral_mup.optim.linalg import CPU_EIGH_SIDE, damped_power, eigh, eigh_device
from spectral_mup.optim.muon import Muon

VIEWS = {"detach", "view", "_unsafe_view", "unbind", "unsqueeze", "select", "transpose", "expand", "t", "alias"}


class Kernels(TorchDispatchMode):
    """Number of operations, without those that only view memory, while it is open: of kernels on a GPU, or nearly."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **kwargs or {})


def kernels(shapes: list[tuple[int, int]], steps: int = 5) -> int:
    """Those of one step of Muon, not its first."""
    params = parameters(shapes)
    optimizer = Muon(params, lr=0.02, weight_decay=0.1, ns_steps=steps)
    descend(optimizer, params, 1)
    for p, gradient in zip(params, gradients(params, 1), strict=True):
        p.grad = gradient
    with Kernels() as k:
        optimizer.step()
    return k.count


def test_muon_launches_kernels_by_shape_and_not_by_matrix():
    """Three a Newton–Schulz step and a dozen or so around them, however many matrices have the shape."""
    one_shape = kernels([(16, 16)] * 2)
    assert one_shape == kernels([(16, 16)] * 24) and 15 < one_shape <= 3 * 5 + 20
    assert kernels([(16, 16)] * 2, steps=6) == one_shape + 3
    assert kernels([(16, 16), (32, 8)] * 4) <= 2 * one_shape + 4
    assert kernels([(16, 16 + i) for i in range(8)]) > 6 * one_shape  # the control: eight shapes are eight groups


def test_small_eigenvectors_of_a_gpu_are_the_cpus_and_large_ones_its_own():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [eigh_device(side, cuda) for side in (8, CPU_EIGH_SIDE, CPU_EIGH_SIDE + 1)] == [cpu, cpu, cuda]
    assert [eigh_device(side, cpu) for side in (8, CPU_EIGH_SIDE + 1)] == [cpu, cpu]


def test_eigenvectors_are_computed_where_it_was_decided(monkeypatch):
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    values, vectors = eigh(x @ x.mT)
    torch.testing.assert_close((vectors * values[..., None, :]) @ vectors.mT, (x @ x.mT).double())
    asked = []
    monkeypatch.setattr(linalg, "eigh_device", lambda *about: (asked.append(about), torch.device("cpu"))[1])
    damped_power(x @ x.mT, -0.25, 1e-6)
    assert asked == [(6, torch.device("cpu"))]
    monkeypatch.setattr(linalg, "eigh_device", lambda *about: torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta"):  # nothing comes back from there: the decision was followed
        damped_power(x @ x.mT, -0.25, 1e-6)
