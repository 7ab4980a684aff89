"""Laws of the optimizers: the step is the formula's, state survives, and the direction's norm grows as the size law says."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from spectral_mup.optim.linalg import NEWTON_SCHULZ, newton_schulz, spectral_norm
from spectral_mup.optim.muon import Muon

SHAPES = [(16, 16), (32, 8), (8, 32), (16, 16), (64, 48)]


def matrices(seed: int = 0, dtype=torch.float32) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in SHAPES]


def descend(optimizer, params, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) + 0.1 * p.detach()
        optimizer.step()


def muon_by_the_formula(params, steps: int, lr: float, decay: float, mu: float = 0.95, nesterov: bool = True):
    """Ten float64 lines from github.com/KellerJordan/Muon's equations, a matrix at a time."""
    weights = [p.detach().double().clone() for p in params]
    buffers = [torch.zeros_like(w) for w in weights]
    a, b, c = NEWTON_SCHULZ
    for step in range(steps):
        g = torch.Generator().manual_seed(100 + step)
        for i, w in enumerate(weights):
            gradient = torch.randn(w.shape, generator=g, dtype=params[i].dtype).double() + 0.1 * w
            buffers[i] = mu * buffers[i] + gradient
            n = gradient + mu * buffers[i] if nesterov else buffers[i]
            x = n / (n.norm() + 1e-7)
            x = x.T if x.shape[0] > x.shape[1] else x
            for _ in range(5):
                s = x @ x.T
                x = a * x + (b * s + c * s @ s) @ x
            x = x.T if w.shape[0] > w.shape[1] else x
            weights[i] = (1 - lr * decay) * w - lr * x
    return weights


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_its_formula(nesterov):
    params = matrices(dtype=torch.float64)
    expected = muon_by_the_formula(params, 10, lr=0.02, decay=0.1, nesterov=nesterov)
    wrong = muon_by_the_formula(params, 10, lr=0.02, decay=0.1, nesterov=not nesterov)
    descend(Muon(params, lr=0.02, weight_decay=0.1, nesterov=nesterov, dtype="float64"), params, 10)
    for p, w, other in zip(params, expected, wrong, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-12)
        assert (p.detach() - other).norm() > 1e-3 * w.norm()


def test_muon_in_float32_and_bfloat16_stays_near_float64():
    g = torch.Generator().manual_seed(0)
    for shape in ((3, 64, 64), (2, 128, 32), (2, 32, 128)):
        m = torch.randn(shape, generator=g, dtype=torch.float64)
        exact = newton_schulz(m)
        for dtype, bound in ((torch.float32, 0.01), (torch.bfloat16, 0.06)):
            error = (newton_schulz(m.float(), dtype=dtype).double() - exact).norm() / exact.norm()
            assert error < bound, (shape, dtype, error)
        fewer = newton_schulz(m, steps=4)
        assert (fewer - exact).norm() / exact.norm() > 0.01  # the control: another number of steps is told apart


def test_muon_agrees_with_torch_muon():
    """torch.optim.Muon works in bfloat16 with other scale names; at equal scale, steps agree to its accuracy."""
    ours, theirs = matrices(), matrices()
    lr = 0.02
    mine = Muon([{"params": [p], "lr": lr * max(1, p.shape[0] / p.shape[1]) ** 0.5} for p in ours], dtype="bfloat16")
    torchs = torch.optim.Muon(theirs, lr=lr, weight_decay=0.0, momentum=0.95, nesterov=True, adjust_lr_fn="original")
    start = [p.detach().clone() for p in ours]
    descend(mine, ours, 3)
    descend(torchs, theirs, 3)
    for a, b, s in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.06 * (b - s).norm()


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "checkpoint"])
def test_muon_state_round_trip_is_bit_equal(way):
    unbroken = matrices()
    optimizer = Muon(unbroken, lr=0.02, weight_decay=0.1)
    descend(optimizer, unbroken, 6)
    params = matrices()
    optimizer = Muon(params, lr=0.02, weight_decay=0.1)
    descend(optimizer, params, 3)
    if way == "deepcopy":
        params, optimizer = copy.deepcopy((params, optimizer))
    else:
        state = optimizer.state_dict()
        if way == "checkpoint":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        params = [torch.nn.Parameter(p.detach().clone()) for p in params]
        optimizer = Muon(params, lr=0.02, weight_decay=0.1)
        optimizer.load_state_dict(state)
    descend(optimizer, params, 3, start=3)
    assert all(a.equal(b) for a, b in zip(params, unbroken, strict=True))
    forgetful = matrices()
    descend(Muon(forgetful, lr=0.02, weight_decay=0.1), forgetful, 3)
    descend(Muon(forgetful, lr=0.02, weight_decay=0.1), forgetful, 3, start=3)
    assert not forgetful[0].equal(unbroken[0])  # the control: lost state is seen


def test_muon_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="Muon acts on matrices, got a parameter of shape \\(3,\\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="dtype is float32, bfloat16 or float64"):
        Muon(matrices(), dtype="half")
    p = torch.nn.Parameter(torch.zeros(4, 4))
    p.grad = torch.eye(4).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        Muon([p]).step()


def test_muon_closure_and_missing_gradients():
    params = matrices()
    before = params[1].detach().clone()
    optimizer = Muon(params, lr=0.1)

    def closure():
        loss = params[0].square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first == closure().detach() or first > 0
    assert params[1].equal(before) and not params[0].equal(matrices()[0])


def test_state_survives_a_tensor_that_joins_the_stack():
    """A parameter frozen at first makes the stack grow later; the others keep their momentum."""
    params = [torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    alone = torch.nn.Parameter(params[0].detach().clone())
    pair, single = Muon(params, lr=0.1), Muon([alone], lr=0.1)
    for step in range(4):
        g = torch.randn(8, 8, generator=torch.Generator().manual_seed(9 + step))
        params[0].grad, alone.grad = g.clone(), g.clone()
        params[1].grad = g.flip(0).clone() if step >= 2 else None
        pair.step()
        single.step()
    torch.testing.assert_close(params[0], alone, rtol=1e-5, atol=1e-6)


def test_spectral_norm_is_the_largest_singular_value():
    g = torch.Generator().manual_seed(3)
    for shape in ((32, 8), (8, 32), (4, 16, 16), (20, 1)):
        low_rank = torch.randn(*shape[:-1], 2, generator=g) @ torch.randn(*shape[:-2], 2, shape[-1], generator=g)
        exact = torch.linalg.matrix_norm(low_rank, 2)
        torch.testing.assert_close(spectral_norm(low_rank), exact, rtol=0.01, atol=0)
        assert not torch.allclose(spectral_norm(low_rank), torch.linalg.matrix_norm(low_rank), rtol=0.01) or shape[-1] == 1
    assert spectral_norm(torch.zeros(4, 4)) == 0
