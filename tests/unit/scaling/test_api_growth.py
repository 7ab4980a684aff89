"""Which tensor is what in models of anybody's, how it starts, and what must be refused."""

import copy

import pytest
import torch
from support.networks import M, gpt, groups_of, mlp
from torch import nn

from spectral_mup import explain, init_, make_optimizers, param_groups, scale
from spectral_mup.theory.growth import GrowthError
from spectral_mup.theory.rules import Multipliers


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
    as_built = copy.deepcopy(model)
    as_built.load_state_dict(built)
    init_(as_built, scalings, biases=False, seed=1)
    assert all(as_built.get_parameter(f"{i}.bias").equal(built[f"{i}.bias"]) for i in (0, 2, 4))
    assert all(as_built.get_parameter(f"{i}.weight").equal(model.get_parameter(f"{i}.weight")) for i in (0, 2, 4))
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
    assert half.get_parameter("4.weight").float().equal(model.get_parameter("4.weight"))
    assert not half.get_parameter("2.weight").float().equal(model.get_parameter("2.weight"))
    assert float(model.get_parameter("2.weight").detach().std()) == pytest.approx(0.02 * 0.5, rel=0.05)


@pytest.mark.parametrize(
    "std, expected",
    [
        (None, {"0": 8**-0.5, "2": 16**-0.5, "4": 16**-0.5}),
        ({"hidden": 0.1, "readout": None}, {"2": 0.1, "4": 16**-0.5}),
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


def test_biases_start_alike_at_every_width():
    """Table 3 of arXiv 2203.03466: their init is that of the base; nn.Linear draws them within ±fan_in^-1/2, which falls."""
    base, wide = mlp(64), mlp(1024)
    std = 64**-0.5 / 3**0.5
    assert float(wide.get_parameter("2.bias").detach().std()) == pytest.approx(std / 4, rel=0.1)
    scaling = scale(wide, base)
    init_(wide, scaling, seed=0)
    assert float(wide.get_parameter("2.bias").detach().std()) == pytest.approx(std, rel=0.1)
    assert any(note.startswith("biases that torch draws start with the base's std") for note in scaling.notes)
    convolution = nn.Sequential(nn.Conv1d(64, 512, 3), nn.Conv1d(512, 512, 3))
    init_(convolution, scale(convolution, nn.Sequential(nn.Conv1d(64, 32, 3), nn.Conv1d(32, 32, 3))), seed=0)
    assert float(convolution.get_parameter("1.bias").detach().std()) == pytest.approx((3 * 32 * 3) ** -0.5, rel=0.15)


@pytest.mark.parametrize("value", [0.0, 0.25, -4.6])
def test_a_bias_that_is_set_stays(value):
    base, wide = mlp(64), mlp(256)
    for model in (base, wide):
        nn.init.constant_(model.get_parameter("2.bias"), value)
    init_(wide, scale(wide, base), seed=0)
    assert bool((wide.get_parameter("2.bias") == value).all())


def ramp(p: torch.Tensor) -> None:
    """log 1, … log n along the last axis, in equal rows: A_log of Mamba (arXiv 2312.00752)."""
    p.copy_(torch.arange(1.0, p.shape[-1] + 1).log().expand_as(p))


def sines(p: torch.Tensor) -> None:
    """Positions of Vaswani et al. 2017."""
    steps = torch.arange(p.shape[0])[:, None] * 100.0 ** -torch.linspace(0, 1, p.shape[1])
    p.copy_(steps.sin())


class Structured(nn.Module):
    def __init__(self, width: int, fill) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)
        self.special = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            fill(self.special.weight)


@pytest.mark.parametrize("fill", [ramp, sines, nn.init.eye_, nn.init.ones_, lambda p: nn.init.uniform_(p, 0, 1)])
def test_values_that_are_no_sample_stay_as_built_and_are_named(fill):
    torch.manual_seed(0)
    model = Structured(128, fill)
    before = model.special.weight.detach().clone()
    scaling = scale(model, Structured(32, fill))
    for std in (None, 0.02, {"hidden": 0.02, "embedding": None}):
        init_(model, scaling, seed=0, std=std)
        assert model.special.weight.equal(before)
    assert any(note.startswith("special.weight: does not start as a random sample of mean zero") for note in scaling.notes)


@pytest.mark.parametrize(
    "fill",
    [nn.init.normal_, nn.init.xavier_uniform_, nn.init.orthogonal_, nn.init.trunc_normal_, lambda p: p.copy_(p.bfloat16())],
)
@pytest.mark.parametrize("width", [4, 32])
def test_any_usual_init_is_a_sample(fill, width):
    for seed in range(20):
        torch.manual_seed(seed)
        scaling = scale(Structured(256, fill), Structured(width, fill))
        assert scaling.base_std["special.weight"] is not None, seed


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
    init_(model, scale(model, Net(8), embeddings=["gain"]), seed=0)
    assert not model.zero.weight.any() and (model.gain == 1).all()
    assert not model.token.weight[3].any() and model.token.weight[2].any()


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
        ("deep", "hidden", (128, 32 * 9), 1 / M),
        ("wise", "embedding", (64, 5), 1),
        ("up", "hidden", (64, 64 * 8), 1 / M),
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
        "frozen.weight": "hidden", "A.weight": "readout", "B.weight": "embedding",
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


class Bare(nn.Module):
    """Every parameter bare, in a module of two arguments that no forward pass reaches without being told."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(7, width))
        self.up = nn.Parameter(torch.randn(8, width))
        self.experts = nn.Parameter(torch.randn(5, width, 2 * width))
        self.head = nn.Parameter(torch.randn(3, width))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        h = x @ self.up + self.position
        h = (h.unsqueeze(0) @ self.experts).mul(weights).sum(0)
        return nn.functional.linear(h[..., : self.head.shape[1]], self.head)


TOLD = {"embeddings": ["position"], "linear_in_out": ["up", "experts"], "linear_out_in": "head"}


@pytest.mark.parametrize("missing", ["position", "up", "experts", "head"])
def test_a_bare_parameter_that_grows_is_asked_about(missing):
    names = {
        key: [name for name in ([told] if isinstance(told, str) else told) if name != missing] for key, told in TOLD.items()
    }
    with pytest.raises(GrowthError, match=rf"^{missing}: .*embeddings=\('{missing}',\) .*linear_out_in=.*linear_in_out="):
        scale(Bare(64), Bare(16), **names)


@pytest.mark.parametrize(
    "optimizer, lrs",
    [
        ("adamw", {"position": 1, "up": 1, "experts": 1 / M, "head": 1 / M}),
        ("sgd", {"position": M, "up": M, "experts": 1, "head": 1 / M}),
    ],
)
def test_what_is_told_of_bare_parameters_gives_the_published_lrs(optimizer, lrs):
    """Table 3 of arXiv 2203.03466. A stack of matrices has the fans of one, not a fan_in of 5 · width."""
    scaling = scale(Bare(64), Bare(16), optimizer=optimizer, **TOLD)
    assert {name: s.lr for name, s in scaling.items()} == pytest.approx(lrs)
    assert scaling.growths["experts"].shape == (128, 64) and scaling["experts"].init_std == M**-0.5
    turned = scale(
        Bare(64), Bare(16), optimizer=optimizer, **TOLD | {"linear_in_out": ["up"], "linear_out_in": ["head", "exp*"]}
    )
    assert turned.growths["experts"].shape == (64, 128)


def test_what_is_told_must_be_there_and_told_once():
    with pytest.raises(GrowthError, match="^heads: no parameter of this name; check linear_out_in="):
        scale(Bare(64), Bare(16), linear_out_in=["heads"])
    with pytest.raises(GrowthError, match="^head: named in embeddings= and in linear_out_in="):
        scale(Bare(64), Bare(16), **TOLD | {"embeddings": ["position", "head"]})
    fixed = scale(Bare(16), Bare(16))
    assert {growth.kind for growth in fixed.growths.values()} == {"fixed"}


class OneMap(nn.Module):
    def __init__(self, use, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape))
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(x, self.w)


F = nn.functional
USES = {
    "linear": (lambda x, w: F.linear(x, w), (8, "m"), ("readout", (8, 64))),
    "product": (lambda x, w: x @ w, (8, "m"), ("embedding", (64, 8))),
    "turned product": (lambda x, w: torch.matmul(x, w.T), ("m", 8), ("embedding", (64, 8))),
    "router": (lambda x, w: F.linear(x.float(), w.type(torch.float32)).softmax(-1).topk(2), (8, "m"), ("readout", (8, 64))),
    "added": (lambda x, w: x + w[: x.shape[1]], (7, "m"), ("embedding", (448, 1))),
    "looked up": (lambda x, w: w[x], (7, "m"), ("embedding", (448, 1))),
    "experts": (lambda x, w: torch.bmm(x.view(len(w), -1, x.shape[-1]), w), (5, "m", 3), ("readout", (3, 64))),
    "gate": (lambda x, w: x * w, (7, "m"), None),
    "normalised": (lambda x, w: F.linear(x, w / w.norm()), (8, "m"), None),
    "tied": (lambda x, w: F.linear(w[x], w), (8, "m"), None),
}


@pytest.mark.parametrize("use", USES)
def test_a_module_shows_what_its_bare_parameter_is_by_its_forward_pass(use):
    function, shape, expected = USES[use]

    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), OneMap(function, *(width if n == "m" else n for n in shape)))

    if expected is None:
        with pytest.raises(GrowthError, match="^1.w: a bare parameter"):
            scale(build(64), build(16))
    else:
        growth = scale(build(64), build(16)).growths["1.w"]
        assert (growth.kind, growth.shape) == expected


def test_gains_frozen_tables_and_recurrent_weights_need_not_be_told():
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((7, width))
            self.sines = nn.Parameter(torch.randn(7, width), requires_grad=False)
            self.cell = nn.LSTM(width, width)
            self.attention = nn.MultiheadAttention(width, 4)
            self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(width, 3))

    scaling = scale(Net(64), Net(16), optimizer="sgd")
    kinds = {name: growth.kind for name, growth in scaling.growths.items()}
    assert kinds["norm.weight"] == kinds["sines"] == "vector" and scaling["norm.weight"].lr == M
    assert kinds["cell.weight_hh_l0"] == kinds["attention.in_proj_weight"] == "hidden"
    assert kinds["weighed.parametrizations.weight.original1"] == "readout"


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


def test_a_prefix_may_stand_alone_and_streams_must_deepen_alike():
    alone = scale(gpt(64, depth=4), gpt(16), residual_blocks="blocks.")
    assert dict(alone) == dict(scale(gpt(64, depth=4), gpt(16), residual_blocks=["blocks."]))

    def two(width: int, left: int, right: int) -> nn.ModuleDict:
        return nn.ModuleDict({"left": gpt(width, left), "right": gpt(width, right)})

    streams = ["left.blocks.", "right.blocks."]
    assert scale(two(64, 4, 8), two(16, 1, 2), residual_blocks=streams).multipliers.branch == 1 / 4
    with pytest.raises(ValueError, match="^residual_blocks: grown by different factors"):
        scale(two(64, 4, 4), two(16, 1, 2), residual_blocks=streams)


def test_lamb_refuses_a_weight_that_starts_at_zero():
    base = mlp(16)
    nn.init.zeros_(base[4].weight)
    with pytest.raises(ValueError, match="^4.weight: starts at zero, but lamb"):
        scale(mlp(64), base, optimizer="lamb", wider=mlp(64))
    scale(mlp(64), base, optimizer="adamw")
    base[4].weight.requires_grad_(False)
    model = mlp(64)
    model[4].weight.requires_grad_(False)
    assert scale(model, base, optimizer="lamb").base_std["4.weight"] == 0
