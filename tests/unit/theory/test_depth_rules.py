"""What depth does to lr, ε and weight decay: published for some optimizers, derived for ADOPT and LAMB, measured for both."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.optimizer_laws import STEPS, features, slopes, small
from support.runs import run_point

from spectral_mup import data
from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.run_scaling import scale_on_meta
from spectral_mup.util.files import read_rows

ALPHA = {"spectral": 1.0, "spectral_depth_half": 0.5, "spectral_depth_0": 0.0}
DEPTHS = [2, 4, 8]
BLOCK, OUTSIDE = "blocks.1.mlp.up.weight", ("token.weight", "readout.weight", "norm.weight")


@pytest.mark.parametrize("model", ["nanogpt", "llama2"])
@pytest.mark.parametrize("optimizer", ["adamw", "adopt", "lamb", "sophia", "lion", "muon", "shampoo", "sgd"])
def test_lr_epsilon_and_decay_of_branches(optimizer, model):
    """lr × m_L^(α−1), SGD's × m_L^(2α−1); ε × m_L^-α but for Shampoo's relative one; λ over the lr's.

    CompleteP (2505.01618) and 2603.00541 print this for the others; for ADOPT and LAMB it is derived, their directions being
    free of the gradient's size.
    """
    m = 16.0
    grid = [f"rule=[{','.join(ALPHA)}]", "sweep.width=[64]", "sweep.depth=[2,32]"]
    sweep = open_sweep(small(optimizer, f"model={model}", *grid))
    for chain in sweep.chains({}):
        alpha, deep = ALPHA[chain.curves[-1].rule], chain.curves[-1]
        p = scale_on_meta(sweep.run(deep, -6, 0), 256)
        lr = m ** (2 * alpha - 1) if optimizer == "sgd" else m ** (alpha - 1)
        no_eps = optimizer in ("shampoo", "sgd", "lion")
        assert deep.depth == 32 and p.multipliers.branch == pytest.approx(m**-alpha)
        assert p.scalings[BLOCK].init_std == 1.0
        assert p.scalings[BLOCK].lr == pytest.approx(lr)
        assert p.scalings[BLOCK].weight_decay == pytest.approx(1 / lr)
        assert p.scalings[BLOCK].eps == pytest.approx(1.0 if no_eps else m**-alpha)
        for name in OUTSIDE:
            assert (p.scalings[name].lr, p.scalings[name].eps, p.scalings[name].weight_decay) == (1.0, 1.0, 1.0)


def growth_with_depth(optimizer: str, rule: str) -> float:
    """Slope of log ‖U‖₂ = log ‖ΔW‖₂/lr of the last block's matrices against log depth, after four steps at a small lr."""
    config = small(optimizer, f"rule=[{rule}]", "sweep.width=[32]", "sweep.base_width=32", f"sweep.depth={DEPTHS}",
                   "train.steps=4", "probe.steps=[4]", "train.batch_size=8")  # fmt: skip
    sweep, corpus, rows = open_sweep(config), data.load("pydoc", None, None), []
    with tempfile.TemporaryDirectory() as runs:
        for curve in next(sweep.chains({})).curves:
            for seed in (0, 1):
                folder, _ = run_point(sweep.run(curve, -10, seed), Path(runs), corpus)
                for row in read_rows(folder.path / "norms.jsonl"):
                    if (
                        row["name"].startswith(f"blocks.{curve.depth - 1}.")
                        and row["kind"] == "hidden"
                        and row["step"] == 4
                        and "update_norm" in row
                    ):
                        rows.append((np.log2(curve.depth), np.log2(row["update_norm"] / row["lr"])))
    x, y = np.array(rows).T
    return float(np.polyfit(x, y, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALPHA)
@pytest.mark.parametrize("optimizer", ["adopt", "lamb"])
def test_direction_of_adopt_and_lamb_does_not_follow_the_depth(optimizer, rule):
    """What their depth rule rests on: ‖U‖₂ of a branch's matrices is the same at every depth, whatever its multiplier."""
    assert abs(growth_with_depth(optimizer, rule)) < 0.15


@pytest.mark.slow
def test_direction_of_sgd_follows_the_branch_multiplier():
    """The control: a raw gradient shrinks with the multiplier, so that SGD's lr needs it twice."""
    assert growth_with_depth("sgd", "spectral") < -0.6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", ["adamw", "adopt", "lamb", "muon"])
def test_features_move_alike_at_every_depth_with_alpha_1_alone(optimizer):
    """Width 64, branches × 1/m_depth: flat from 2 to 8 layers. With m_depth^-1/2 a branch's own features change less and less.
    Sophia has the multipliers of AdamW and Shampoo those of Muon, and their directions know nothing of the gradient's size
    either (test_laws.py).

    For ADOPT and LAMB no depth rule is published. Theirs follows as Adam's does: a direction whose size knows nothing of that
    of the gradient knows nothing of a branch's multiplier a, so the update of a branch is a·lr, of which L add up.
    """
    check = features(optimizer, "spectral", axis="depth")
    assert check.passed is not False, check.summary
    slope, _ = first_query(check)
    _, highest = first_query(features(optimizer, "spectral_depth_half", axis="depth"))
    assert abs(slope) < 0.1 and highest < -0.1


def first_query(check: FeatureCheck) -> tuple[float, float]:
    """Slope of the change of the first block's queries, and its upper end: of all in branches, they alone see no branch."""
    table = check.table
    row = table[(table["name"] == "blocks.first.attention.query") & (table["quantity"] == "feature")].iloc[-1]
    assert row["step"] == STEPS
    return float(row["slope"]), float(row["hi"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, module, sign", [("spectral_depth_0", "blocks.last.mlp.down", -1), ("standard", "blocks.last", 1)]
)
def test_without_a_branch_multiplier_features_shrink_or_blow_up_with_depth(rule, module, sign):
    """α = 0: with the lr the formula then gives, branches stop to learn; with one lr for all depths, the stream blows up."""
    check = features("adamw", rule, axis="depth")
    assert module in check.failed and sign * slopes(check)[module] > 0.4, check.summary
