"""What the shared step takes and refuses: dtypes, devices, options, sparse gradients, in both ways of adding parameters."""

import io
import math
import re

import pytest
import torch
from support.optimizers import ALL, ENTRYWISE, ON_MATRICES, descend, gradients, parameters
from torch import nn

from spectral_mup.optim.adopt import ADOPT
from spectral_mup.optim.lamb import LAMB
from spectral_mup.optim.muon import Muon
from spectral_mup.optim.shampoo import Shampoo
from spectral_mup.optim.soap import SOAP
from spectral_mup.optim.sophia import Sophia


def by_the_constructor(make, group):
    return make([group])


def by_add_param_group(make, group):
    """A refused group is not there afterwards."""
    optimizer = make(parameters([(8, 8)]))
    try:
        optimizer.add_param_group(group)
    except ValueError:
        assert len(optimizer.param_groups) == 1
        raise


WAYS = [by_the_constructor, by_add_param_group]


@pytest.mark.parametrize("add", WAYS)
@pytest.mark.parametrize("name", ALL)
def test_complex_parameters_are_refused_by_name(name, add):
    p = nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=f"(?i)^{name}: spectrum is complex; .*torch.view_as_real"):
        add(ALL[name], {"params": [p], "names": ["spectrum"]})
    with pytest.raises(ValueError, match="parameter 0 of its group is complex"):
        add(ALL[name], {"params": p})
    with pytest.raises(ValueError, match="spectrum is complex"):
        ALL[name]([("spectrum", p)])


@pytest.mark.parametrize("add", WAYS)
@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4)])
@pytest.mark.parametrize("name", ON_MATRICES)
def test_what_is_no_matrix_is_refused_by_name(name, shape, add):
    p = nn.Parameter(torch.zeros(shape))
    said = re.escape(f"acts on matrices, got a parameter of shape {shape} (bias)")
    with pytest.raises(ValueError, match=f"(?i)^{name} {said}"):
        add(ALL[name], {"params": [p], "names": ["bias"]})


@pytest.mark.parametrize("name", ENTRYWISE)
def test_entrywise_optimizers_take_any_shape_in_both_ways(name):
    optimizer = ALL[name](parameters([(8, 8)]))
    optimizer.add_param_group({"params": parameters([(3,), (), (2, 3, 4)])})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]


@pytest.mark.parametrize("add", WAYS)
@pytest.mark.parametrize(
    "make, option, value, message",
    [
        (Muon, "dtype", "half", "dtype is float32, bfloat16 or float64, not 'half'"),
        (Muon, "ns_steps", 0, "ns_steps is at least 1"),
        (Muon, "momentum", 1.0, "momentum is a number, at least 0 and below 1, not 1.0"),
        (Sophia, "gamma_rule", "width", "gamma_rule is fixed or inverse_grad, not 'width'"),
        (Sophia, "hessian_interval", 0, "hessian_interval is at least 1"),
        (Shampoo, "accumulate", "mean", "accumulate is ema or sum, not 'mean'"),
        (Shampoo, "grafting", "sgd", "grafting is none or adam, not 'sgd'"),
        (Shampoo, "interval", 0, "interval is at least 1"),
        (SOAP, "interval", 0, "interval is at least 1"),
        (LAMB, "lr", -0.1, "LAMB: lr is a number, at least 0, not -0.1"),
        (LAMB, "lr", "0.1", "LAMB: lr is a number, at least 0, not '0.1'"),
        (ADOPT, "lr", None, "ADOPT: lr is a number, at least 0, not None"),
        (ADOPT, "lr", math.nan, "lr is a number, at least 0, not nan"),
        (ADOPT, "betas", (0.9, 1.0), "betas is two numbers, at least 0 and below 1"),
        (ADOPT, "betas", 0.9, "betas is two numbers"),
        (SOAP, "weight_decay", -1, "weight_decay is a number, at least 0"),
        (Sophia, "eps", -1e-8, "eps is a number, at least 0"),
    ],
)
def test_options_out_of_range_are_refused(make, option, value, message, add):
    with pytest.raises(ValueError, match=message):
        add(make, {"params": parameters([(8, 8)]), option: value})
    with pytest.raises(ValueError, match=message):
        make(parameters([(8, 8)]), **{option: value})


def test_one_hessian_interval_serves_all_groups():
    optimizer = Sophia(parameters([(8, 8)]), hessian_interval=4)
    with pytest.raises(ValueError, match="hessian_interval is one for all groups, 4 by the constructor, not 5"):
        optimizer.add_param_group({"params": parameters([(8, 8)]), "hessian_interval": 5})


@pytest.mark.filterwarnings("ignore:Sophia. update_hessian was never called")
@pytest.mark.parametrize("name", ALL)
def test_sparse_gradients_are_refused_before_anything_moves(name):
    dense, table = parameters([(4, 4)])[0], nn.Embedding(4, 4, sparse=True)
    before = dense.detach().clone()
    table(torch.tensor([1])).sum().backward()
    dense.grad = torch.ones(4, 4)
    optimizer = ALL[name]([{"params": [dense]}, {"params": [table.weight], "names": ["table"]}], lr=0.1)
    with pytest.raises(ValueError, match="does not accept sparse gradients, as table has; build it with sparse=False"):
        optimizer.step()
    assert dense.equal(before)
    table.weight.grad = None
    optimizer.step()
    optimizer.step()
    assert not dense.equal(before)  # the control


@pytest.mark.parametrize("name", ALL)
def test_one_shape_in_several_dtypes_trains_as_if_each_were_alone(name):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16]
    mixed = [nn.Parameter(p.detach().to(dtype)) for p, dtype in zip(parameters([(8, 8)] * 5), dtypes, strict=True)]
    alone = [nn.Parameter(p.detach().clone()) for p in mixed]
    optimizers = [ALL[name](mixed, lr=0.1), *(ALL[name]([p], lr=0.1) for p in alone)]
    for step in range(3):
        for i, (a, b) in enumerate(zip(mixed, alone, strict=True)):
            g = gradients([torch.zeros(8, 8)], 10 * step + i)[0]
            a.grad, b.grad = g.to(a.dtype), g.to(b.dtype)
        if name == "sophia":
            for optimizer in optimizers:
                optimizer.update_hessian(4)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mixed, alone, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    assert not mixed[0].equal(parameters([(8, 8)])[0])


@pytest.mark.parametrize("name", ["adopt", "lamb", "muon"])
def test_one_shape_on_two_devices(name):
    here, there = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 8, device="meta"))
    optimizer = ALL[name]([here, there], lr=0.1)
    for _ in range(2):
        here.grad, there.grad = torch.eye(8), torch.ones(8, 8, device="meta")
        optimizer.step()
    assert not here.equal(torch.ones(8, 8)) and optimizer.state[there]["step"] == 2
    devices = {
        p.device.type: {x.device.type for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)}
        for p in (here, there)
    }
    assert devices == {"cpu": {"cpu"}, "meta": {"meta"}}


def test_adopt_in_bfloat16_keeps_the_second_moment_of_float32():
    """v ← β2·v + (1 − β2)·G² from v = 1 under G = 10 for t steps is 100 − 99·β2^t: 18.9 after 1999. Kept in bfloat16 it
    stands still where (1 − β2)·(100 − v) falls below half a unit in its last place, 2^-8·v."""
    p = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = ADOPT([p], lr=1e-3)
    rounded = torch.ones((), dtype=torch.bfloat16)
    for step in range(2000):
        p.grad = torch.full((4,), 1.0 if step == 0 else 10.0, dtype=torch.bfloat16)
        optimizer.step()
        if step:
            rounded.mul_(0.9999).add_(torch.tensor(1e-4 * 100.0, dtype=torch.bfloat16))
    expected = 100 - 99 * 0.9999**1999
    assert expected == pytest.approx(18.9, abs=0.1)
    assert float(optimizer.state[p]["exp_avg_sq"][0]) == pytest.approx(expected, rel=1e-3)
    assert float(rounded) < 0.5 * expected  # the control


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_16_bit_parameters_train_as_float32_ones_up_to_the_rounding_of_the_weights(name, dtype):
    """State is float32, also after a checkpoint; every step equals that of a float32 optimizer on the rounded weight."""
    narrow, wide = (nn.Parameter(parameters([(8, 8)])[0].detach().to(dtype).to(d)) for d in (dtype, torch.float32))
    optimizer, reference = (ALL[name]([p], lr=0.02, weight_decay=0.1) for p in (narrow, wide))
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = ALL[name]([narrow], lr=0.02, weight_decay=0.1)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        wide.data.copy_(narrow.detach().float())
        g = gradients([wide.detach()], step)[0].to(dtype)
        narrow.grad, wide.grad = g, g.float()
        for o in (optimizer, reference):
            if name == "sophia":
                o.update_hessian(64)
            o.step()
        for key, value in reference.state[wide].items():
            if isinstance(value, torch.Tensor):
                assert optimizer.state[narrow][key].dtype == torch.float32
                torch.testing.assert_close(optimizer.state[narrow][key], value)
        assert narrow.equal(wide.to(dtype))


def test_weight_decay_of_16_bit_weights_is_rounded_once():
    """A shrink by 1 − 2^-10 alone is below half a unit of bfloat16; together with the step it is not lost."""
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = LAMB([p], lr=2.0**-10, weight_decay=3.0, betas=(0.0, 0.0), eps=0.0)
    p.grad = torch.ones(4, dtype=torch.bfloat16)
    optimizer.step()  # U = 1: 1 − 4·2^-10 = 1 − 2^-8
    assert p.equal(torch.full((4,), 1 - 2.0**-8, dtype=torch.bfloat16))


@pytest.mark.parametrize("decoupled", [True, False])
def test_lamb_on_zero_weights_is_finite_and_leaves_them_by_adams_step(decoupled):
    """‖W‖ = 0: frozen, without a gradient; with a gradient of zero; and with one, where the ratio is 1."""
    frozen, silent, leaving = (nn.Parameter(torch.zeros(4, 4)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = LAMB([frozen, silent, leaving], lr=0.1, weight_decay=0.1, decoupled=decoupled)
    silent.grad, leaving.grad = torch.zeros(4, 4), torch.ones(4, 4)
    optimizer.step()
    assert frozen.equal(torch.zeros(4, 4)) and silent.equal(torch.zeros(4, 4))
    torch.testing.assert_close(leaving.detach(), torch.full((4, 4), -0.1))  # Adam's first step has entries ± lr
    assert all(math.isfinite(x) for values in optimizer.diagnostics().values() for x in values.values())


def test_a_gradient_of_another_dtype_than_its_parameter():
    p, q = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16)), nn.Parameter(torch.ones(8, 8))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("torch before 2.10")
    p.grad_dtype = torch.float32
    p.grad, q.grad = torch.eye(8), torch.eye(8)
    for w in (p, q):
        Muon([w], lr=0.1).step()
    assert p.equal(q.to(torch.bfloat16))


def test_descending_is_not_disturbed_by_a_refusal():
    params = parameters([(8, 8)])
    optimizer = Muon(params, lr=0.1)
    with pytest.raises(ValueError, match="acts on matrices"):
        optimizer.add_param_group({"params": parameters([(3,)])})
    descend(optimizer, params, 2)
    other = parameters([(8, 8)])
    descend(Muon(other, lr=0.1), other, 2)
    assert params[0].equal(other[0])
