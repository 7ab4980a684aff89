"""Laws of the public functions on models of anybody's: published numbers, the base bit for bit, and what must be refused."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from conftest import first_point
from torch import nn

from spectral_mup import explain, init_, make_optimizers, multipliers, param_groups, scale, set_multipliers_
from spectral_mup.build import base_values, parametrize
from spectral_mup.models.nanogpt import NanoGPT
from spectral_mup.theory.growth import GrowthError
from spectral_mup.theory.rules import Law, Multipliers, RuleError

M = 4


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def gpt(width: int, depth: int = 2, tied: bool = False) -> NanoGPT:
    return NanoGPT(
        vocab_size=50, context=16, width=width, depth=depth, heads=width // 8, hidden=4 * width, bias=True, tied=tied,
        dropout=0.0, forward=Multipliers(attention=8**-0.5),
    )  # fmt: skip


def groups_of(groups, key: str = "lr") -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["names"]}


# --- import -------------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_neither_torch_nor_hydra():
    code = "import sys, spectral_mup; assert not {'torch', 'hydra', 'pandas'} & set(sys.modules); from spectral_mup import *; "
    code += "assert 'torch' in sys.modules and 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_submodule_takes_the_name_of_a_public_function():
    import spectral_mup

    for name in spectral_mup.__all__:
        assert callable(getattr(spectral_mup, name)), name
    with pytest.raises(AttributeError, match="no attribute 'scales'"):
        _ = spectral_mup.scales


# --- published numbers --------------------------------------------------------------------------------------------------


def mup_package(p: nn.Parameter, base: nn.Parameter, optimizer: str) -> tuple[float, float]:
    """(lr, init std) multipliers of github.com/microsoft/mup, restated: a dim is infinite if it grows from base to model."""
    growing = sum(n != b for n, b in zip(p.shape, base.shape, strict=True))
    if optimizer == "adamw":  # MuAdam: matrix-like over the growth of fan_in, all else as it is
        lr = 1 / M if growing == 2 else 1.0
    else:  # MuSGD: vector-like times the width, matrix-like times growth of fan_out over that of fan_in
        lr = {0: 1.0, 1: float(M), 2: 1.0}[growing]
    return lr, M**-0.5 if growing == 2 else 1.0  # the readout's init is unscaled: its 1/m is in the forward pass


def lr_and_std(scalings) -> list[float]:
    return [x for s in scalings.values() for x in (s.lr, s.init_std)]


@pytest.mark.parametrize("build", [mlp, gpt])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_multipliers_are_those_of_the_mup_package(build, optimizer):
    model, base = build(16 * M), build(16)
    scalings = scale(model, base, optimizer=optimizer, rule="spectral", residual_blocks=getattr(model, "residual_blocks", ()))
    wrong = scale(model, base, optimizer=optimizer, rule="standard")
    shapes = dict(base.named_parameters())
    expected = {name: mup_package(p, shapes[name], optimizer) for name, p in model.named_parameters()}
    flat = [x for pair in expected.values() for x in pair]
    assert lr_and_std(scalings) == pytest.approx(flat) and list(scalings) == list(expected)
    assert scalings.multipliers == Multipliers(attention=1.0, logits=1 / M)
    assert lr_and_std(wrong) != pytest.approx(flat)
    assert groups_of(param_groups(model, scalings, lr=0.01)) == pytest.approx({n: 0.01 * lr for n, (lr, _) in expected.items()})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "muon", "shampoo", "lion"])
def test_scalings_and_lrs_are_those_of_a_sweep(tiny, optimizer):
    """The family's own model through both ways: optimizer and rule from Hydra, and from their files."""
    config = tiny(f"optimizer={optimizer}", "model.bias=true")
    science = first_point(config, "spectral", 64, log2_lr=-6).science
    _, p = parametrize(science, 256)

    def build(width: int) -> NanoGPT:
        with torch.device("meta"):
            return NanoGPT(vocab_size=256, context=16, width=width, depth=2, heads=width // 16, hidden=4 * width, bias=True,
                           tied=False, dropout=0.0, forward=p.forward)  # fmt: skip

    model = build(64)
    scalings = scale(model, build(32), optimizer=optimizer, rule="spectral", residual_blocks=["blocks."])
    assert dict(scalings) == p.scalings
    plans = base_values(science, p)
    kinds = science["optimizer"]["weight_decay"]
    for algorithm in {plan.algorithm for plan in plans.values()}:
        groups = param_groups(model, scalings, lr=2.0**-6, weight_decay=kinds, algorithm=algorithm)
        mine = {name: plan for name, plan in plans.items() if plan.algorithm == algorithm}
        assert groups_of(groups) == {name: plan.lr * p.scalings[name].lr for name, plan in mine.items()}
        assert groups_of(groups, "weight_decay") == {
            name: plan.weight_decay * p.scalings[name].weight_decay for name, plan in mine.items()
        }
    assert "muon" != optimizer or set(scalings.algorithm.values()) == {"muon", "adamw"}


# --- the base, bit for bit ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("width, equal", [(16, True), (64, False)])
def test_at_base_width_training_is_plain_torch(width, equal):
    torch.manual_seed(0)
    model = mlp(width)
    scalings = scale(model, mlp(16))
    plain = copy.deepcopy(model)
    ones = {(s.init_std, s.lr, s.weight_decay, s.eps) for s in scalings.values()} == {(1.0, 1.0, 1.0, 1.0)}
    ours = train(model, [torch.optim.AdamW(param_groups(model, scalings, lr=0.01, weight_decay=0.1))])
    assert set_multipliers_(model, scalings) == []
    theirs = train(plain, [torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)])
    same = all(a.equal(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert (ours == theirs, same, ones) == (equal, equal, equal)


def test_kinds_at_base_width_are_told_by_a_third_model():
    with pytest.raises(ValueError, match="wider=build"):
        scale(gpt(16), gpt(16), optimizer="muon")
    scalings = scale(gpt(16), gpt(16), optimizer="muon", residual_blocks=["blocks."], wider=gpt(32))
    larger = scale(gpt(32), gpt(16), optimizer="muon", residual_blocks=["blocks."])
    assert scalings.algorithm == larger.algorithm and {s.lr for s in scalings.values()} == {1.0}
    kinds = {"matrix": 0.1, "embedding": 0.1, "readout": 0.1, "vector": 0.0}
    with pytest.raises(ValueError, match="kinds are unknown"):
        param_groups(gpt(16), scale(gpt(16), gpt(16)), lr=0.1, weight_decay=kinds)


# --- init ---------------------------------------------------------------------------------------------------------------


def test_weights_have_the_std_of_the_base_times_its_multiplier():
    torch.manual_seed(0)
    model, base = mlp(1024), mlp(256)
    scalings = scale(model, base)
    built = {name: p.detach().clone() for name, p in model.named_parameters()}
    init_(model, scalings, seed=1)
    for name, m_in in (("0.weight", 1.0), ("2.weight", 0.5), ("4.weight", 0.25)):
        p, std = model.get_parameter(name).detach(), float(base.get_parameter(name).detach().std())
        assert float(p.std()) == pytest.approx(std * m_in, rel=0.05), name
        assert float((p.abs() > 2.5 * p.std()).float().mean()) > 0.005  # normal; what nn.Linear drew has no such tail
    assert float((built["2.weight"].abs() > 2.5 * built["2.weight"].std()).float().mean()) == 0
    assert all(model.get_parameter(f"{i}.bias").equal(built[f"{i}.bias"]) for i in (0, 2, 4))
    once = {name: p.detach().clone() for name, p in model.named_parameters()}
    init_(model, scale(model, base), seed=1)
    assert all(p.equal(once[name]) for name, p in model.named_parameters())
    init_(model, scalings, seed=2)
    assert not model.get_parameter("2.weight").equal(once["2.weight"])
    torch.manual_seed(1)
    init_(model, scalings)
    assert all(p.equal(once[name]) for name, p in model.named_parameters())  # by default the seed of torch


def test_a_draw_depends_on_seed_name_and_shape_alone():
    model = mlp(64)
    scalings = scale(model, mlp(16))
    init_(model, scalings, std=0.02, seed=3)
    half = mlp(64).to(torch.float64)
    for i in (0, 2):
        half[i].requires_grad_(False)  # as built
    init_(half, scalings, std=0.02, seed=3)
    assert half[4].weight.float().equal(model[4].weight)
    assert not half[2].weight.float().equal(model[2].weight)
    assert float(model[2].weight.detach().std()) == pytest.approx(0.02 * 0.5, rel=0.05)


@pytest.mark.parametrize(
    "std, expected",
    [
        (None, {"0": 8**-0.5, "2": 16**-0.5, "4": 16**-0.5}),
        ({"matrix": 0.1, "readout": None}, {"2": 0.1, "4": 16**-0.5}),
        (0.3, {"0": 0.3, "2": 0.3, "4": 0.3}),
    ],
)
def test_std_of_a_base_on_the_meta_device_or_as_given(std, expected):
    with torch.device("meta"):
        base = mlp(16)
    model = mlp(512)
    scalings = scale(model, base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    init_(model, scalings, std=std, seed=0)
    for i in ("0", "2", "4"):
        p = model.get_parameter(f"{i}.weight").detach()
        if i in expected:
            assert float(p.std()) == pytest.approx(expected[i] * scalings[f"{i}.weight"].init_std, rel=0.05)
        else:
            assert p.equal(before[f"{i}.weight"])


def test_zeros_constants_and_padding_stay():
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.token = nn.Embedding(10, width, padding_idx=3)
            self.gain = nn.Parameter(torch.ones(1, width))
            self.zero = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.zero.weight)

    model = Net(32)
    nn.init.ones_(model.zero.weight)
    init_(model, scale(model, Net(8)), seed=0)
    assert not model.zero.weight.any() and (model.gain == 1).all()
    assert not model.token.weight[3].any() and model.token.weight[2].any()


# --- shapes -------------------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.deep = nn.Conv2d(width, 2 * width, 3, groups=2)
        self.wise = nn.Conv1d(width, width, 5, groups=width)
        self.up = nn.ConvTranspose2d(2 * width, width, (2, 4), groups=2)
        self.head = nn.ConvTranspose1d(width, 6, 3)


@pytest.mark.parametrize(
    "name, kind, shape, lr",
    [
        ("stem", "embedding", (64, 27), 1),
        ("deep", "matrix", (128, 32 * 9), 1 / M),
        ("wise", "embedding", (64, 5), 1),
        ("up", "matrix", (64, 64 * 8), 1 / M),
        ("head", "readout", (6, 64 * 3), 1 / M),
    ],
)
def test_a_convolution_counts_as_the_map_of_one_position(name, kind, shape, lr):
    scalings = scale(Convolutions(64), Convolutions(16))
    growth = scalings.growths[f"{name}.weight"]
    assert (growth.kind, growth.shape) == (kind, shape)
    assert scalings[f"{name}.weight"].lr == pytest.approx(lr)


def test_growth_of_a_transposed_convolution_is_not_that_of_a_plain_one():
    """Storage (in, out): a head read as (out, in) would be an embedding."""
    head = scale(nn.Conv1d(64, 6, 3), nn.Conv1d(16, 6, 3)).growths["weight"]
    assert head == scale(nn.ConvTranspose1d(64, 6, 3), nn.ConvTranspose1d(16, 6, 3)).growths["weight"]
    stem = scale(nn.ConvTranspose1d(6, 64, 3), nn.ConvTranspose1d(6, 16, 3)).growths["weight"]
    assert (stem.kind, head.kind) == ("embedding", "readout")


def test_muon_leaves_convolutions_to_its_partner():
    model = nn.Sequential(Convolutions(64), nn.Linear(64, 64))
    scalings = scale(model, nn.Sequential(Convolutions(16), nn.Linear(16, 16)), optimizer="muon")
    assert {n: a for n, a in scalings.algorithm.items() if a == "muon"} == {"1.weight": "muon"}
    assert scalings["0.deep.weight"].lr == pytest.approx(1 / M)  # AdamW's law, not Muon's
    assert any("0.deep.weight" in note for note in scalings.notes)
    make_optimizers(model, scalings, lr=0.1)


def test_a_low_rank_pair_and_frozen_weights():
    """LoRA: A (rank, width) reads, B (width, rank) writes and starts at zero; the pretrained weight is in no group."""

    class LoRA(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.frozen = nn.Linear(width, width, bias=False).requires_grad_(False)
            self.A, self.B = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
            nn.init.zeros_(self.B.weight)

    model = LoRA(64)
    before = model.frozen.weight.clone()
    scalings = scale(model, LoRA(16))
    init_(model, scalings, seed=0)
    assert {name: g.kind for name, g in scalings.growths.items()} == {
        "frozen.weight": "matrix", "A.weight": "readout", "B.weight": "embedding",
    }  # fmt: skip
    assert (scalings["A.weight"].lr, scalings["B.weight"].lr) == (pytest.approx(1 / M), pytest.approx(1))
    assert groups_of(param_groups(model, scalings, lr=1.0)) == {"A.weight": pytest.approx(1 / M), "B.weight": pytest.approx(1)}
    assert model.frozen.weight.equal(before) and not model.B.weight.any() and "frozen.weight" in explain(scalings)


def test_modules_without_weights():
    scalings = scale(nn.ReLU(), nn.ReLU())
    assert len(scalings) == 0 and param_groups(nn.ReLU(), scalings, lr=1.0) == [] and explain(scalings) == "no parameters"
    bare = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64, elementwise_affine=False))
    small = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, elementwise_affine=False))
    assert list(scale(bare, small)) == ["0.weight", "0.bias"]


def test_what_cannot_be_classified_is_named():
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 7, width))
            self.readout = nn.Linear(width, 3)

    with pytest.raises(GrowthError, match=r"^position: .* embeddings=\('position',\)"):
        scale(Net(64), Net(16))
    scalings = scale(Net(64), Net(16), embeddings=["position"])
    assert (scalings.growths["position"].kind, scalings["position"].lr) == ("embedding", 1.0)
    init_(model := Net(64), scalings, seed=0)
    assert float(model.position.detach().std()) == pytest.approx(scalings.base_std["position"], rel=0.1)
    with pytest.raises(GrowthError, match="^positions: no parameter"):
        scale(Net(64), Net(16), embeddings=["positions"])


# --- depth --------------------------------------------------------------------------------------------------------------


def test_a_deeper_model_is_compared_with_block_0_of_the_base():
    deep = scale(gpt(64, depth=8), gpt(16), rule="spectral", residual_blocks=["blocks."])
    assert deep.multipliers == Multipliers(attention=1.0, branch=1 / 4, logits=1 / M)
    up = "blocks.7.mlp.up.weight"
    assert deep[up] == deep["blocks.0.mlp.up.weight"]
    assert (deep[up].lr, deep[up].eps) == (pytest.approx(1 / M), pytest.approx(1 / M / 4))
    sgd = scale(gpt(64, depth=8), gpt(16), rule="spectral", residual_blocks=["blocks."], optimizer="sgd")
    assert sgd[up].lr == pytest.approx(4)
    with pytest.raises(GrowthError, match=r"^blocks.2.*residual_blocks="):
        scale(gpt(64, depth=8), gpt(16))
    with pytest.raises(ValueError, match="^residual_blocks: no parameter is named layers.0"):
        scale(gpt(64), gpt(16), residual_blocks=["layers."])
    assert any("residual_blocks" in note for note in scale(gpt(64), gpt(16)).notes)
    assert not any("residual_blocks" in note for note in deep.notes)


# --- the forward pass ---------------------------------------------------------------------------------------------------


def test_tied_embeddings_need_the_multiplier_on_the_logits():
    with pytest.raises(ValueError, match=r'^token.weight: tied .* use rule="spectral" and set_multipliers_'):
        scale(gpt(64, tied=True), gpt(16, tied=True))
    model = gpt(64, tied=True)
    scalings = scale(model, gpt(16, tied=True), rule="spectral", residual_blocks=["blocks."])
    assert "readout.weight" not in scalings and scalings["token.weight"].lr == 1
    x = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model(x)
    for _ in range(2):
        said = set_multipliers_(model, scalings)
    assert "logits × 0.25 at readout" in said
    torch.testing.assert_close(model(x), before / M)
    assert multipliers(scalings).logits == 1 / M


def test_multipliers_for_a_forward_pass_of_ones_own():
    scalings = scale(gpt(64, depth=4), gpt(16), rule="spectral", residual_blocks=["blocks."])
    assert math.isnan(multipliers(scalings).attention) and multipliers(scalings).branch == 0.5
    assert "to do: multiply the output of every residual branch in blocks. by 0.5" in set_multipliers_(gpt(64, 4), scalings)

    def attention(width: int, heads: int) -> nn.Module:
        return nn.TransformerEncoderLayer(width, heads, 4 * width)

    scalings = scale(attention(64, 4), attention(16, 4))
    assert multipliers(scalings).attention == pytest.approx(4**-0.5 / M)
    assert set_multipliers_(attention(64, 4), scalings) == ["to do: scale q·k by 0.125 in place of 1/√head_dim"]
    assert scale(attention(64, 16), attention(16, 4)).multipliers.attention == 1  # more heads, none larger


def test_the_bias_of_an_output_layer_is_not_multiplied():
    model = mlp(64)
    scalings = scale(model, mlp(16), rule="spectral")
    head = copy.deepcopy(model[4])
    set_multipliers_(model, scalings)
    x = torch.randn(5, 64)
    torch.testing.assert_close(model[4](x), x @ head.weight.T / M + head.bias)


# --- wrappers, copies, files --------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Names as DistributedDataParallel has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(model: nn.Module):
    return torch.compile(model, backend="eager")  # torch's own backend warns of deprecations when it is imported


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        Wrapper,
        lambda m: compiled(Wrapper(m)),
        lambda m: Wrapper(compiled(m)),
        lambda m: nn.Sequential(*(compiled(x) for x in m)),
    ],
    ids=["compiled", "ddp", "compiled ddp", "ddp of compiled", "parts compiled"],
)
def test_one_scalings_serves_every_wrapper(wrap):
    model = mlp(64)
    scalings = scale(model, mlp(16))
    wrapped = wrap(model)
    assert dict(scale(wrapped, mlp(16))) == dict(scalings)
    assert groups_of(param_groups(wrapped, scalings, lr=0.1)) == groups_of(param_groups(model, scalings, lr=0.1))
    init_(model, scalings, seed=0)
    expected = model[2].weight.detach().clone()
    nn.init.zeros_(model[2].weight)
    init_(wrapped, scalings, seed=0)
    assert model[2].weight.equal(expected)


def test_scalings_are_for_the_model_they_were_made_of():
    scalings = scale(mlp(64), mlp(16))
    for wrong in (mlp(32), nn.Sequential(mlp(64))):
        with pytest.raises(ValueError, match=r"weight: of shape .* call scale\(model, base\)"):
            param_groups(wrong, scalings, lr=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_saved_and_loaded_training_goes_on_as_if_unbroken(optimizer):
    torch.manual_seed(0)
    model = mlp(64)
    scalings = scale(model, mlp(16), optimizer=optimizer, rule="spectral")
    set_multipliers_(model, scalings)
    optimizers = make_optimizers(model, scalings, lr=0.01, weight_decay=0.1)
    train(model, optimizers)
    file = io.BytesIO()
    torch.save({"model": model, "optimizers": [o.state_dict() for o in optimizers], "scalings": scalings}, file)
    unbroken = train(model, optimizers, first=4)

    file.seek(0)
    kept = torch.load(file, weights_only=False)
    resumed = make_optimizers(kept["model"], kept["scalings"], lr=0.5)
    for o, state in zip(resumed, kept["optimizers"], strict=True):
        o.load_state_dict(state)
    copied = copy.deepcopy(kept["model"])
    assert train(kept["model"], resumed, first=4) == unbroken
    assert all("base_lr" in group for o in resumed for group in o.param_groups)
    assert train(copied, make_optimizers(copied, scalings, lr=0.01), first=4) != unbroken  # the control: no state


# --- groups -------------------------------------------------------------------------------------------------------------


def test_several_optimizers_take_each_tensor_once():
    model, base = gpt(64), gpt(16)
    scalings = scale(model, base, optimizer="muon", residual_blocks=["blocks."])
    with pytest.raises(ValueError, match="muon is several, .*make_optimizers"):
        param_groups(model, scalings, lr=0.1)
    with pytest.raises(ValueError, match="^algorithm='sgd': it trains no tensor"):
        param_groups(model, scalings, lr=0.1, algorithm="sgd")
    names = [n for a in ("muon", "adamw") for n in groups_of(param_groups(model, scalings, lr=0.1, algorithm=a))]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    optimizers = make_optimizers(model, scalings, lr=0.1)
    assert [type(o).__name__ for o in optimizers] == ["AdamW", "Muon"]
    assert sorted(n for o in optimizers for g in o.param_groups for n in g["names"]) == sorted(names)
    lrs = groups_of([g for o in optimizers for g in o.param_groups])
    assert lrs["blocks.0.mlp.up.weight"] == pytest.approx(0.1 * 2)  # √(fan_out/fan_in)
    assert lrs["token.weight"] == pytest.approx(0.1 * 0.25)  # AdamW's share


def test_independent_weight_decay_shrinks_alike_at_every_width():
    model = mlp(64)
    scalings = scale(model, mlp(16))
    for independent, expected in ((True, {0.001}), (False, {0.01 * 0.001})):
        groups = param_groups(model, scalings, lr=0.01, weight_decay=0.001, independent=independent)
        assert {round(g["lr"] * g["weight_decay"], 12) for g in groups} == expected
    with pytest.raises(ValueError, match="^weight_decay=.*give a number, or one for each of matrix"):
        param_groups(model, scalings, lr=0.01, weight_decay={"matrix": 0.1})


def test_eps_follows_the_law_of_the_optimizer():
    model = mlp(64)
    assert groups_of(param_groups(model, scale(model, mlp(16)), lr=1.0), "eps")["2.weight"] == pytest.approx(1e-8 / M)
    assert groups_of(param_groups(model, scale(model, mlp(16)), lr=1.0, eps=1e-5), "eps")["2.weight"] == pytest.approx(1e-5 / M)
    assert all("eps" not in g for g in param_groups(model, scale(model, mlp(16), optimizer="sgd"), lr=1.0))


# --- optimizers and rules of one's own ------------------------------------------------------------------------------------


def test_laws_instead_of_names():
    model, base = mlp(64), mlp(16)
    adam = Law("mine", {"m_out": 0.5, "m_in": 0.5})
    plain = {name: s.lr for name, s in scale(model, base).items()}
    assert {name: s.lr for name, s in scale(model, base, optimizer=adam).items()} == plain
    laws = {"matrix": Law("mine", {}), "embedding": adam, "readout": adam, "vector": adam}
    assert scale(model, base, optimizer=laws)["2.weight"].lr == 1
    with pytest.raises(ValueError, match="^optimizer: no Law for vector"):
        scale(model, base, optimizer={kind: adam for kind in ("matrix", "embedding", "readout")})
    with pytest.raises(ValueError, match="^optimizer mine: only its law is known"):
        make_optimizers(model, scale(model, base, optimizer=adam), lr=0.1)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"optimizer": "adam"}, "^optimizer='adam': no such file; optimizer can be adamw, "),
        ({"optimizer": "other"}, "^optimizer='other': it declares no size law"),
        ({"rule": "mup"}, "^rule='mup': no such file; rule can be completep, "),
    ],
)
def test_unknown_names_are_refused_with_those_known(choice, message):
    with pytest.raises(ValueError, match=message):
        scale(mlp(64), mlp(16), **choice)


def test_a_rule_that_does_not_cover_the_optimizer():
    with pytest.raises(RuleError, match="completep has no lr for optimizer sgd"):
        scale(mlp(64), mlp(16), optimizer="sgd", rule="completep")


def test_an_installation_without_conf_says_so(monkeypatch, tmp_path):
    from spectral_mup import declared

    monkeypatch.setattr(declared, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="^optimizer='adamw': .*does not exist; install from a clone"):
        scale(mlp(64), mlp(16))


def test_explain_shows_what_a_group_trains_with():
    model = mlp(64)
    scalings = scale(model, mlp(16), rule="spectral")
    lines = explain(scalings, lr=0.5, weight_decay=0.1).splitlines()
    (hidden,) = [line.split() for line in lines if line.startswith("2.weight")]
    assert hidden[1:5] == ["64×64", "matrix", "4", "4"] and hidden[6:11] == ["adamw", "0.125", "0.25", "0.4", "4"]
    assert "logits 0.25" in lines[1] and "logits × 0.25" in lines[-1]
