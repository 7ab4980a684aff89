"""Multipliers in the forward pass, and models that are wrapped, copied, compiled, saved and loaded."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from support.networks import M, gpt, groups_of, mlp, train
from torch import nn

from spectral_mup import init_, make_optimizers, multipliers, param_groups, scale, set_multipliers_
from spectral_mup.models.layers import LanguageModel


def test_tied_embeddings_need_the_multiplier_on_the_logits(monkeypatch):
    with pytest.raises(ValueError, match=r'^token.weight: tied .* use rule="auto" or "spectral" and set_multipliers_'):
        scale(gpt(64, tied=True), gpt(16, tied=True), rule="spectral_readout")
    model = gpt(64, tied=True)
    scalings = scale(model, gpt(16, tied=True), rule="spectral", residual_blocks=["blocks."])
    assert "readout.weight" not in scalings and scalings["token.weight"].lr == 1
    x = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model(x)
    for _ in range(2):
        done = set_multipliers_(model, scalings)
    assert done == ["set by NanoGPT.set_multipliers"]
    torch.testing.assert_close(model(x), before / M)
    monkeypatch.delattr(LanguageModel, "set_multipliers")  # a model that has no such method gets hooks
    model = gpt(64, tied=True)
    before = model(x)
    for _ in range(2):
        done = set_multipliers_(model, scalings)
    assert "logits × 0.25 at readout" in done
    torch.testing.assert_close(model(x), before / M)
    assert multipliers(scalings).logits == 1 / M


def test_multipliers_for_a_forward_pass_of_ones_own(monkeypatch):
    scalings = scale(gpt(64, depth=4), gpt(16), rule="spectral", residual_blocks=["blocks."])
    assert multipliers(scalings).attention == 1 / 8**0.5 and multipliers(scalings).branch == 0.5
    assert math.isnan(multipliers(scale(mlp(64), mlp(16))).attention)
    monkeypatch.delattr(LanguageModel, "set_multipliers")
    with pytest.warns(UserWarning, match="^set_multipliers_: to do: multiply the output of every residual branch"):
        said = set_multipliers_(gpt(64, 4), scalings)
    assert "to do: multiply the output of every residual branch in blocks. by 0.5" in said

    def attention(width: int, heads: int) -> nn.Module:
        return nn.TransformerEncoderLayer(width, heads, 4 * width)

    scalings = scale(attention(64, 4), attention(16, 4))
    assert multipliers(scalings).attention == pytest.approx(4**-0.5 / M)
    with pytest.warns(UserWarning, match="^set_multipliers_: to do: scale q·k by 0.125"):
        assert set_multipliers_(attention(64, 4), scalings) == ["to do: scale q·k by 0.125 in place of 1/√head_dim"]
    by_root = scale(attention(64, 4), attention(16, 4), rule="standard")
    assert set_multipliers_(attention(64, 4), by_root) == []  # 1/√head_dim is what that rule asks for
    assert scale(attention(64, 16), attention(16, 4)).multipliers.attention == 1  # more heads, none larger


def test_the_bias_of_an_output_layer_is_not_multiplied():
    model = mlp(64)
    scalings = scale(model, mlp(16), rule="spectral")
    head = copy.deepcopy(model[4])
    set_multipliers_(model, scalings)
    x = torch.randn(5, 64)
    torch.testing.assert_close(model[4](x), x @ head.weight.T / M + head.bias)


class BareHead(nn.Module):
    def __init__(self, width: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)
        if head is None:
            self.w = nn.Parameter(torch.randn(3, width))
        else:
            self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return nn.functional.linear(h, self.w) if hasattr(self, "w") else self.head(input=h)


def test_only_a_module_that_is_the_linear_map_is_hooked():
    """The module that holds a bare readout reads the model's input, which the factor on the logits must leave alone."""
    model, x = BareHead(64), torch.randn(5, 8)
    scalings = scale(model, BareHead(16), rule="spectral")
    assert scalings.growths["w"].kind == "readout"
    before = model(x)
    with pytest.warns(UserWarning, match="^set_multipliers_: to do: multiply what w puts out by 0.25"):
        said = set_multipliers_(model, scalings)
    assert said == ["to do: multiply what w puts out by 0.25: no module of its own carries it"]
    assert model(x).equal(before)


def test_a_head_may_be_called_by_keyword():
    model, x = BareHead(64, nn.Linear(64, 3)), torch.randn(5, 8)
    expected = nn.functional.linear(model.body(x), model.head.weight / M, model.head.bias)
    scalings = scale(model, BareHead(16, nn.Linear(16, 3)), rule="spectral")
    for _ in range(2):
        assert set_multipliers_(model, scalings) == ["logits × 0.25 at head"]
        torch.testing.assert_close(model(x), expected)


class Tied(nn.Module):
    """An embedding whose weight is the head's too, through F.linear or through a module."""

    def __init__(self, width: int, by_module: bool) -> None:
        super().__init__()
        self.wte, self.hidden = nn.Embedding(20, width), nn.Linear(width, width)
        if by_module:
            self.head = nn.Linear(width, 20, bias=False)
            self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.hidden(self.wte(ids))
        return self.head(h) if hasattr(self, "head") else nn.functional.linear(h, self.wte.weight)


def test_a_head_that_goes_round_its_module_is_seen_and_refused():
    """Its 1/m can be put nowhere: Table 8 of arXiv 2203.03466 has it on the logits of tied weights."""
    with pytest.raises(
        ValueError, match="^wte.weight: is the output layer's weight too, in a forward pass that calls no module"
    ):
        scale(Tied(64, False), Tied(16, False))
    with pytest.raises(ValueError, match="^wte.weight: tied to the output layer"):
        scale(Tied(64, False), Tied(16, False), rule="spectral_readout")
    model = Tied(64, False)
    scalings = scale(model, Tied(16, False), rule="spectral")
    assert multipliers(scalings).logits == 1 / M
    with pytest.warns(UserWarning, match="to do: multiply the logits by 0.25"):
        set_multipliers_(model, scalings)


def test_a_head_that_is_not_called_is_left_to_do():
    """Tied by a module, but the forward pass takes its weight, as fused losses do: no hook sees the logits."""

    class Around(Tied):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.hidden(self.wte(ids)), self.head.weight)

    model, ids = Around(64, True), torch.arange(6)[None]
    plain = model(ids)
    with pytest.warns(UserWarning, match="to do: multiply the logits by 0.25: the forward pass does not call head"):
        assert len(set_multipliers_(model, scale(model, Around(16, True)))) == 1
    assert torch.equal(model(ids), plain)


def test_auto_takes_the_form_that_the_model_can_follow():
    model = Tied(64, True)
    tied = scale(model, Tied(16, True))
    assert tied.rule.name == "spectral" and set_multipliers_(model, tied) == ["logits × 0.25 at head"]
    assert dict(tied) == dict(scale(model, Tied(16, True), rule="spectral"))
    untied = scale(mlp(64), mlp(16))
    assert untied.rule.name == "spectral_readout"
    assert dict(untied) == dict(scale(mlp(64), mlp(16), rule="spectral_readout"))


def test_a_model_without_a_head_is_told_what_a_head_would_need():
    notes = scale(
        nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 64)), nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16))
    ).notes
    assert any(note.startswith("no readout: if the output layer takes an embedding's weight") for note in notes)
    assert not any(note.startswith("no readout") for note in scale(Tied(64, True), Tied(16, True)).notes)


class Heads(nn.Module):
    """Attention that tells its heads as one of several libraries does, or not at all."""

    def __init__(self, width: int, **said: int) -> None:
        super().__init__()
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        for key, value in said.items():
            setattr(self, key, value)


def test_attention_that_does_not_tell_its_heads_is_left_to_do():
    model = Heads(64)
    scalings = scale(model, Heads(16))
    with pytest.warns(UserWarning, match="to do: no module has a head_dim"):
        (said,) = set_multipliers_(model, scalings)
    assert said == "to do: no module has a head_dim; if heads grow, scale q·k by the base's √head_dim over head_dim"
    assert set_multipliers_(model, scale(model, Heads(64), wider=Heads(128))) == []  # nothing grew
    for grown, base in ({"n_head": 4, "n_embd": 64}, {"n_head": 4, "n_embd": 16}), ({"d_head": 16}, {"d_head": 4}):
        scalings = scale(Heads(64, **grown), Heads(16, **base))
        assert multipliers(scalings).attention == pytest.approx(4**-0.5 / M)
    fixed = scale(Heads(64, num_heads=16, hidden_size=64), Heads(16, num_heads=4, hidden_size=16))
    assert set_multipliers_(Heads(64), fixed) == []


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embedding_dim**0.5


def test_a_factor_of_the_embedding_that_grows_is_taken_back():
    """√width on the tables (Vaswani et al. 2017, Gemma): a table's rows must be as large at every width (Table 8)."""
    model, ids = nn.Sequential(Scaled(20, 64), nn.Linear(64, 20)), torch.arange(20)
    scalings = scale(model, nn.Sequential(Scaled(20, 16), nn.Linear(16, 20)))
    assert any(note.startswith("0: multiplies by a factor that grows") for note in scalings.notes)
    for _ in range(2):
        assert set_multipliers_(model, scalings) == ["0 × 0.5, as its own factor grows"]
        torch.testing.assert_close(model[0](ids), model[0].weight * 16**0.5)
    control = nn.Sequential(Scaled(20, 64), nn.Linear(64, 20))
    assert set_multipliers_(control, scale(control, nn.Sequential(Scaled(20, 16), nn.Linear(16, 20)), rule="standard")) == []


class Wrapper(nn.Module):
    """Names as DistributedDataParallel has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")  # torch's own backend warns of deprecations when it is imported


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        Wrapper,
        lambda m: compiled(Wrapper(m)),
        lambda m: Wrapper(compiled(m)),
        lambda m: nn.Sequential(*[compiled(part) for part in m.children()]),
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
    weight = model.get_parameter("2.weight")
    expected = weight.detach().clone()
    nn.init.zeros_(weight)
    init_(wrapped, scalings, seed=0)
    assert weight.equal(expected)


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
