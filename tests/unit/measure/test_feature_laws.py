"""Features move alike at every width under `spectral`, on both families, and not under the control."""

import numpy as np
import pytest
from support.optimizer_laws import OPTIMIZERS, TOLERANCE, features, slopes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OF_EACH_LAW = ("adamw", "lamb", "muon")  # that the others share, which test_laws.py holds


@pytest.mark.parametrize("optimizer, model", [(o, "nanogpt") for o in OPTIMIZERS] + [(o, "llama2") for o in OF_EACH_LAW])
def test_features_move_alike_at_every_width_under_spectral_alone(optimizer, model):
    """RMS of the change of every module's features is flat under `spectral`; under `standard` it is not.

    No module's interval lies outside ±0.15, and half of their slopes are within ±0.1. The hidden lr of Muon and Shampoo is the
    same under both rules, so their control must fail at the readout. LAMB's differs by √m at its matrices alone.
    """
    check = features(optimizer, "spectral", model)
    if optimizer == "soap":  # known not to hold: its law is that of a gradient of low rank, and features shrink under it
        steep = [slope for slope in slopes(check).values() if abs(slope) > TOLERANCE]
        assert steep and max(steep) < 0, steep
    else:
        assert check.passed is not False, check.summary
        assert np.median(np.abs(list(slopes(check).values()))) < 0.1, slopes(check)
    control = features(optimizer, "standard", model)
    if optimizer in ("muon", "shampoo"):
        assert "readout.weight" in control.failed_updates and slopes(control)["logits"] > TOLERANCE, slopes(control)
    else:
        assert control.failed
        assert np.median(np.abs(list(slopes(control).values()))) > 0.25, slopes(control)


FIXED_MLP = ("model.mlp_ratio=null", "model.mlp_hidden=192")
FIXED_KEYS = ("model.kv_ratio=null", "model.kv_heads=2")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_features_move_alike_beside_an_mlp_of_fixed_size(optimizer):
    """As in arXiv 2602.20937, whose Llama2 keeps its MLP at 11008: matrices of which one dim grows follow from Growth alone."""
    check = features(optimizer, "spectral", "llama2", extra=FIXED_MLP)
    assert check.passed is not False, check.summary
    assert features(optimizer, "standard", "llama2", extra=FIXED_MLP).failed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_updates_keep_their_size_with_key_and_value_heads_of_fixed_number(optimizer):
    """√(fan_in/fan_out)·‖ΔW‖₂ of every tensor is flat.

    Features of keys and values are not, at these widths and steps: the condition starts them √m smaller, as it does logits,
    and what a small W adds to their change fades with width.
    """
    assert not features(optimizer, "spectral", "llama2", extra=FIXED_KEYS, seeds=(0, 1)).failed_updates
    drift = features(optimizer, "standard", "llama2", extra=FIXED_KEYS, seeds=(0, 1)).failed_updates
    assert "blocks.1.attention.key.weight" in drift and "blocks.1.attention.value.weight" in drift, drift
