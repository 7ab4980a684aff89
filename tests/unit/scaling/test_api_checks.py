"""The feature check and the measured size law on a model of anybody's: right ones pass, wrong ones are seen to fail."""

import functools
import math

import pytest
import pytorch_optimizer
import torch
from support.networks import batch, loss, mlp
from torch import nn
from torch.nn.utils import parametrizations

from spectral_mup import check_features, derive, make_optimizers, scale
from spectral_mup.measure.directions import DeriveError
from spectral_mup.optim.lamb import LAMB
from spectral_mup.theory.rules import UpdateScaling
from spectral_mup.theory.size_laws import SIZE_LAWS

WIDTHS = [32, 64, 128, 256]


def check(optimizer: str, lr: float, **settings):
    return check_features(mlp, WIDTHS, optimizer, lr=lr, batch=batch, loss=loss, **settings)


def test_the_formula_passes_and_the_control_fails():
    state = torch.get_rng_state()
    verdict = check("muon", 0.025)
    assert verdict.passed and verdict.control_failed and verdict.exit_code == 0
    assert torch.get_rng_state().equal(state)
    lines = str(verdict).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "2", "logits"]
    assert lines[-1] == "control standard: failed, as it should"


def test_a_rule_that_does_not_hold_fails():
    verdict = check("muon", 0.025, rule="standard", control=None)
    assert not verdict.passed and "logits" in verdict.check.failed and verdict.exit_code == 5


def test_a_pass_beside_a_control_that_passes_too_tells_nothing():
    verdict = check("muon", 0.025, control="spectral_readout")
    assert verdict.passed and not verdict.control_failed and verdict.exit_code == 5
    assert "did not fail: a larger lr" in verdict.text


def test_a_control_that_diverges_has_failed():
    def exploding(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return loss(model, batch) * (math.nan if model[2].weight.std() > 0.5 * model[2].weight.shape[0] ** -0.5 else 1.0)

    verdict = check_features(mlp, [32, 64], "sgd", lr=0.01, batch=batch, loss=exploding, steps=2)
    assert verdict.control_failed and not verdict.passed


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"widths": [64]}, "^widths=.*a slope needs two widths"),
        ({"optimizer": "sophia"}, "^optimizer Sophia: it uses sampled labels; give sampled_loss="),
    ],
)
def test_what_cannot_be_checked_is_refused(settings, message):
    arguments = {"widths": [32, 64], "optimizer": "adamw"} | settings
    with pytest.raises(ValueError, match=message):
        check_features(mlp, **arguments, lr=0.1, batch=batch, loss=loss)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_layers_whose_weight_is_made_of_parameters_are_checked_as_any(norm):
    def build(width: int) -> nn.Module:
        return nn.Sequential(*(norm(layer) if isinstance(layer, nn.Linear) else layer for layer in mlp(width)))

    table = check_features(build, [32, 64], lr=0.01, batch=batch, loss=loss, steps=1, seeds=[0], control=None).check.table
    assert set(zip(table["name"], table["kind"], strict=True)) == {("0", "embedding"), ("2", "hidden"), ("logits", "readout")}


def test_a_model_without_a_loss_of_its_own_needs_one():
    with pytest.raises(ValueError, match="^loss: the model's output is neither a scalar nor has a .loss"):
        check_features(mlp, [32, 64], lr=0.1, batch=lambda seed, step: batch(seed, step)[:1])


@pytest.mark.parametrize(
    "optimizer, law",
    [
        (torch.optim.NAdam, "entries of order 1 (Adam, ADOPT, Sophia, Lion)"),
        (functools.partial(torch.optim.SGD, momentum=0.9), "raw gradient (SGD)"),
    ],
    ids=["NAdam", "SGD"],
)
def test_a_size_law_is_measured_without_being_told(optimizer, law):
    found = derive(optimizer, mlp, WIDTHS, batch=batch, loss=loss)
    assert found.measured.law == law and len(found.measured.rejected) == len(SIZE_LAWS) - 1
    assert law in str(found) and "hidden (m, m)" in found.text
    model, base = mlp(256), mlp(64)
    plain = UpdateScaling("known", SIZE_LAWS[law])
    lrs = {name: s.lr for name, s in scale(model, base, optimizer=found).items()}
    assert lrs == {name: s.lr for name, s in scale(model, base, optimizer=plain).items()}
    (built,) = make_optimizers(model, scale(model, base, optimizer=found), lr=0.1)
    assert isinstance(built, torch.optim.NAdam | torch.optim.SGD)


@pytest.mark.parametrize("optimizer", [LAMB, pytorch_optimizer.Lamb, torch.optim.Adafactor], ids=lambda o: o.__module__)
def test_a_direction_of_the_weights_norm_is_told_from_one_of_the_larger_side(optimizer):
    """LAMB's law and lr of the readout, whatever the rule's init of it: × 1 under `spectral`, as that of its hidden ones is
    × m^-1/2 (the entries of LAMB's step are those of W, arXiv 1904.00962; Adafactor's too, arXiv 1804.04235, section 8)."""
    found = derive(optimizer, mlp, [16, 32, 64, 128], batch=batch, loss=loss)
    assert found.measured.law == "norm of the weight (LAMB)" and not found.measured.also
    assert "orthogonal × √max(fan_out, fan_in)" in found.measured.rejected
    for rule, readout in (("spectral", 1.0), ("spectral_readout", 1.0)):
        lrs = {name: s.lr for name, s in scale(mlp(64), mlp(16), optimizer=found, rule=rule).items()}
        assert lrs["2.weight"] == pytest.approx(4**-0.5) and lrs["4.weight"] == pytest.approx(readout), rule


@pytest.mark.parametrize(
    "optimizer, message",
    [
        (math.sqrt, r"^optimizer=<built-in function sqrt>: cannot be called with \(groups, lr=1.0\)"),
        ("torch.optim.Nope", "^optimizer='torch.optim.Nope': give its class"),
        (torch.optim.SGD(mlp(8).parameters(), lr=0.1), "^optimizer=SGD .*: give its class"),
    ],
)
def test_what_cannot_be_derived_is_one_line(optimizer, message):
    with pytest.raises(ValueError, match=message) as error:
        derive(optimizer, mlp, WIDTHS, batch=batch, loss=loss)
    assert "\n" not in str(error.value)


def test_a_measured_optimizer_is_checked_as_a_named_one():
    found = derive(torch.optim.NAdam, mlp, WIDTHS[:3], batch=batch, loss=loss, seeds=(0,), steps=9)
    assert check_features(mlp, [32, 64], found, lr=0.03, batch=batch, loss=loss, steps=2, control=None).check.step == 2


def test_a_ladder_that_does_not_grow_teaches_nothing():
    with pytest.raises(DeriveError, match="three widths"):
        derive(torch.optim.NAdam, mlp, [32, 64], batch=batch, loss=loss)
    with pytest.raises(DeriveError, match="no hidden matrix"):
        derive(torch.optim.NAdam, lambda width: nn.Linear(8, width), [8, 16, 32], batch=batch, loss=loss)
