"""Parameters that are several matrices train as each would on its own: fused projections, heads, experts, convolutions."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from support.optimizers import ENTRYWISE, ON_MATRICES, parameters
from torch import Tensor, nn

from spectral_mup.optim.matrices import MatrixView, matrix_view


class Case(NamedTuple):
    """A parameter of some shape, the options of its group, and the matrices (out, in) that it is."""

    shape: tuple[int, ...]
    options: dict[str, Any]
    matrices: Callable[[Tensor], list[Tensor]]


CASES = {
    "query, key and value fused": Case((48, 16), {"split": 3}, lambda w: list(w.chunk(3))),
    "grouped queries": Case((32, 16), {"split": (16, 8, 8)}, lambda w: list(w.split([16, 8, 8]))),
    "sizes out of order": Case((32, 16), {"split": [8, 16, 8]}, lambda w: list(w.split([8, 16, 8]))),
    "heads": Case((16, 16), {"split": 4}, lambda w: list(w.split(4))),
    "stored (in, out)": Case((16, 48), {"split": 3, "split_dim": -1}, lambda w: list(w.chunk(3, 1))),
    "stored (in, out), grouped": Case((16, 32), {"split": (16, 8, 8), "split_dim": -1}, lambda w: list(w.split([16, 8, 8], 1))),
    "experts": Case((3, 8, 16), {"stacked": True}, lambda w: list(w)),
    "experts of layers": Case((2, 3, 8, 16), {"stacked": True}, lambda w: list(w.flatten(0, 1))),
    "gate and up of experts fused": Case(
        (3, 24, 16), {"stacked": True, "split": 2}, lambda w: [m for expert in w for m in expert.chunk(2)]
    ),
    "experts (in, out), gate and up of unequal sizes": Case(
        (3, 16, 24),
        {"stacked": True, "split": (16, 8), "split_dim": -1},
        lambda w: [m for expert in w for m in expert.split([16, 8], 1)],
    ),
    "convolution": Case((12, 4, 3, 3), {"stacked": False}, lambda w: [w.flatten(1)]),
    "convolution in three": Case((12, 4, 3), {"stacked": False, "split": 3}, lambda w: list(w.flatten(1).chunk(3))),
}


def trained(
    optimizer: torch.optim.Optimizer, fused: list[nn.Parameter], apart: list[list[nn.Parameter]], case: Case, steps: int
):
    """Steps of one optimizer over all, on equal gradients: of the fused parameters, and of their matrices one by one."""
    for step in range(steps):
        for i, (p, matrices) in enumerate(zip(fused, apart, strict=True)):
            g = torch.randn(case.shape, generator=torch.Generator().manual_seed(10 * step + i))
            p.grad = g
            for m, part in zip(matrices, case.matrices(g), strict=True):
                m.grad = part.clone()
        optimizer.step()


def alike(optimizer_of: Callable[..., Any], case: Case, options: dict[str, Any]) -> bool:
    """Whether two fused parameters, one with a head start, become the matrices that were trained apart."""
    fused = parameters([case.shape] * 2)
    apart = [[nn.Parameter(m.detach().clone()) for m in case.matrices(p)] for p in fused]
    groups = [{"params": fused} | options, {"params": [m for matrices in apart for m in matrices]}]
    trained(optimizer_of(groups, lr=0.1, weight_decay=0.5), fused, apart, case, 5)
    moved = [(p - q).abs().max() for p, q in zip(fused, parameters([case.shape] * 2), strict=True)]
    assert min(moved) > 0.05
    pairs = [(a, b) for p, matrices in zip(fused, apart, strict=True) for a, b in zip(case.matrices(p), matrices, strict=True)]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ON_MATRICES)
def test_its_matrices_train_as_if_each_were_a_parameter(name, case):
    assert alike(ON_MATRICES[name], case, case.options)
    whole = case.options.get("stacked") is False and "split" not in case.options  # a convolution is one matrix
    if len(case.shape) == 2 or whole:
        without = {"stacked": True} if whole else {}
        assert not alike(ON_MATRICES[name], case, without), "the control: as one matrix, or another, it trains otherwise"


@pytest.mark.parametrize("name", ON_MATRICES)
def test_state_survives_a_checkpoint(name):
    """Of parts of two sizes, resumed in the midst, to the bit; each size has the state of three experts."""
    case = CASES["experts (in, out), gate and up of unequal sizes"]
    unbroken, broken = parameters([case.shape]), parameters([case.shape])

    def optimizer_of(p: list[nn.Parameter]) -> Any:
        return ON_MATRICES[name]([{"params": p} | case.options], lr=0.1)

    def steps(optimizer: torch.optim.Optimizer, p: list[nn.Parameter], first: int, last: int) -> None:
        for step in range(first, last):
            p[0].grad = torch.randn(case.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    steps(optimizer_of(unbroken), unbroken, 0, 6)
    before, after, file = optimizer_of(broken), optimizer_of(broken), io.BytesIO()
    steps(before, broken, 0, 3)
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    steps(after, broken, 3, 6)
    assert broken[0].equal(unbroken[0])
    assert {len(x) for x in after.state[broken[0]].values() if isinstance(x, Tensor)} == {3}


def test_a_part_has_its_own_lr():
    """split_lr in units of the group's: as matrices in groups of these lrs."""
    case = CASES["grouped queries"]
    fused = parameters([case.shape])
    apart = [[nn.Parameter(m.detach().clone()) for m in case.matrices(fused[0])]]
    lrs = [0.1, 0.05, 0.025]
    groups = [{"params": fused, "split_lr": (1.0, 0.5, 0.25)} | case.options]
    groups += [{"params": [m], "lr": lr} for m, lr in zip(apart[0], lrs, strict=True)]
    trained(ON_MATRICES["muon"](groups, lr=0.1), fused, apart, case, 3)
    for a, b in zip(case.matrices(fused[0]), apart[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_shampoo_tells_the_mean_over_the_matrices():
    case = CASES["grouped queries"]
    fused, told = parameters([case.shape]), {}
    apart = [[nn.Parameter(m.detach().clone()) for m in case.matrices(fused[0])]]
    optimizer = ON_MATRICES["shampoo"]([{"params": fused} | case.options, {"params": apart[0]}], lr=0.1)
    trained(optimizer, fused, apart, case, 3)
    told = optimizer.diagnostics()
    for quantity in ("left_rank", "right_largest"):
        assert told[fused[0]][quantity] == pytest.approx(sum(told[m][quantity] for m in apart[0]) / 3, rel=1e-4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_put_is_the_inverse_of_take(case):
    view = matrix_view(case.shape, case.options)
    x = torch.randn(2, *case.shape)
    matrices = view.take(x)
    assert view.put(matrices, 2).equal(x)
    assert sum(len(m) for m in matrices.values()) == 2 * len(case.matrices(x[0])) and not view.plain
    assert {tuple(m.shape[1:]) for m in matrices.values()} == {tuple(m.shape) for m in case.matrices(x[0])}


def test_one_matrix_is_read_as_it_is():
    for options in ({}, {"split": 1}, {"stacked": True}, {"split": None}):
        view = matrix_view((8, 16), options)
        x = torch.randn(2, 8, 16)
        assert view.plain and view.take(x)[""] is x
    assert matrix_view((8, 16), {}) == MatrixView((8, 16))


@pytest.mark.parametrize("name", ON_MATRICES)
@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((3, 8, 16), {}, "set in its group stacked=True if its last two dimensions are matrices .experts., stacked=False"),
        ((3, 8, 16), {"stacked": None}, "set in its group stacked=True"),
        ((16,), {"split": 2}, "give vectors and other tensors to AdamW"),
        ((16, 8), {"split": 3}, "its 16 rows are not split=3; give a number that divides them, or sizes that add up to them"),
        ((16, 8), {"split": (8, 4)}, "its 16 rows are not split=.8, 4."),
        ((16, 8), {"split": (20, -4)}, "its 16 rows are not split"),
        ((16, 8), {"split": 0}, "its 16 rows are not split=0"),
        ((16, 8), {"split": "3"}, "its 16 rows are not split='3'"),
        ((16, 8), {"split": 3, "split_dim": -1}, "its 8 rows are not split=3"),
        ((16, 8), {"split": 2, "split_dim": 0}, "split_dim is -2, or -1"),
        ((16, 8), {"split": 2, "split_lr": (1.0,)}, "split_lr has 1 numbers for 2 parts"),
    ],
)
def test_what_is_not_told_or_does_not_fit_is_refused_by_name(name, shape, options, message):
    with pytest.raises(ValueError, match=rf"(?i)^{name} acts on matrices, got a parameter of shape .* \(qkv\); {message}"):
        ON_MATRICES[name]([{"params": parameters([shape]), "names": ["qkv"]} | options])


@pytest.mark.parametrize("name", ENTRYWISE)
def test_entrywise_optimizers_have_nothing_to_split(name):
    with pytest.raises(ValueError, match=f"(?i)^{name}: split is for optimizers that act on matrices; leave it out"):
        ENTRYWISE[name]([{"params": parameters([(16, 8)]), "split": 2}])
