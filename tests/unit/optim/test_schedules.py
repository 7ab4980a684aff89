"""Schedules that overwrite the ratio between groups are noticed, those that multiply are not; Sophia in a loop of one's own."""

import copy
import re
import textwrap
import warnings
from functools import partial

import pytest
import torch
from support.networks import mlp
from support.optimizers import descend, parameters
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from spectral_mup import Trainer, make_optimizers, scale
from spectral_mup.optim.muon import Muon
from spectral_mup.optim.sophia import Sophia
from spectral_mup.training.trainer import sampled_label_loss

STEPS = 12
OVERWRITE = {
    "OneCycleLR": partial(schedulers.OneCycleLR, max_lr=0.02, total_steps=STEPS),
    "CyclicLR": partial(schedulers.CyclicLR, base_lr=1e-4, max_lr=0.02, step_size_up=4),
    "SWALR": partial(SWALR, swa_lr=0.02, anneal_epochs=4),
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=STEPS, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=6, eta_min=1e-3),
}
MULTIPLY = {
    "LambdaLR": partial(schedulers.LambdaLR, lr_lambda=lambda step: min(1.0, step / 4)),
    "MultiplicativeLR": partial(schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.9),
    "StepLR": partial(schedulers.StepLR, step_size=3),
    "MultiStepLR": partial(schedulers.MultiStepLR, milestones=[2, 5]),
    "ConstantLR": partial(schedulers.ConstantLR, total_iters=3),
    "LinearLR": partial(schedulers.LinearLR, total_iters=5),
    "ExponentialLR": partial(schedulers.ExponentialLR, gamma=0.8),
    "PolynomialLR": partial(schedulers.PolynomialLR, total_iters=STEPS),
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=STEPS),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=6),
    "OneCycleLR with a list": lambda o: schedulers.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=STEPS),
    "CyclicLR with lists": lambda o: schedulers.CyclicLR(
        o, [0.1 * g["lr"] for g in o.param_groups], [g["lr"] for g in o.param_groups], step_size_up=4
    ),
    "SWALR with a list": lambda o: SWALR(o, [0.5 * g["lr"] for g in o.param_groups], anneal_epochs=4),
}


def optimizer_of(name: str) -> torch.optim.Optimizer:
    model = mlp(64)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    (optimizer,) = make_optimizers(model, scale(model, mlp(16), optimizer=name), lr=0.01)
    assert len({group["lr"] for group in optimizer.param_groups}) > 1
    return optimizer


def warned(optimizer: torch.optim.Optimizer, schedule, steps: int = STEPS) -> list[str]:
    scheduler = schedule(optimizer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
    return [str(w.message) for w in said]


@pytest.mark.parametrize("optimizer", ["adamw", "adopt"])  # torch's and ours
@pytest.mark.parametrize("name", OVERWRITE)
def test_schedules_that_give_all_groups_one_lr_are_noticed_once(name, optimizer):
    (said,) = warned(optimizer_of(optimizer), OVERWRITE[name])
    assert re.match("(AdamW|ADOPT): lr/base_lr is .* a schedule has overwritten the ratios", said) and "max_lr=[g[" in said


@pytest.mark.parametrize("optimizer", ["adamw", "adopt"])
@pytest.mark.parametrize("name", MULTIPLY)
def test_schedules_that_multiply_are_not(name, optimizer):
    assert warned(optimizer_of(optimizer), MULTIPLY[name]) == []


def test_one_lr_assigned_in_the_loop_is_noticed_and_groups_without_a_peak_are_left_alone():
    optimizer = optimizer_of("adamw")
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with pytest.warns(UserWarning, match="lr/base_lr is 1 in one group, 4 in another"):
        optimizer.step()
    params = parameters([(8, 8)] * 2)
    own = Muon([{"params": [params[0]], "lr": 0.1}, {"params": [params[1]], "lr": 0.2}])
    descend(own, params, 1)
    own.param_groups[0]["lr"] = 0.4
    descend(own, params, 1)


def test_a_floor_of_reduce_on_plateau_is_noticed():
    """max(0.1·lr, min_lr) ends at min_lr in all groups."""
    optimizer = optimizer_of("adamw")
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, min_lr=2e-3)
    with pytest.warns(UserWarning, match="overwritten the ratios"):
        for _ in range(4):
            scheduler.step(1.0)
            optimizer.step()


def test_copies_and_loaded_optimizers_watch_on():
    optimizer = optimizer_of("adopt")
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twin.load_state_dict(optimizer.state_dict())
    assert len(warned(twin, OVERWRITE["OneCycleLR"])) == 1


def test_our_trainer_and_its_schedule_never_warn():
    model = mlp(64)
    optimizers = make_optimizers(model, scale(model, mlp(16), optimizer="adopt"), lr=0.01)
    batch = (torch.ones(4, 8), torch.ones(4, dtype=torch.long))
    loss = lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1])  # noqa: E731
    trainer = Trainer(model, optimizers, lambda step: [batch], loss, schedule=lambda step: min(1.0, step / 3))
    for _ in range(5):
        trainer.step()


# --- Sophia without its curvature ---


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    nn.functional.cross_entropy(model(x), y).backward()


def sophia_of(model: nn.Module, **settings) -> Sophia:
    return Sophia(model.parameters(), lr=0.01, **settings)


def test_sophia_without_update_hessian_warns_once_at_the_first_step():
    model, x, y = mlp(16), torch.randn(32, 8), torch.randint(0, 3, (32,))
    sophia = sophia_of(model)
    backward(model, x, y)
    with pytest.warns(UserWarning, match="^Sophia: update_hessian was never called, .*sign momentum; .*hessian_interval"):
        sophia.step()
    sophia.step()  # any further warning would be an error
    twin = sophia_of(model)
    twin.load_state_dict(sophia.state_dict())
    twin.step()


def test_a_step_of_lr_0_that_only_makes_state_does_not_warn():
    """As torch.distributed.checkpoint makes one before it loads."""
    model = mlp(16)
    sophia = sophia_of(model)
    backward(model, torch.randn(32, 8), torch.randint(0, 3, (32,)))
    for group in sophia.param_groups:
        group["lr"] = 0.0
    sophia.step()
    sophia.param_groups[0]["lr"] = 0.01
    with pytest.warns(UserWarning, match="update_hessian was never called"):
        sophia.step()


def test_our_trainer_brings_the_curvature_so_nothing_warns():
    model = mlp(16)
    (sophia,) = make_optimizers(model, scale(model, mlp(16), optimizer="sophia"), lr=0.01)
    batch = (torch.ones(4, 8), torch.ones(4, dtype=torch.long))

    def sampled(model, b):
        return sampled_label_loss(model(b[0]), torch.rand(4)), 4

    loss = lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1])  # noqa: E731
    trainer = Trainer(model, [sophia], lambda step: [batch], loss, sampled_loss=sampled)
    trainer.step()


def documented_lines() -> str:
    """The block of code in Sophia's docstring."""
    lines = textwrap.dedent(Sophia.__doc__.split("\n", 1)[1])
    return textwrap.dedent("\n".join(line for line in lines.splitlines() if line.startswith("    ")))


def test_the_documented_lines_give_the_gauss_newton_bartlett_estimate():
    """On logits = W·x: h = (1 − β2)·B·ĝ², ĝ the mean of (softmax − sampled one-hot)·xᵀ."""
    code = documented_lines()
    assert len(code.splitlines()) == 6 and code.splitlines()[0].endswith("== 0:")
    torch.manual_seed(0)
    model, x, y = nn.Linear(8, 3, bias=False), torch.randn(256, 8), torch.randint(0, 3, (256,))
    sophia, start = sophia_of(model, gamma=0.5, hessian_interval=3), model.weight.detach().clone()
    updates = []
    for step in range(4):
        torch.manual_seed(step)
        exec(code, {"torch": torch, "sophia": sophia, "model": model, "x": x, "step": step})
        assert model.weight.grad is None
        updates.append(sophia.state[model.weight]["hessian"].clone())
        backward(model, x, y)
        sophia.step()
        sophia.zero_grad()
    torch.manual_seed(0)
    probabilities = (x @ start.T).softmax(-1)
    labels = torch.distributions.Categorical(logits=x @ start.T).sample()
    g = (probabilities - nn.functional.one_hot(labels, 3)).T @ x / 256
    torch.testing.assert_close(updates[0], 0.01 * 256 * g**2)
    assert updates[0].equal(updates[2]) and not updates[3].equal(updates[2])  # renewed every third step


def test_a_scaling_for_sophia_says_what_the_loop_must_do():
    notes = scale(mlp(64), mlp(16), optimizer="sophia").notes
    assert any(note.startswith("sophia: without update_hessian it is sign momentum") for note in notes)
    assert not any("update_hessian" in note for note in scale(mlp(64), mlp(16), optimizer="adopt").notes)
