"""Laws of growth and rules: the formula gives the published numbers, and knows what it does not know."""

import hashlib

import pytest
import torch
from support.networks import nanogpt
from support.runs import build_run, explain_rows, first_point, optimizers_of
from torch import nn

from spectral_mup.config.compose import load_config
from spectral_mup.scaling.forward_multipliers import multipliers
from spectral_mup.scaling.roles import inspect_parameters
from spectral_mup.scaling.run_scaling import scale_on_meta
from spectral_mup.theory.growth import Growth, GrowthError, measure_growth, monomial
from spectral_mup.theory.rules import Multipliers, Rule, RuleError, UpdateScaling, spectral_scaling

M = 4  # width ratio of the worked table
EMBEDDING = Growth("embedding", (64 * M, 1), (64, 1))
HIDDEN = Growth("hidden", (64 * M, 64 * M), (64, 64), in_block=True)
READOUT = Growth("readout", (256, 64 * M), (256, 64))
VECTOR = Growth("vector", (64 * M, 1), (64, 1))
ENTRYWISE = {"m_out": 0.5, "m_in": 0.5}
RAW = {"c": 1, "a": 1, "m_in": 0.5, "m_out": -0.5}
FORM_A, FORM_B = Multipliers(1.0), Multipliers(1.0, logits=1 / M)

# lr multipliers of theory's worked table as exponents of M: embedding, hidden, readout in its init, readout as a multiplier
WORKED = {
    "entrywise": (ENTRYWISE, (0, -1, -1, 0)),
    "lamb": ({"s": 1, **ENTRYWISE}, (0, -0.5, 0, 0)),
    "orthogonal": ({}, (0.5, 0, -0.5, 0.5)),
    "orthogonal times sqrt(out/in)": ({"m_out": 0.5, "m_in": -0.5}, (0, 0, 0, 1)),
    "gradient": (RAW, (1, 0, -1, 1)),
}


@pytest.mark.parametrize("name", WORKED)
def test_formula_gives_the_worked_table(name):
    size, exponents = WORKED[name]
    law = UpdateScaling(name, size)
    got = [
        spectral_scaling(growth, law, forward).lr
        for growth, forward in ((EMBEDDING, FORM_B), (HIDDEN, FORM_B), (READOUT, FORM_A), (READOUT, FORM_B))
    ]
    assert got == pytest.approx([M**x for x in exponents])


def test_init_weight_decay_and_eps_of_the_formula():
    law = UpdateScaling("adamw", ENTRYWISE, {"c": 1, "a": 1, "m_out": -1})
    expected = {  # init std, λ, ε
        ("embedding", "B"): (1, 1, 1 / M), ("hidden", "B"): (M**-0.5, M, 1 / M),
        ("readout", "A"): (1 / M, M, 1), ("readout", "B"): (1, 1, 1 / M), ("vector", "B"): (1, 1, 1 / M),
    }  # fmt: skip
    for growth, form in ((EMBEDDING, "B"), (HIDDEN, "B"), (READOUT, "A"), (READOUT, "B"), (VECTOR, "B")):
        s = spectral_scaling(growth, law, FORM_A if form == "A" else FORM_B)
        assert (s.init_std, s.weight_decay, s.eps) == pytest.approx(expected[growth.kind, form]), (growth.kind, form)


@pytest.mark.parametrize("alpha, lr, sgd", [(1.0, 1.0, 8.0), (0.5, 8**-0.5, 1.0)])
def test_depth_follows_the_formula(alpha, lr, sgd):
    deep = Growth("hidden", (64, 64), (64, 64), in_block=True)
    forward = Multipliers(1.0, branch=8**-alpha)
    assert spectral_scaling(deep, UpdateScaling("adamw", ENTRYWISE), forward, 8).lr == pytest.approx(lr)
    assert spectral_scaling(deep, UpdateScaling("sgd", RAW), forward, 8).lr == pytest.approx(sgd)
    outside = Growth("readout", (64, 64), (64, 64))
    assert spectral_scaling(outside, UpdateScaling("adamw", ENTRYWISE), forward, 8).lr == 1


def test_a_fixed_wider_ffn_keeps_fan_in_init():
    up, down = Growth("hidden", (4096, 256), (4096, 64), True), Growth("hidden", (256, 4096), (64, 4096), True)
    law = UpdateScaling("adamw", ENTRYWISE)
    assert spectral_scaling(up, law, FORM_A).init_std == pytest.approx(0.5)
    assert spectral_scaling(down, law, FORM_A).init_std == 1  # like an embedding
    narrow = Growth("hidden", (64, 1024), (64, 256), True)  # a fixed fan_out below fan_in: as a readout
    assert spectral_scaling(narrow, law, FORM_A).init_std == pytest.approx(1 / M)
    assert spectral_scaling(up, law, FORM_A).lr == pytest.approx(1 / M)


@pytest.mark.parametrize("table, form", [("tensor_programs_v", "spectral_readout"), ("tensor_programs_v_table8", "spectral")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_formula_equals_tensor_programs_v(table, form, optimizer):
    """Tables 3 and 8 of arXiv 2203.03466, every tensor of a NanoGPT with biases: init and lr; a control must differ."""
    rules = [table, form, "standard"]
    config = load_config([f"rule=[{','.join(rules)}]", f"optimizer={optimizer}", "sweep.width=[64,256]", "model.bias=true"])
    scalings = [scale_on_meta(first_point(config, rule, 256), 256).scalings for rule in rules]
    for name in scalings[0]:
        theirs, ours = scalings[0][name], scalings[1][name]
        assert (ours.init_std, ours.lr) == pytest.approx((theirs.init_std, theirs.lr)), name
        if optimizer == "adamw":
            assert ours.weight_decay == pytest.approx(theirs.weight_decay), name
    assert any(scalings[0][name].lr != pytest.approx(scalings[2][name].lr) for name in scalings[0])


def test_kinds_of_nanogpt(tiny):
    for overrides, expected in {
        (): {"token.weight": "embedding", "position.weight": "embedding", "blocks.0.mlp.up.weight": "hidden",
             "blocks.0.norm_mlp.weight": "vector", "readout.weight": "readout"},
        ("model.tied=true",): {"token.weight": "embedding", "position.weight": "embedding"},
    }.items():  # fmt: skip
        for width in (32, 64):
            growths = scale_on_meta(first_point(tiny(*overrides), width=width), 256).growths
            assert {name: growths[name].kind for name in expected} == expected
            assert growths["blocks.1.attention.query.weight"].in_block and not growths["token.weight"].in_block
            assert ("readout.weight" in growths) == (not overrides)


def growths_of(model: nn.Module, base: nn.Module, wider: nn.Module | None = None) -> dict[str, Growth]:
    return measure_growth(*(inspect_parameters(m) for m in (model, base, wider or model)))


def test_growth_of_any_module():
    def net(width: int, inputs: int = 8) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3, bias=False))

    growths = growths_of(net(64), net(16))
    assert [g.kind for g in growths.values()] == ["embedding", "vector", "hidden", "vector", "readout"]
    assert (growths["2.weight"].m_out, growths["3.weight"].m_in, growths["3.weight"].m_out) == (4, 4, 1)
    assert {g.kind for g in growths_of(net(16), net(16)).values()} == {"fixed"}
    assert growths_of(net(16), net(16), net(32))["2.weight"].kind == "hidden"


@pytest.mark.parametrize(
    "model, base, message",
    [
        (lambda: nn.Bilinear(8, 8, 3), lambda: nn.Bilinear(4, 4, 3), "^weight: a bare parameter of shape"),
        (lambda: nn.Linear(8, 8), lambda: nn.Linear(4, 4, bias=False), "^bias: the base model has no such parameter"),
        (lambda: nn.Embedding(20, 8), lambda: nn.Embedding(10, 4), "^weight: the number of embedding entries grows"),
    ],
)
def test_unclassifiable_tensor_is_named(model, base, message):
    with pytest.raises(GrowthError, match=message):
        growths_of(model(), base())


def test_a_dimension_that_cannot_grow_is_named():
    with pytest.raises(GrowthError, match="weight: shape .* dimension 0 does not grow"):
        growths_of(nn.Linear(8, 5), nn.Linear(4, 3), nn.Linear(8, 3))


def test_bad_rules_are_errors():
    with pytest.raises(RuleError, match="unknown kind 'inner'"):
        Rule("mine", {}, {"lr": {"any": {"inner": {}}}})
    with pytest.raises(RuleError, match="no lr for optimizer lion; it lists adamw"):
        Rule("mine", {}, {"lr": {"adamw": {}}}).scale(HIDDEN, UpdateScaling("lion", {}), FORM_A)
    with pytest.raises(ValueError, match="unknown quantity 'm_up'"):
        monomial({"m_up": 1}, {"m_out": 2})


def test_standard_is_the_control(tiny):
    """Every lr, λ and ε × 1, init std ∝ fan_in^-1/2, attention 1/√d_head, no multipliers."""
    config = tiny("model.heads=2", "model.head_size=null")
    p = scale_on_meta(first_point(config, "standard", 64), 256)
    assert {(s.lr, s.weight_decay, s.eps) for s in p.scalings.values()} == {(1, 1, 1)}
    for name, growth in p.growths.items():
        expected = growth.m_in**-0.5 if growth.kind in ("hidden", "readout") else 1
        assert p.scalings[name].init_std == pytest.approx(expected)
    assert (multipliers(p).attention, p.multipliers.logits, p.multipliers.branch) == (pytest.approx(32**-0.5), 1, 1)
    spectral = multipliers(scale_on_meta(first_point(config, "spectral", 64), 256))
    assert spectral.attention == pytest.approx(16**0.5 / 32)


@pytest.mark.parametrize("rule", ["spectral", "standard"])
def test_at_base_width_all_is_one_and_steps_equal_plain_torch(tiny, corpus, rule):
    """Init and every step of the base model are bit-equal to plain torch; one size up they are not."""
    from spectral_mup import data
    from spectral_mup.models.nanogpt import NanoGPT

    config = tiny(f"rule=[{rule}]", "model.bias=true", "optimizer.weight_decay.vector=0.1")
    run = first_point(config, rule, 32)
    model, p = build_run(run)
    assert {(s.init_std, s.lr, s.weight_decay, s.eps) for s in p.scalings.values()} == {(1.0, 1.0, 1.0, 1.0)}

    plain = NanoGPT(nanogpt(head_size=16), 256, 32, 2)
    for name, q in plain.named_parameters():
        if q.ndim == 2:
            generator = torch.Generator().manual_seed(
                int(hashlib.blake2b(f"0 {name}".encode(), digest_size=8).hexdigest(), 16) >> 1
            )
            is_table = any(q is m.weight for m in plain.modules() if isinstance(m, nn.Embedding))
            q.data = torch.randn(q.shape, generator=generator) * (0.5 if is_table else q.shape[1] ** -0.5)
    ours = optimizers_of(model, p, run)
    theirs = torch.optim.AdamW(plain.parameters(), lr=2.0**-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(5):
        x, y = (torch.from_numpy(a) for a in data.batch(corpus.train, seed=0, step=step, batch_size=4, context=16))
        losses = [net(x, y) for net in (model, plain)]
        assert losses[0].equal(losses[1])
        for loss, optimizers in zip(losses, (ours, [theirs]), strict=True):
            loss.backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
        for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert a.equal(b), name

    wide = first_point(config, rule, 64)
    p = scale_on_meta(wide, 256)
    assert any(s.init_std != 1 for s in p.scalings.values())


@pytest.mark.parametrize("tied", ["true", "false"])
def test_logits_are_scaled_alike_in_training_and_inference(tiny, corpus, tied):
    config = tiny(f"model.tied={tied}", "rule=[spectral]")
    run = first_point(config, "spectral", 64)
    model, p = build_run(run)
    assert p.multipliers.logits == 0.5
    x = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(1))
    logits = model(x)
    unscaled = model.readout(model.features(x))
    torch.testing.assert_close(logits, 0.5 * unscaled)
    loss = model(x, x)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten()))
    wrong = nn.functional.cross_entropy(unscaled.flatten(0, 1), x.flatten())
    assert abs(wrong - loss) > 1e-3  # the control: readers that forget the multiplier see another loss
    probabilities = logits[:, -1].softmax(-1)
    draws = model.generate(x.repeat(4000, 1), 1, torch.Generator().manual_seed(2))[:, -1].view(4000, 2)
    for row in (0, 1):
        counts = torch.bincount(draws[:, row], minlength=256) / 4000
        assert (counts - probabilities[row]).abs().sum() < (counts - unscaled[row, -1].softmax(-1)).abs().sum()


def test_a_tied_table_is_initialised_as_a_readout(tiny):
    for overrides, expected in (
        ([], 0.5),
        (["model.tied=true"], 32**-0.5),
        (["model.tied=true", "model.init_std.embedding=0.1"], 0.1),
    ):
        for width in (32, 64):
            run = first_point(tiny(*overrides), "spectral", width)
            table = build_run(run)[0].get_parameter("token.weight")
            assert float(table.detach().std()) == pytest.approx(expected, rel=0.05)


def test_explain_shows_every_tensor_with_its_numbers(tiny):
    config = tiny("optimizer=muon")
    rows = explain_rows(first_point(config, "spectral", 64, log2_lr=-4))
    by_name = {row["tensor"]: row for row in rows}
    up = by_name["blocks.0.mlp.up.weight"]
    assert (up["optimizer"], up["kind"], up["m_in"], up["lr ×"]) == ("muon", "hidden", 2, 1)
    assert up["lr"] == pytest.approx(2**-4 * 2)  # √(fan_out/fan_in) = 2
    assert by_name["readout.weight"]["optimizer"] == "adamw" and by_name["readout.weight"]["multiplier"] == 0.5
    assert by_name["token.weight"]["lr"] == pytest.approx(2**-4)
