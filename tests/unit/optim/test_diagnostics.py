"""What optimizers tell of their own step, and what the probe measures of tensors: each against the step that was taken."""

from functools import partial

import pytest
import torch
from support.optimizers import MATRICES, descend, gradients, parameters
from support.runs import build_run, first_point, optimizers_of, run_point

from spectral_mup.optim.adopt import ADOPT
from spectral_mup.optim.lamb import LAMB
from spectral_mup.optim.shampoo import Shampoo
from spectral_mup.optim.sophia import Sophia
from spectral_mup.training.probe import Probe
from spectral_mup.training.trainer import Trainer
from spectral_mup.util.files import read_rows

LR = 0.01


def stepped(make, steps: int = 3):
    """Parameters, each one's step over the lr, and what the optimizer told of it."""
    params = parameters(MATRICES)
    optimizer = make(params, lr=LR)
    descend(optimizer, params, steps - 1)
    before = [p.detach().clone() for p in params]
    descend(optimizer, params, 1, start=steps - 1)
    return params, before, [(b - p.detach()) / LR for b, p in zip(before, params, strict=True)], optimizer.diagnostics()


def test_trust_ratio_is_the_one_applied():
    """The step's norm is that of the weight; over the ratio it is that of Adam's direction, LAMB without trust."""
    params, before, steps, told = stepped(partial(LAMB, trust=True))
    adam = parameters(MATRICES)
    free = LAMB(adam, lr=LR, trust=False)
    for i, p in enumerate(params):
        assert steps[i].norm() == pytest.approx(float(before[i].norm()), rel=1e-3)
        assert 0 < told[p]["trust_ratio"] < 10
    descend(free, adam, 1)
    assert all("trust_ratio" not in row for row in free.diagnostics().values())
    first, _, one, told = stepped(LAMB, steps=1)
    for p, step, start, end in zip(first, one, parameters(MATRICES), adam, strict=True):
        directed = (start.detach() - end.detach()) / LR
        assert told[p]["trust_ratio"] == pytest.approx(float(step.norm() / directed.norm()), rel=1e-3)


def test_a_scalar_parameter_has_diagnostics_too():
    p = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = Sophia([p], lr=0.1)
    p.grad = torch.tensor(0.5)
    optimizer.update_hessian(0)
    optimizer.step()
    assert optimizer.diagnostics()[p] == {"clip_fraction": 1.0}


def test_clip_fraction_is_the_share_of_signs():
    params, _, steps, told = stepped(partial(Sophia, gamma=0.3, hessian_interval=1))
    shares = [float((u.abs() > 1 - 1e-4).float().mean()) for u in steps]
    assert [told[p]["clip_fraction"] for p in params] == pytest.approx(shares, abs=0.01)
    assert any(0.02 < share < 0.98 for share in shares)


def test_spectra_are_those_of_the_gradient():
    """After one step L = G·Gᵀ, so λ_max is the square of its largest singular value, and the rank ‖G‖_F²/‖G‖₂²."""
    params, before, _, told = stepped(Shampoo, steps=1)
    for p, g in zip(params, gradients(before, 0), strict=True):
        values = torch.linalg.svdvals(g) ** 2
        for side, n in (("left", g.shape[0]), ("right", g.shape[1])):
            assert told[p][f"{side}_largest"] == pytest.approx(float(values[0]), rel=1e-4)
            assert told[p][f"{side}_rank"] == pytest.approx(float(values.sum() / values[0]), rel=1e-4)
            assert told[p][f"{side}_damped"] == pytest.approx(1 - len(values) / n, abs=0.01)


def test_an_optimizer_with_nothing_to_tell():
    _, _, _, told = stepped(ADOPT)
    assert all(row == {} for row in told.values())


def test_rows_of_a_run_hold_them(tiny, tmp_path, corpus):
    for optimizer, column in (("lamb", "trust_ratio"), ("sophia", "clip_fraction"), ("shampoo", "left_rank")):
        point = first_point(tiny(f"optimizer={optimizer}"), width=32)
        folder, _ = run_point(point, tmp_path / "runs", corpus)
        rows = [r for r in read_rows(folder.path / "norms.jsonl") if r["what"] == "tensor" and r["step"] == 4]
        assert any(column in r for r in rows if r["kind"] == "hidden")


def test_alignment_is_that_of_the_update_with_the_inputs_of_the_probe_batch(tiny, corpus):
    """‖X·ΔWᵀ‖_F/(‖ΔW‖₂·‖X‖_F) by hand, of an update along the inputs and of a random one; with ‖ΔW‖_F it is another."""
    point = first_point(tiny("probe.steps=[1,2]"), width=64)
    model, p = build_run(point)
    tokens = torch.arange(32).reshape(2, 16)
    probe = Probe(model, tokens, p, [1, 2])
    trainer = Trainer(model, optimizers_of(model, p, point), lambda step: [], lambda model, batch: model(batch))
    weight, inputs = model.readout.weight, []
    hook = model.readout.register_forward_pre_hook(lambda _m, x: inputs.append(x[0].detach().flatten(0, -2)))
    model(tokens)
    hook.remove()
    top = torch.linalg.svd(inputs[0], full_matrices=False)[2][0]

    def alignment(update: torch.Tensor, step: int, norm: int | str = 2) -> tuple[float, float]:
        weight.grad, rows = torch.ones_like(weight), []
        trainer.step_number = step - 1
        with probe.measure(trainer, rows), torch.no_grad():
            weight.add_(update)
        row = next(r for r in rows if r["name"] == "readout.weight" and r["what"] == "tensor")
        expected = (inputs[0] @ update.T).norm() / (torch.linalg.matrix_norm(update, norm) * inputs[0].norm())
        return row["update_alignment"], float(expected)

    g = torch.Generator().manual_seed(0)
    along, expected = alignment(torch.outer(torch.ones(weight.shape[0]), top) * 0.1, 1)
    assert along == pytest.approx(expected, rel=1e-3)
    across, expected = alignment(torch.randn(weight.shape, generator=g) * 0.01, 2)
    assert across == pytest.approx(expected, rel=0.02)
    across, wrong = alignment(torch.randn(weight.shape, generator=g) * 0.01, 2, norm="fro")
    assert across > 2 * wrong
    first = {r["name"]: r for r in probe.first_rows() if r["what"] == "tensor"}
    assert "weight_alignment" not in first["token.weight"]
