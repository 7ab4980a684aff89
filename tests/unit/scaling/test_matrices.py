"""Fused projections, heads, convolutions and experts under optimizers that act on matrices, through make_optimizers."""

import pytest
import torch
from support.networks import groups_of
from torch import Tensor, nn

from spectral_mup import make_optimizers, param_groups, scale
from spectral_mup.scaling.matrices import find_parts, stacked_parameters
from spectral_mup.theory.growth import Growth, GrowthError

SHARES = (1.0, 0.5, 0.5)  # rows of query, key and value over the width


class Attention(nn.Module):
    """Query, key and value of a width, fused or not, with equal weights in both."""

    def __init__(self, width: int, fused: bool, shares: tuple[float, ...] = (1, 1, 1)) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.embed = nn.Linear(96, width, bias=False)
        self.embed.weight.requires_grad_(False)
        rows = [int(share * width) for share in shares]
        parts = [torch.randn(n, width) / width**0.5 for n in rows]
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, sum(rows), bias=False)
            self.qkv.weight.data.copy_(torch.cat(parts))
        else:
            self.parts = nn.ModuleList(nn.Linear(width, len(part), bias=False) for part in parts)
            for linear, part in zip(self.parts, parts, strict=True):
                linear.weight.data.copy_(part)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.qkv(h) if self.fused else torch.cat([part(h) for part in self.parts], -1)

    def weights(self) -> Tensor:
        return self.qkv.weight if self.fused else torch.cat([part.weight for part in self.parts])


class Block(nn.Module):
    """The same in a residual block."""

    def __init__(self, width: int, fused: bool, **settings) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(width, fused, **settings)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)

    def weights(self) -> Tensor:
        return self.layers[0].weights()  # type: ignore[operator]


def trained(build, optimizer: str, fused: bool, steps: int = 4, **settings) -> Tensor:
    """Weights of query, key and value after some steps, of a model four times as wide as its base."""
    model, base = build(64, fused), build(16, fused)
    scaling = scale(model, base, optimizer=optimizer, residual_blocks=("layers.",) if isinstance(model, Block) else ())
    optimizers = make_optimizers(model, scaling, lr=0.03, **settings)
    for step in range(steps):
        x = torch.randn(256, 96, generator=torch.Generator().manual_seed(step))
        for o in optimizers:
            o.zero_grad()
        model(x).tanh().sum(-1).square().mean().backward()
        for o in optimizers:
            o.step()
    return model.weights().detach()


FUSED = {
    "fused": ({"split": {"qkv.weight": 3}, "weight_decay": 0.1}, Attention),
    "in a block": ({"split": {"*.qkv.*": 3}, "weight_decay": 0.1}, Block),
    "grouped queries": ({"split": {"qkv.weight": (64, 32, 32)}}, lambda w, fused: Attention(w, fused, SHARES)),
    "heads that grow": ({"split": {"*qkv*": 32}, "weight_decay": 0.1}, lambda w, fused: Block(w, fused, shares=(1 / 16,) * 32)),
}


@pytest.mark.parametrize(
    "optimizer, case",
    [(o, case) for o in ("muon", "shampoo", "soap") for case in FUSED if (o, case) != ("soap", "heads that grow")],
)  # of a head with four features SOAP's basis of 64 inputs is arbitrary in sixty directions
def test_a_fused_projection_trains_as_its_parts_do(optimizer, case):
    """The lr of each, its decay and its direction: the weights are those of separate parameters, and without split= are not."""
    settings, build = FUSED[case]
    decay = {key: value for key, value in settings.items() if key == "weight_decay"}
    fused, apart = trained(build, optimizer, True, **settings), trained(build, optimizer, False, **decay)
    torch.testing.assert_close(fused, apart, rtol=1e-3, atol=1e-4)
    without = trained(build, optimizer, True, **decay)
    assert (without - apart).norm() > 0.01 * (apart - build(64, False).weights()).norm()


def test_an_entrywise_optimizer_needs_no_split_and_refuses_one():
    torch.testing.assert_close(trained(Attention, "adamw", True), trained(Attention, "adamw", False), rtol=1e-3, atol=1e-4)
    with pytest.raises(
        GrowthError, match="^qkv.weight: no parameter of this name is trained by .* acts on matrices; check split="
    ):
        trained(Attention, "adamw", True, split={"qkv.weight": 3})


def test_lr_of_parts_is_that_of_matrices_of_their_shape():
    """√(fan_out/fan_in) of the part: 1 for query, √½ for key and value, and √(8/64) for a head of eight features."""
    model, base = Attention(64, True, SHARES), Attention(16, True, SHARES)
    scaling = scale(model, base, optimizer="muon")
    groups = {g["names"][0]: g for g in param_groups(model, scaling, lr=0.1, algorithm="muon", split={"qkv.*": (64, 32, 32)})}
    assert groups["qkv.weight"]["lr"] == pytest.approx(0.1)
    assert groups["qkv.weight"]["split_lr"] == pytest.approx((1, 0.5**0.5, 0.5**0.5))
    model, base = Block(64, True), Block(16, True)
    scaling = scale(model, base, optimizer="muon", residual_blocks=("layers.",))
    groups = param_groups(model, scaling, lr=0.1, algorithm="muon", heads={"*qkv*": 8})
    (group,) = [group for group in groups if group["names"] == ["layers.0.qkv.weight"]]
    assert group["lr"] == pytest.approx(0.1 * (8 / 64) ** 0.5) and group["split"] == 24 and "split_lr" not in group


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"split": {"value.weight": 3}}, "value.weight: no parameter of this name .* check split="),
        ({"heads": {"embed.weight": 4}}, "embed.weight: no parameter of this name .* check heads="),  # AdamW trains it
        ({"split": {"qkv.weight": 5}}, "qkv.weight: split=5 does not divide its 192 rows and the base's 48; check split="),
        ({"split": {"qkv.weight": 0}}, "qkv.weight: split=0 does not divide"),
        ({"split": {"qkv.weight": (64, 64)}}, "qkv.weight: split=.64, 64. does not add up to its 192 rows; check split="),
        ({"split": {"qkv.weight": "3"}}, "qkv.weight: split='3' does not add up"),
        (
            {"heads": {"qkv.weight": 64}},
            "qkv.weight: heads=64: 64 features per head do not divide its 192 rows and the base's 48; if heads grow",
        ),
        ({"split": {"qkv.weight": 3}, "heads": {"qkv.*": 8}}, "qkv.weight: named more than once in split= and heads="),
    ],
)
def test_what_does_not_fit_is_one_line(settings, message):
    model = Attention(64, True)
    scaling = scale(model, Attention(16, True), optimizer="muon")
    with pytest.raises(GrowthError, match=rf"\A{message}[^\n]*\Z"):
        make_optimizers(model, scaling, lr=0.1, **settings)


class Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, 2 * width, 3)
        self.line = nn.Conv1d(width, width, 5, bias=False)
        self.grouped = nn.Conv1d(width, width, 5, groups=4, bias=False)
        self.transposed = nn.ConvTranspose2d(width, width, 3, bias=False)
        self.linear = nn.Linear(width, width, bias=False)


@pytest.mark.parametrize("optimizer", ["muon", "shampoo", "soap"])
def test_convolutions_are_matrices_of_out_and_all_the_rest(optimizer):
    model, base = Convolutions(32), Convolutions(8)
    scaling = scale(model, base, optimizer=optimizer)
    on_matrices = {name for name, algorithm in scaling.algorithm.items() if algorithm == optimizer}
    assert on_matrices == {"inner.weight", "line.weight", "linear.weight"}
    others = [note.partition(":")[0] for note in scaling.notes if "adamw trains it" in note]
    assert others == ["grouped.weight", "transposed.weight"]
    groups = {name: g for g in param_groups(model, scaling, lr=0.1, algorithm=optimizer) for name in g["names"]}
    assert [groups[f"{n}.weight"].get("stacked") for n in ("inner", "line", "linear")] == [False, False, None]
    if optimizer == "muon":  # √(fan_out/fan_in) of the matrix, as of any
        assert groups["inner.weight"]["lr"] == pytest.approx(0.1 * (64 / (32 * 9)) ** 0.5)
    for o in make_optimizers(model, scaling, lr=0.1):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = model.inner.weight.detach().clone()
        o.step()
        o.step()
        assert o.param_groups[0]["lr"] and (type(o).__name__ == "AdamW") == before.equal(model.inner.weight)


def test_entrywise_optimizers_train_convolutions_as_they_did():
    scaling = scale(Convolutions(32), Convolutions(8), optimizer="lamb")
    assert scaling.algorithm["inner.weight"] == "lamb_vector" and scaling.algorithm["linear.weight"] == "lamb"
    groups = param_groups(Convolutions(32), scale(Convolutions(32), Convolutions(8)), lr=0.1)
    assert not any({"stacked", "split"} & set(group) for group in groups) and groups_of(groups)


class Experts(nn.Module):
    """Four experts, their gate and up matrices fused, and the way back: as two parameters, or as a matrix each."""

    def __init__(self, width: int, transposed: bool = False, apart: bool = False) -> None:
        super().__init__()
        torch.manual_seed(width)
        gate_up, down = torch.randn(4, 4 * width, width) / width**0.5, torch.randn(4, width, 2 * width) / (2 * width) ** 0.5
        self.apart = apart
        if apart:
            matrices = {"gate": gate_up[:, : 2 * width], "up": gate_up[:, 2 * width :], "down": down}
            for name, stack in matrices.items():
                linears = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in stack]
                for linear, w in zip(linears, stack, strict=True):
                    linear.weight.data.copy_(w)
                self.add_module(name, nn.ModuleList(linears))
        else:
            self.gate_up, self.down = (nn.Parameter(w.mT.contiguous() if transposed else w) for w in (gate_up, down))

    def stacks(self) -> tuple[Tensor, Tensor]:
        """(gate and up, down), each (experts, out, in)."""
        if not self.apart:
            return self.gate_up, self.down  # type: ignore[return-value]
        gate, up, down = (torch.stack([m.weight for m in getattr(self, name)]) for name in ("gate", "up", "down"))
        return torch.cat([gate, up], 1), down

    def forward(self, x: Tensor) -> Tensor:
        gate_up, down = self.stacks()
        gate, up = torch.einsum("nd,eod->neo", x, gate_up).chunk(2, -1)
        return x + torch.einsum("neo,edo->nd", gate.sigmoid() * up, down)


class Mixture(nn.Module):
    def __init__(self, width: int, **settings) -> None:
        super().__init__()
        self.embed = nn.Linear(96, width, bias=False)
        self.embed.weight.requires_grad_(False)
        self.layers = nn.ModuleList([Experts(width, **settings)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.embed(x))

    def weights(self) -> Tensor:
        return torch.cat([w.flatten() for w in self.layers[0].stacks()])  # type: ignore[operator]


@pytest.mark.parametrize("optimizer", ["muon", "shampoo"])
def test_experts_train_as_a_matrix_each(optimizer):
    """Through scale and make_optimizers: gate and up of every expert and its way back are those of separate linear maps."""
    trained_weights = {}
    for apart in (False, True):
        torch.manual_seed(0)
        model, base = Mixture(32, apart=apart), Mixture(8, apart=apart)
        model.embed.weight.data.copy_(torch.randn(32, 96, generator=torch.Generator().manual_seed(1)))
        layout = {} if apart else {"linear_out_in": ("*.gate_up", "*.down")}
        scaling = scale(model, base, optimizer=optimizer, residual_blocks=("layers.",), **layout)
        start = model.weights().detach()
        optimizers = make_optimizers(model, scaling, lr=0.03, weight_decay=0.1, split={} if apart else {"*.gate_up": 2})
        for step in range(3):
            x = torch.randn(256, 96, generator=torch.Generator().manual_seed(step))
            model.zero_grad()
            model(x).tanh().sum(-1).square().mean().backward()
            for o in optimizers:
                o.step()
        trained_weights[apart] = model.weights().detach()
    moved = trained_weights[True] - start
    assert (trained_weights[False] - trained_weights[True]).norm() < 1e-2 * moved.norm() and moved.norm() > 0.1


def test_a_bare_parameter_of_three_dimensions_is_a_stack():
    assert stacked_parameters(Experts(8)) == {"gate_up": True, "down": True}
    assert stacked_parameters(nn.ModuleList([Experts(8), Convolutions(8)])) == {
        "0.gate_up": True, "0.down": True, "1.inner.weight": False, "1.line.weight": False,
    }  # fmt: skip


@pytest.mark.parametrize("transposed, dim", [(False, -2), (True, -1)])
def test_gate_and_up_of_experts_are_split_along_their_output(transposed, dim):
    growths = {"gate_up": Growth("hidden", (128, 32), (32, 8), True), "down": Growth("hidden", (32, 64), (8, 16), True)}
    (found,) = find_parts(Experts(32, transposed), growths, ["gate_up", "down"], {"gate_up": 2}, {}).values()
    assert (found.split, found.dim) == (2, dim)
    assert found.growths == (Growth("hidden", (64, 32), (16, 8), True),) * 2
