"""Laws of the optimizers: the step is the formula's, state survives, and the direction's norm grows as the size law says."""

import copy
import io
from functools import partial

import pytest
import torch
from support.optimizers import ALL, ENTRYWISE, MATRICES, descend, gradients, parameters

from spectral_mup.optim.linalg import NEWTON_SCHULZ, damped_power, newton_schulz, spectral_norm
from spectral_mup.optim.muon import Muon

pytestmark = pytest.mark.filterwarnings("ignore:Sophia. update_hessian was never called")  # these laws hold without


def tensors(name: str) -> list[torch.nn.Parameter]:
    """What this optimizer can train: entrywise ones take any shape."""
    return parameters([*MATRICES, (7,), (7,), (), (2, 3, 4)] if name in ENTRYWISE else MATRICES)


def muon_by_the_formula(params, steps: int, lr: float, decay: float, mu: float = 0.95, nesterov: bool = True):
    """Ten float64 lines from github.com/KellerJordan/Muon's equations, a matrix at a time."""
    weights = [p.detach().double().clone() for p in params]
    buffers = [torch.zeros_like(w) for w in weights]
    a, b, c = NEWTON_SCHULZ
    for step in range(steps):
        for i, (w, gradient) in enumerate(zip(weights, gradients(weights, step), strict=True)):
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
    params = parameters(dtype=torch.float64)
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
    ours, theirs = parameters(), parameters()
    lr = 0.02
    mine = Muon([{"params": [p], "lr": lr * max(1, p.shape[0] / p.shape[1]) ** 0.5} for p in ours], dtype="bfloat16")
    torchs = torch.optim.Muon(theirs, lr=lr, weight_decay=0.0, momentum=0.95, nesterov=True, adjust_lr_fn="original")
    start = [p.detach().clone() for p in ours]
    descend(mine, ours, 3)
    descend(torchs, theirs, 3)
    for a, b, s in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.06 * (b - s).norm()


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "checkpoint"])
@pytest.mark.parametrize("name", ALL)
def test_state_round_trip_is_bit_equal(name, way):
    make = partial(ALL[name], lr=0.02, weight_decay=0.1)
    unbroken = tensors(name)
    descend(make(unbroken), unbroken, 14)
    params = tensors(name)
    optimizer = make(params)
    descend(optimizer, params, 5)
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
        optimizer = make(params)
        optimizer.load_state_dict(state)
    descend(optimizer, params, 9, start=5)
    assert all(a.equal(b) for a, b in zip(params, unbroken, strict=True))
    forgetful = tensors(name)
    descend(make(forgetful), forgetful, 5)
    descend(make(forgetful), forgetful, 9, start=5)
    assert not forgetful[0].equal(unbroken[0])  # the control: lost state is seen


@pytest.mark.parametrize("name", ALL)
def test_each_tensor_trains_as_if_alone(name):
    """Stacks of equal shapes, groups, and who has a gradient when: none of it changes a step of the others."""
    make, present = ALL[name], [{0}, {0, 1}, {1}, {0, 1}, {0}, {1}, {0, 1}]
    together = parameters([(8, 8)] * 2)
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    pair, singles = make([{"params": together, "lr": 0.1}]), [make([p], lr=0.1) for p in alone]
    for step, who in enumerate(present):
        for i, gradient in enumerate(gradients([p.detach() for p in alone], step)):
            together[i].grad, alone[i].grad = (gradient.clone(), gradient.clone()) if i in who else (None, None)
        for optimizer in (pair, *singles):
            optimizer.step()
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], parameters([(8, 8)])[0], atol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_closure_and_missing_gradients(name):
    params = tensors(name)
    before = [p.detach().clone() for p in params]
    optimizer = ALL[name](params, lr=0.1, weight_decay=0.1)

    def closure():
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert losses[0] == float(before[0].square().sum()) and losses[2] != losses[0]
    assert all(p.equal(b) for p, b in zip(params[1:], before[1:], strict=True))


@pytest.mark.parametrize("name", ALL)
def test_a_group_has_its_own_lr_and_weight_decay(name):
    """A step is the direction times −lr after a shrink by 1 − lr·λ, each of its group."""
    params = [torch.nn.Parameter(parameters([(8, 8)])[0].detach().clone()) for _ in range(3)]
    start = params[0].detach().clone()
    values = [{"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.2, "weight_decay": 0.0}, {"lr": 0.1, "weight_decay": 0.5}]
    optimizer = ALL[name]([{"params": [p]} | v for p, v in zip(params, values, strict=True)])
    for step in range(2):  # the first call of some fills their state and does not move
        for p in params:
            p.data.copy_(start)
            p.grad = gradients([start], step)[0]
        optimizer.step()
    base, faster, decayed = (p.detach() - start for p in params)
    torch.testing.assert_close(faster, 2 * base, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(decayed, base - 0.1 * 0.5 * start, rtol=1e-4, atol=1e-6)
    assert base.norm() > 0.01


@pytest.mark.parametrize("name", ALL)
def test_gradients_that_are_not_finite_raise_nothing_and_zero_ones_move_nothing(name):
    """A diverged run is a result, so its optimizer must let it end as one; a tensor that gets no signal stays."""
    params = parameters([(8, 8)] * 2)
    optimizer = ALL[name](params, lr=0.1)
    for value in (float("nan"), float("inf")):
        for _ in range(3):
            params[0].grad, params[1].grad = torch.full((8, 8), value), torch.zeros(8, 8)
            optimizer.step()
    assert params[0].isnan().any() and params[1].equal(parameters([(8, 8)] * 2)[1])


def test_damped_power_is_the_power_and_is_damped():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 6, generator=g, dtype=torch.float64)
    m = x @ x.mT + 0.1 * torch.eye(6)
    root = damped_power(m, -0.25, 0.0)
    torch.testing.assert_close(torch.linalg.matrix_power(root, 4) @ m, torch.eye(6, dtype=m.dtype).expand(3, 6, 6))
    low = x[..., :2] @ x[..., :2].mT  # rank 2
    largest = torch.linalg.matrix_norm(low, 2)
    torch.testing.assert_close(torch.linalg.matrix_norm(damped_power(low, -0.25, 1e-6), 2), (1e-6 * largest) ** -0.25)
    for scale in (1e-6, 1e6):  # relative: the shape of the result does not depend on the scale of M
        torch.testing.assert_close(damped_power(scale * m, -0.25, 1e-6), scale**-0.25 * damped_power(m, -0.25, 1e-6))
    assert damped_power(torch.zeros(4, 4), -0.25, 1e-6).equal(torch.zeros(4, 4))


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
