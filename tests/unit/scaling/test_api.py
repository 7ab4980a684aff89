"""Laws of the public functions on models of anybody's: published numbers, the base bit for bit, groups, names."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from support.networks import M, decayed, gpt, groups_of, mlp, train
from support.runs import first_point
from torch import nn

from spectral_mup import explain, init_, make_optimizers, param_groups, scale, set_multipliers_
from spectral_mup.config.optimizer_spec import Algorithm
from spectral_mup.measure.derive import Derived
from spectral_mup.measure.size_law_fit import SizeLaw
from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Multipliers, RuleError, UpdateScaling


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


def mup_package(p: nn.Parameter, base: nn.Parameter, optimizer: str) -> tuple[float, float]:
    """(lr, init std) multipliers of github.com/microsoft/mup, restated: a dim is infinite if it grows from base to model."""
    growing = sum(n != b for n, b in zip(p.shape, base.shape, strict=True))
    if optimizer == "adamw":  # MuAdam: matrix-like over the growth of fan_in, all else as it is
        lr = 1 / M if growing == 2 else 1.0
    else:  # MuSGD: vector-like times the width, matrix-like times growth of fan_out over that of fan_in
        lr = {0: 1.0, 1: float(M), 2: 1.0}[growing]
    return lr, M**-0.5 if growing == 2 else 1.0  # the readout's init is unscaled: its 1/m is in the forward pass


@pytest.mark.parametrize("rule", ["tensor_programs_v", "tensor_programs_v_table8"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_shrinks_alike_under_the_published_tables_as_in_the_mup_package(rule, optimizer):
    """MuAdamW and MuSGD with coupled decay multiply λ by the inverse of what they multiply the lr by."""
    scalings = scale(mlp(16 * M), mlp(16), optimizer=optimizer, rule=rule)
    lrs = {name: s.lr for name, s in scalings.items()}
    assert {name: s.lr * s.weight_decay for name, s in scalings.items()} == dict.fromkeys(lrs, 1.0)
    assert (lrs["0.weight"], lrs["0.bias"]) == ((M, M) if optimizer == "sgd" else (1, 1))


def lr_and_std(scalings) -> list[float]:
    return [x for s in scalings.values() for x in (s.lr, s.init_std)]


@pytest.mark.parametrize("build", [mlp, gpt])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_multipliers_are_those_of_the_mup_package(build, optimizer):
    model, base = build(16 * M), build(16)
    scalings = scale(model, base, optimizer=optimizer, rule="spectral", residual_blocks=["blocks."] if build is gpt else [])
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
    run = first_point(tiny(f"optimizer={optimizer}", "model.bias=true"), "spectral", 64, log2_lr=-6)
    with torch.device("meta"):
        model, base = (run.model.build(256, width, 2) for width in (64, 32))
    of_sweep = scale_on_meta(run, 256)
    assert dict(scale(model, base, optimizer=optimizer, rule="standard")) != dict(of_sweep)  # the control
    scaling = scale(model, base, optimizer=optimizer, rule="spectral", residual_blocks=["blocks."])
    assert dict(scaling) == dict(of_sweep) and scaling.algorithm == of_sweep.algorithm
    theirs = [group for o in make_optimizers(model, of_sweep, **hyperparameters(run)) for group in o.param_groups]
    kinds = run.optimizer.weight_decay
    ours = [
        group
        for name in scaling.optimizer.algorithms
        for group in param_groups(model, scaling, lr=2.0**-6, weight_decay=kinds, algorithm=name)
    ]
    for key in ("lr", "weight_decay"):
        assert groups_of(ours, key) == groups_of(theirs, key)
    assert "muon" != optimizer or set(scaling.algorithm.values()) == {"muon", "adamw"}


@pytest.mark.parametrize("width, equal", [(16, True), (64, False)])
def test_at_base_width_training_is_plain_torch(width, equal):
    torch.manual_seed(0)
    model = mlp(width)
    scalings = scale(model, mlp(16))
    plain = copy.deepcopy(model)
    ones = {(s.init_std, s.lr, s.weight_decay, s.eps) for s in scalings.values()} == {(1.0, 1.0, 1.0, 1.0)}
    ours = train(model, [torch.optim.AdamW(param_groups(model, scalings, lr=0.01, weight_decay=0.1))])
    assert set_multipliers_(model, scalings) == []
    theirs = train(plain, [torch.optim.AdamW(decayed(plain, 0.1), lr=0.01)])
    same = all(a.equal(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert (ours == theirs, same, ones) == (equal, equal, equal)


def test_kinds_at_base_width_are_told_by_a_third_model():
    with pytest.raises(ValueError, match="wider=build"):
        scale(gpt(16), gpt(16), optimizer="muon")
    scalings = scale(gpt(16), gpt(16), optimizer="muon", residual_blocks=["blocks."], wider=gpt(32))
    larger = scale(gpt(32), gpt(16), optimizer="muon", residual_blocks=["blocks."])
    assert scalings.algorithm == larger.algorithm and {s.lr for s in scalings.values()} == {1.0}
    kinds = {"hidden": 0.1, "embedding": 0.1, "readout": 0.1, "vector": 0.0}
    with pytest.raises(ValueError, match="kinds are unknown"):
        param_groups(gpt(16), scale(gpt(16), gpt(16)), lr=0.1, weight_decay=kinds)


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
    assert [type(o).__name__ for o in optimizers] == ["Muon", "AdamW"]
    assert sorted(n for o in optimizers for g in o.param_groups for n in g["names"]) == sorted(names)
    lrs = groups_of([g for o in optimizers for g in o.param_groups])
    assert lrs["blocks.0.mlp.up.weight"] == pytest.approx(0.1 * 2)  # √(fan_out/fan_in)
    assert lrs["token.weight"] == pytest.approx(0.1)  # AdamW's share


def test_independent_weight_decay_shrinks_alike_at_every_width():
    model = mlp(64)
    scalings = scale(model, mlp(16))
    for independent, expected in ((True, {0.001}), (False, {0.01 * 0.001})):
        groups = param_groups(model, scalings, lr=0.01, weight_decay=0.001, independent=independent)
        assert {round(g["lr"] * g["weight_decay"], 12) for g in groups} == expected | {0.0}
    with pytest.raises(ValueError, match="^weight_decay=.*give a number, or one for each of hidden"):
        param_groups(model, scalings, lr=0.01, weight_decay={"hidden": 0.1})


@pytest.mark.parametrize("width", [16, 64])
def test_gains_and_biases_decay_only_if_told(width):
    """At the base width too, where no tensor's kind is known."""
    model = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 3))
    base = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3))
    scaling = scale(model, base)
    decays = groups_of(param_groups(model, scaling, lr=0.01, weight_decay=0.1), "weight_decay")
    assert {name: x for name, x in decays.items() if not x} == dict.fromkeys(["0.bias", "1.weight", "1.bias", "2.bias"], 0.0)
    assert decays["0.weight"] == 0.1 and decays["2.weight"] == pytest.approx(0.1 * width / 16)
    kinds = dict.fromkeys(("hidden", "embedding", "readout", "vector"), 0.1)
    assert all(groups_of(param_groups(model, scaling, lr=0.01, weight_decay=kinds), "weight_decay").values())


def test_eps_follows_the_law_of_the_optimizer():
    model = mlp(64)
    assert groups_of(param_groups(model, scale(model, mlp(16)), lr=1.0), "eps")["2.weight"] == pytest.approx(1e-8 / M)
    assert groups_of(param_groups(model, scale(model, mlp(16)), lr=1.0, eps=1e-5), "eps")["2.weight"] == pytest.approx(1e-5 / M)
    assert all("eps" not in g for g in param_groups(model, scale(model, mlp(16), optimizer="sgd"), lr=1.0))


def test_laws_instead_of_names():
    model, base = mlp(64), mlp(16)
    adam = UpdateScaling("mine", {"m_out": 0.5, "m_in": 0.5})
    plain = {name: s.lr for name, s in scale(model, base).items()}
    assert {name: s.lr for name, s in scale(model, base, optimizer=adam).items()} == plain
    laws = {"hidden": UpdateScaling("mine", {}), "embedding": adam, "readout": adam, "vector": adam}
    assert scale(model, base, optimizer=laws)["2.weight"].lr == 1
    with pytest.raises(ValueError, match="^optimizer: no UpdateScaling for vector"):
        scale(model, base, optimizer={kind: adam for kind in ("hidden", "embedding", "readout")})
    with pytest.raises(ValueError, match="^optimizer mine: only its scaling is known"):
        make_optimizers(model, scale(model, base, optimizer=adam), lr=0.1)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"optimizer": "adam"}, "^optimizer=adam: no such file; .*optimizer can be adamw, "),
        ({"optimizer": "other"}, "^optimizer.*: a value is missing"),
        ({"rule": "mup"}, "^rule=mup: no such file; .*rule can be .*completep, "),
    ],
)
def test_unknown_names_are_refused_with_those_known(choice, message):
    with pytest.raises(ValueError, match=message):
        scale(mlp(64), mlp(16), **choice)


class NotYet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(3)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: scale(mlp(64), 16), TypeError, r"^base: 16 is not an nn.Module; build one"),
        (lambda: scale(mlp, mlp(16)), TypeError, r"^model: <function mlp at .* is not an nn.Module"),
        (lambda: scale(mlp(64), mlp(16), wider=128), TypeError, "^wider: 128 is not an nn.Module"),
        (lambda: scale(NotYet(), NotYet()), ValueError, "^model: head.weight has no shape yet; run it once"),
        (lambda: init_(mlp(64).to("meta"), scale(mlp(64), mlp(16))), ValueError, "^model: is on the meta device.*to_empty"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(make, error, message):
    with pytest.raises(error, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("optimizer, rule", [("adamw", "auto"), ("muon", "spectral"), ("lamb", "standard")])
def test_a_saved_scaling_is_loaded_by_torch_as_it_is(optimizer, rule):
    scaling, file = scale(gpt(64, 4), gpt(16), optimizer=optimizer, rule=rule, residual_blocks=["blocks."]), io.BytesIO()
    torch.save({"scaling": scaling}, file)
    file.seek(0)
    loaded = torch.load(file)["scaling"]
    assert dict(loaded) == dict(scaling) and loaded.growths == scaling.growths and loaded.rule == scaling.rule
    ours, theirs = (make_optimizers(gpt(64, 4), s, lr=0.1) for s in (scaling, loaded))
    assert [groups_of(o.param_groups) for o in ours] == [groups_of(o.param_groups) for o in theirs]


def test_a_scaling_saved_with_an_optimizer_s_class_is_loaded_where_classes_may_be():
    laws = {kind: Algorithm("nadam", torch.optim.NAdam, {"m_out": 0.5, "m_in": 0.5}) for kind in KINDS}
    found = Derived("nadam", laws, measured=SizeLaw("nadam", (), None, (), {}, "", {}))
    scaling, file = scale(mlp(64), mlp(16), optimizer=found), io.BytesIO()
    torch.save(scaling, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert dict(loaded) == dict(scaling) and loaded.optimizer == found
    (optimizer,) = make_optimizers(mlp(64), loaded, lr=0.1)
    assert isinstance(optimizer, torch.optim.NAdam)


def test_a_rule_that_does_not_cover_the_optimizer():
    with pytest.raises(RuleError, match="completep has no lr for optimizer sgd"):
        scale(mlp(64), mlp(16), optimizer="sgd", rule="completep")


def test_explain_shows_what_a_group_trains_with():
    model = mlp(64)
    scalings = scale(model, mlp(16), rule="spectral")
    lines = explain(scalings, lr=0.5, weight_decay=0.1).splitlines()
    (hidden,) = [line.split() for line in lines if line.startswith("2.weight")]
    assert hidden[1:5] == ["64×64", "hidden", "4", "4"] and hidden[6:11] == ["adamw", "0.125", "0.25", "0.4", "4"]
    assert "logits 0.25" in lines[1] and "logits × 0.25" in lines[-1]
