"""The one Trainer: sampled labels in all that use it, one model a run, one init, and what it does in a step."""

import math
from typing import Any

import pytest
import torch
from support.networks import loss, mlp
from support.runs import build_run, first_point, run_point
from torch import nn

from spectral_mup import check_features, derive, init_, make_optimizers, scale
from spectral_mup.models.layers import CausalSelfAttention, LanguageModel
from spectral_mup.models.nanogpt import NanoGPT
from spectral_mup.optim.sophia import Sophia
from spectral_mup.training.trainer import Trainer, sampled_label_loss

WIDTHS = [16, 32, 64]


def batch(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 * seed + step)
    return torch.randn(32, 8, generator=g), torch.randint(0, 3, (32,), generator=g)


def sampled_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    draws = torch.rand(len(batch[0]), generator=torch.Generator().manual_seed(7))
    return sampled_label_loss(model(batch[0]), draws), len(batch[0])


def trainer(optimizer: str = "sophia", width: int = 32, **settings) -> Trainer:
    torch.manual_seed(0)
    model = mlp(width)
    scaling = scale(model, mlp(16), optimizer=optimizer)
    init_(model, scaling, seed=0)
    return Trainer(model, make_optimizers(model, scaling, lr=0.01), lambda step: [batch(0, step)], loss, **settings)


@pytest.mark.parametrize(
    "train",
    [
        trainer,
        lambda: derive(Sophia, mlp, WIDTHS, batch=batch, loss=loss),
        lambda: check_features(mlp, WIDTHS, "sophia", lr=0.01, batch=batch, loss=loss),
    ],
    ids=["Trainer", "derive", "check_features"],
)
def test_an_optimizer_without_the_sampled_labels_that_it_uses_is_refused(train):
    """A sweep gives them always (text_batches)."""
    with pytest.raises(ValueError, match="^optimizer Sophia: it uses sampled labels; give sampled_loss="):
        train()


def test_derive_and_check_features_give_sophia_its_labels(monkeypatch):
    updates = []
    real = Sophia.update_hessian
    monkeypatch.setattr(Sophia, "update_hessian", lambda self, tokens: (updates.append(tokens), real(self, tokens)))
    measured = derive(Sophia, mlp, WIDTHS, batch=batch, loss=loss, sampled_loss=sampled_loss, steps=9, seeds=(0,)).measured
    assert set(updates) == {32} and len(updates) == len(WIDTHS) + 2  # one in ten steps: every model, scaled loss, scaled init
    assert measured.classes
    updates.clear()
    check_features(
        mlp, WIDTHS, "sophia", lr=0.01, batch=batch, loss=loss, sampled_loss=sampled_loss, steps=2, seeds=(0,), control=None
    )
    assert updates == [32] * len(WIDTHS)


def test_a_run_builds_its_model_once(tiny, corpus, tmp_path, monkeypatch):
    """Whatever else is built, for growths, lies on the meta device."""
    built = []
    real = NanoGPT.__init__

    def init(self: NanoGPT, *arguments: Any) -> None:
        real(self, *arguments)
        built.append(self.token.weight.device.type)

    monkeypatch.setattr(NanoGPT, "__init__", init)
    run_point(first_point(tiny("train.steps=2", "train.warmup=0"), width=64), tmp_path, corpus)
    assert built.count("cpu") == 1 and set(built) == {"cpu", "meta"}


def test_one_seed_gives_one_initialisation(tiny):
    """A sweep's model, and the same model through the public functions."""
    run = first_point(tiny(), width=64, seed=3)
    ours, scaling = build_run(run)
    with torch.device("meta"):
        small = run.model.build(256, 32, 2)
    theirs = run.model.build(256, 64, 2)
    init_(theirs, scale(theirs, small, rule="spectral", residual_blocks=["blocks."]), std=run.model.init_stds(32), seed=3)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.equal(b), name
    init_(theirs, scaling, seed=4)
    assert not ours.get_parameter("token.weight").equal(theirs.get_parameter("token.weight"))


def test_micro_batches_are_one_batch_and_the_schedule_multiplies():
    whole, cut = trainer("adamw", schedule=lambda step: 0.5), trainer("adamw", schedule=lambda step: 0.5)
    cut.batches = lambda step: [tuple(t[i : i + 8] for t in batch(0, step)) for i in range(0, 32, 8)]
    for _ in range(3):
        losses = [float(t.step()) for t in (whole, cut)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(g["lr"] == 0.5 * g["base_lr"] for o in whole.optimizers for g in o.param_groups)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    unscheduled = trainer("adamw")
    unscheduled.step()
    assert not next(unscheduled.model.parameters()).equal(next(trainer("adamw").model.parameters()))


def test_a_state_dict_resumes_to_the_same_numbers():
    unbroken, first = trainer("adopt"), trainer("adopt")
    losses = [float(unbroken.step()) for _ in range(6)]
    for _ in range(3):
        first.step()
    second = trainer("adopt")
    second.load_state_dict(first.state_dict())
    assert second.step_number == 3 and [float(second.step()) for _ in range(3)] == losses[3:]
    fresh = trainer("adopt")
    fresh.step_number = 3
    assert float(fresh.step()) != losses[3]  # the control: without the state


def test_evaluation_weights_batches_by_their_size_and_leaves_dropout_out():
    t = trainer("adamw")
    parts = [(batch(0, 0), 3), (batch(0, 1), 1)]
    expected = sum(float(loss(t.model, b).detach()) * n for b, n in parts) / 4
    assert t.evaluate(parts) == pytest.approx(expected) and t.model.training
    t.model.eval()
    assert t.evaluate(parts) == pytest.approx(expected) and not t.model.training
    assert math.isfinite(expected) and t.evaluate(parts[:1]) != pytest.approx(expected)


def test_a_model_takes_its_multipliers_again_and_again(tiny):
    model, scaling = build_run(first_point(tiny("model.head_size=null", "model.heads=2"), width=64))
    assert isinstance(model, LanguageModel)
    x = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    once = model(x)
    model.set_multipliers(model.multipliers)
    assert model(x).equal(once)
    attention = [m for m in model.modules() if isinstance(m, CausalSelfAttention)]
    assert attention and all(m.scaling == model.multipliers.attention != 32**-0.5 for m in attention)
