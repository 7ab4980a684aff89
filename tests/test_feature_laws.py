"""Features move alike at every width and depth under `spectral`, on both families, and not under the controls."""

from __future__ import annotations

import numpy as np
import pytest
from laws import OPTIMIZERS, TOLERANCE, features, slopes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIX = ("adamw", "adopt", "lamb", "sophia", "shampoo", "muon")


@pytest.mark.parametrize("model", ["nanogpt", "llama2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_features_move_alike_at_every_width_under_spectral_alone(optimizer, model):
    """RMS of the change of every module's features is flat under `spectral`; under `standard` it is not.

    No module's interval lies outside ±0.15, and half of their slopes are within ±0.1. The hidden lr of Muon and Shampoo is the
    same under both rules, so their control must fail at readout or embedding. LAMB's differs by √m at its matrices alone.
    """
    if model == "llama2" and optimizer not in SIX:
        pytest.skip("one family shows it for optimizers that are not of the six")
    check = features(optimizer, "spectral", model)
    if optimizer == "soap":  # known not to hold: its law is that of a gradient of low rank, and features shrink under it
        steep = [slope for slope in slopes(check).values() if abs(slope) > TOLERANCE]
        assert steep and max(steep) < 0, steep
    else:
        assert check.passed is not False, check.summary
        assert np.median(np.abs(list(slopes(check).values()))) < 0.1, slopes(check)
    control = features(optimizer, "standard", model)
    assert control.failed
    if optimizer in ("muon", "shampoo"):
        assert {"logits", "token", "position"} & set(control.failed), control.failed
    else:
        assert np.median(np.abs(list(slopes(control).values()))) > 0.25, slopes(control)


FIXED = ("model.mlp_ratio=null", "model.mlp_hidden=192", "model.kv_ratio=null", "model.kv_heads=2")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_features_move_alike_beside_an_mlp_and_key_heads_of_fixed_size(optimizer):
    """As in arXiv 2602.20937, whose Llama2 keeps its MLP at 11008: matrices of which one dim grows follow from Growth alone."""
    check = features(optimizer, "spectral", "llama2", extra=FIXED)
    assert check.passed is not False, check.summary
    assert features(optimizer, "standard", "llama2", extra=FIXED).failed


@pytest.mark.parametrize("optimizer", SIX)
def test_features_move_alike_at_every_depth_with_alpha_1_alone(optimizer):
    """Width 64, branches × 1/m_depth: flat from 2 to 16 layers. With m_depth^-1/2 a branch's own features change less and less.

    For ADOPT and LAMB no depth rule is published. Theirs follows as Adam's does: a direction whose size knows nothing of that
    of the gradient knows nothing of a branch's multiplier a, so the update of a branch is a·lr, of which L add up.
    """
    check = features(optimizer, "spectral", axis="depth")
    assert check.passed is not False, check.summary
    half = features(optimizer, "spectral_depth_half", axis="depth")
    inside = [slope for name, slope in slopes(half).items() if "blocks.last." in name]
    assert half.passed is False and min(inside) < -0.3, half.summary


@pytest.mark.parametrize(
    "rule, module, sign", [("spectral_depth_0", "blocks.last.mlp.down", -1), ("standard", "blocks.last", 1)]
)
def test_without_a_branch_multiplier_features_shrink_or_blow_up_with_depth(rule, module, sign):
    """α = 0: with the lr the formula then gives, branches stop to learn; with one lr for all depths, the stream blows up."""
    check = features("adamw", rule, axis="depth")
    assert module in check.failed and sign * slopes(check)[module] > 0.4, check.summary
