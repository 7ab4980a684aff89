"""What a parameter is where no class says it: parts of a weight, weight norm, maps to one number, and what is left to ask."""

import pytest
import torch
from support.networks import groups_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from spectral_mup import init_, make_optimizers, param_groups, scale
from spectral_mup.theory.growth import GrowthError

RANK = 4


class Own(nn.Module):
    """A layer of bare parameters; `use` is its forward pass on (x, its parameters by name)."""

    def __init__(self, use, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.use = use
        self.register_buffer("noise", torch.randn(shapes["W"]) if "W" in shapes else None)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self, x)


class Added(nn.Module):
    """A parametrization W → W + B·A, or W + D."""

    def __init__(self, rows: int, columns: int, low_rank: bool) -> None:
        super().__init__()
        self.low_rank = low_rank
        if low_rank:
            self.A, self.B = nn.Parameter(torch.randn(RANK, columns)), nn.Parameter(torch.randn(rows, RANK))
        else:
            self.D = nn.Parameter(torch.randn(rows, columns))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (0.5 * (self.B @ self.A).view(weight.shape) if self.low_rank else self.D)


def parametrized(width: int, low_rank: bool) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    parametrize.register_parametrization(layer, "weight", Added(width, width, low_rank))
    return layer


def between(build, width: int) -> nn.Sequential:
    """The layer of a width, between an embedding and a readout."""
    return nn.Sequential(nn.Embedding(50, width), build(width), nn.ReLU(), nn.Linear(width, 50))


def lora(use):
    return lambda w: Own(use, W=(w, w), A=(RANK, w), B=(w, RANK))


def low_rank(use):
    return lambda w: Own(use, U=(w, RANK), V=(RANK, w))


SQUARE, READS, WRITES = (lambda w: (w, w)), (lambda w: (w, RANK)), (lambda w: (RANK, w))  # (in, out) of a plain nn.Linear
LORA = {"W": SQUARE, "A": READS, "B": WRITES}
ORIGINAL, KEPT = "parametrizations.weight.original", "parametrizations.weight.0."
MADE = {
    "W + BA": (lora(lambda m, x: F.linear(x, m.W + m.B @ m.A)), LORA),
    "W + sBA": (lora(lambda m, x: F.linear(x, m.W + 0.5 * m.B @ m.A)), LORA),
    "turned": (lora(lambda m, x: x @ (m.W.T + (m.A.T @ m.B.T) * 0.5)), LORA),
    "UV": (low_rank(lambda m, x: x @ (m.U @ m.V)), {"U": READS, "V": WRITES}),
    "scaled UV": (low_rank(lambda m, x: x @ (m.U @ m.V / 2)), {"U": READS, "V": WRITES}),
    "W + noise": (
        lambda w: Own(lambda m, x: F.linear(x, m.W + 0.1 * m.noise * torch.randn(m.W.shape)), W=(w, w)), {"W": SQUARE}
    ),
    "parametrized W + BA": (
        lambda w: parametrized(w, True), {ORIGINAL: SQUARE, f"{KEPT}A": READS, f"{KEPT}B": WRITES}
    ),
    "parametrized W + D": (lambda w: parametrized(w, False), {ORIGINAL: SQUARE, f"{KEPT}D": SQUARE}),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("made", MADE)
def test_parts_of_a_weight_are_scaled_as_plain_layers_of_their_shape(made, optimizer):
    build, parts = MADE[made]
    scaling = scale(between(build, 64), between(build, 16), optimizer=optimizer)

    def plain(width: int) -> nn.Module:
        return nn.ModuleList([nn.Linear(*fans(width), bias=False) for fans in parts.values()])

    expected = scale(plain(64), plain(16), optimizer=optimizer)
    for i, part in enumerate(parts):
        name, as_plain = f"1.{part}", f"{i}.weight"
        assert scaling.growths[name] == expected.growths[as_plain]
        assert scaling[name] == expected[as_plain] and scaling.algorithm[name] == expected.algorithm[as_plain]


def test_a_layer_with_a_low_rank_part_puts_out_alike_at_every_width():
    spreads = []
    torch.manual_seed(0)
    for width in (64, 512):
        model = between(MADE["W + BA"][0], width)
        init_(model, scale(model, between(MADE["W + BA"][0], 64)), seed=0)
        nn.init.zeros_(model.get_parameter("1.B"))  # as LoRA starts
        spreads.append(float(model[:2](torch.arange(50)).detach().std()))
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


def later(m: Own, x: torch.Tensor) -> torch.Tensor:
    h = torch.zeros(x.shape)
    for _ in range(2):
        h = (h @ m.W + m.b + x).tanh()
    return h


def written(m: Own, x: torch.Tensor) -> torch.Tensor:
    """Rows and sums that are written into zeros."""
    rows, sums = torch.zeros(x.shape), torch.zeros(x.shape)
    rows[:] = x
    sums += x
    return (rows + m.a).relu() + (sums + m.b).relu()


def in_place(m: Own, x: torch.Tensor) -> torch.Tensor:
    h = torch.zeros(x.shape)
    h += m.a
    h += x
    return h @ m.W


KNOWN = {
    "added in place": (in_place, {"a": (3, "m"), "W": ("m", "m")}, {"a": "embedding", "W": "hidden"}),
    "of the weight's type": (lambda m, x: F.linear(x.type_as(m.W), m.W), {"W": (8, "m")}, {"W": "readout"}),
    "sums of positions": (lambda m, x: x + (m.a + m.b), {"a": (1, "m"), "b": (3, "m")}, {"a": "embedding", "b": "embedding"}),
    "a state of zeros": (later, {"W": ("m", "m"), "b": (1, "m")}, {"W": "hidden", "b": "embedding"}),
    "positions on zeros": (
        lambda m, x: x + (m.a + torch.zeros(2, 1, 1)), {"a": (3, "m")}, {"a": "embedding"}
    ),
    "positions on what was written": (written, {"a": (3, "m"), "b": (3, "m")}, {"a": "embedding", "b": "embedding"}),
    "one more than a weight": (lambda m, x: F.linear(x, m.W + 1), {"W": (8, "m")}, {"W": "readout"}),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_added_to_an_input_is_an_embedding_and_to_a_constant_is_not_settled(case):
    use, shapes, kinds = KNOWN[case]

    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), Own(use, **{k: [width if n == "m" else n for n in s] for k, s in shapes.items()}))

    growths = scale(build(64), build(16)).growths
    assert {name: growths[f"1.{name}"].kind for name in kinds} == kinds


UNCLEAR = {
    "factors of a table": low_rank(lambda m, x: x + (m.U @ m.V)[: x.shape[0]]),
    "a number that may grow": lambda w: Own(lambda m, x: F.linear(x, m.U * w**-0.5), U=(w, w)),
    "a gate": low_rank(lambda m, x: x @ (m.U @ m.V).sigmoid()),
    "both ways": lambda w: Own(lambda m, x: x @ (m.U @ m.U.T), U=(w, RANK)),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_part_whose_use_leaves_it_open_is_asked_about(case):
    with pytest.raises(GrowthError, match="^1.U: a bare parameter of shape .*; name it in"):
        scale(between(UNCLEAR[case], 64), between(UNCLEAR[case], 16))


LAYERS = {
    "linear": lambda w: nn.Linear(w, w),
    "convolution": lambda w: nn.Conv1d(w, w, 3),
    "in groups": lambda w: nn.Conv2d(w, 2 * w, 3, groups=2),
    "transposed": lambda w: nn.ConvTranspose2d(w, 2 * w, (2, 4)),
    "head": lambda w: nn.Conv1d(w, 6, 3),
}
NORMS = {"old": (nn.utils.weight_norm, "weight_v", "weight_g"), "new": (parametrizations.weight_norm, "{}1", "{}0")}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_weight_norm_leaves_a_weight_what_it_is_and_adds_a_gain(layer, norm):
    """g·v/‖v‖ (arXiv 1602.07868): v is the weight, g is as long as the bias."""
    wrap, v, g = NORMS[norm]
    v, g = v.format("parametrizations.weight.original"), g.format("parametrizations.weight.original")
    for optimizer in ("adamw", "sgd", "muon"):
        models = [nn.Sequential(wrap(LAYERS[layer](w)), nn.Linear(w, w)) for w in (64, 16)]
        plain = [nn.Sequential(LAYERS[layer](w), nn.Linear(w, w)) for w in (64, 16)]
        scaling, expected = scale(*models, optimizer=optimizer), scale(*plain, optimizer=optimizer)
        for name, as_plain in ((v, "0.weight"), (g, "0.bias")):
            assert scaling[f"0.{name}"] == expected[as_plain]
            assert scaling.algorithm[f"0.{name}"] == expected.algorithm[as_plain]
        assert scaling.growths[f"0.{v}"] == expected.growths["0.weight"]
        assert scaling.growths[f"0.{g}"].kind in ("vector", "fixed") and scaling.base_std[f"0.{g}"] is None
        groups, of_plain = (
            [group for o in make_optimizers(m, s, lr=0.1, weight_decay=0.1) for group in o.param_groups]
            for m, s in ((models[0], scaling), (plain[0], expected))
        )
        assert groups_of(groups, "lr")[f"0.{v}"] == groups_of(of_plain, "lr")["0.weight"]
        decays = groups_of(groups, "weight_decay")
        assert decays[f"0.{v}"] > 0 and (decays[f"0.{g}"] == 0 or layer == "head")  # what does not grow has no kind
        (stacked,) = [group.get("stacked") for group in groups if f"0.{v}" in group["names"]]
        assert stacked == next(group.get("stacked") for group in of_plain if "0.weight" in group["names"])


def test_a_parametrized_weight_is_what_its_module_makes_of_it():
    def build(width: int) -> nn.Module:
        layers = (nn.Embedding(50, width), nn.Conv1d(width, width, 3), nn.Linear(width, 50))
        return nn.Sequential(*map(parametrizations.spectral_norm, layers))

    kinds = [growth.kind for name, growth in scale(build(64), build(16)).growths.items() if name.endswith("original")]
    assert kinds == ["embedding", "hidden", "readout"]


@pytest.mark.parametrize(
    "use, wrap, fans",
    [
        (
            lambda m, x: x @ m.W,
            lambda m: parametrize.register_parametrization(m, "W", Added(m.W.shape[0], m.W.shape[1], False)),
            (16, 8),
        ),
        (lambda m, x: F.linear(x, m.W), lambda m: parametrizations.orthogonal(m, "W"), (8, 16)),
    ],
    ids=["seen", "not seen"],
)
def test_a_parametrized_weight_of_one_s_own_module_is_what_is_seen_of_it_or_stored_as_linear_s(use, wrap, fans):
    def build(width: int) -> nn.Module:
        module = Own(use, W=(8, width))
        wrap(module)
        return nn.Sequential(nn.Linear(3, 3), module)

    (growth,) = [growth for name, growth in scale(build(16), build(32)).growths.items() if name.endswith("original")]
    assert growth.shape == fans


def pool(use):
    return lambda w: nn.Sequential(nn.Linear(8, w), Own(use, v=(w,)))


MAPS = {
    "x @ v": (lambda m, x: x @ m.v, ""),
    "v @ x": (lambda m, x: m.v @ x.mT, ""),
    "linear": (lambda m, x: F.linear(x, m.v), ""),
    "named": (lambda m, x: (x * m.v).sum(-1), "linear_out_in"),
    "named, turned": (lambda m, x: (x * m.v).sum(-1), "linear_in_out"),
}


@pytest.mark.parametrize("case", MAPS)
def test_a_vector_that_multiplies_is_a_linear_map_to_one_number(case):
    """As nn.Linear(width, 1) in everything: growth, multipliers, init and decay, at the base's width too."""
    torch.manual_seed(0)
    use, argument = MAPS[case]
    build, told = pool(use), {argument: "1.v"} if argument else {}

    def plain(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 1, bias=False))

    for width, optimizer in ((1024, "adamw"), (1024, "muon"), (256, "adamw")):
        model, base = build(width), build(256)
        scaling, expected = (
            scale(model, base, optimizer=optimizer, **told),
            scale(plain(width), plain(256), optimizer=optimizer),
        )
        assert scaling.growths["1.v"] == expected.growths["1.weight"] and scaling["1.v"] == expected["1.weight"]
        assert scaling.base_std["1.v"] == pytest.approx(float(base.get_parameter("1.v").detach().std(correction=0)))
        init_(model, scaling, seed=0, biases=False)
        assert float(model.get_parameter("1.v").detach().std()) == pytest.approx(
            scaling.base_std["1.v"] * scaling["1.v"].init_std, rel=0.15
        )
        (group,) = [
            g for o in make_optimizers(model, scaling, lr=0.1, weight_decay=0.1) for g in o.param_groups if "1.v" in g["names"]
        ]
        assert group["weight_decay"] == pytest.approx(0.1 * expected["1.weight"].weight_decay)
    init_(model, scaling, seed=0, std=0.5)
    assert float(model.get_parameter("1.v").detach().std()) == pytest.approx(0.5, rel=0.15)
    on_meta = scale(build(1024).to("meta"), build(256).to("meta"), **told)
    assert on_meta.base_std["1.v"] == 256**-0.5


def test_notes_of_a_map_to_one_number_are_those_of_a_weight():
    def build(width: int, fill=None) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, width, bias=False), Own(MAPS["x @ v"][0], v=(width,)))
        if fill is not None:
            nn.init.constant_(model.get_parameter("1.v"), fill)
        return model

    assert not any("1.v" in note or "biases" in note for note in scale(build(64), build(16)).notes)
    assert any(note.startswith("1.v: does not start as a random") for note in scale(build(64, 1.0), build(16, 1.0)).notes)
    with pytest.raises(ValueError, match="^1.v: starts at zero, but lamb"):
        scale(build(64, 0.0), build(16, 0.0), optimizer="lamb")


@pytest.mark.parametrize(
    "use",
    [lambda m, x: x * m.v, lambda m, x: x + m.v, lambda m, x: F.linear(x, m.W + m.v), lambda m, x: x + m.v @ m.W],
    ids=["gain", "bias", "rows", "input"],
)
def test_any_other_vector_stays_one(use):
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), Own(use, v=(width,), W=(width, width)))

    scaling = scale(build(64), build(16), linear_out_in="1.W")
    assert scaling.growths["1.v"].kind == "vector" and scaling["1.v"].lr == 1 and scaling.base_std["1.v"] is None


def test_a_map_to_one_number_in_a_block_is_no_matrix_of_muon():
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList([pool(MAPS["x @ v"][0])(width)])

    model = Block(64)
    scaling = scale(model, Block(16), optimizer="muon", residual_blocks=("layers.",))
    assert (scaling.growths["layers.0.1.v"].kind, scaling.algorithm["layers.0.1.v"]) == ("hidden", "adamw")
    make_optimizers(model, scaling, lr=0.1)


def test_an_empty_or_a_complex_weight_is_named():
    class Net(nn.Module):
        def __init__(self, width: int, complex_gain: bool = False, empty: bool = False) -> None:
            super().__init__()
            self.map = nn.Linear(8, width)
            self.gain = nn.Parameter(torch.ones(width, dtype=torch.complex64))
            self.spectrum = None if complex_gain else nn.Parameter(torch.randn(width, width, dtype=torch.complex64))
            self.placeholder = nn.Parameter(torch.empty(0)) if empty else None

    with pytest.raises(ValueError, match=r"^model: placeholder is empty, of shape \(0,\); hold None in its place"):
        scale(Net(64, empty=True), Net(16, empty=True))
    model = Net(64)
    scaling = scale(model, Net(16), linear_out_in="spectrum")
    with pytest.raises(ValueError, match="^spectrum: is complex, but init_ draws real numbers; make its real"):
        init_(model, scaling)
    assert param_groups(model, scaling, lr=0.1)
    init_(with_gain := Net(64, complex_gain=True), scale(with_gain, Net(16, complex_gain=True)))
    assert (with_gain.gain == 1).all()
