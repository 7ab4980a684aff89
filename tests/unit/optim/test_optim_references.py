"""Each optimizer against its equations in float64, a tensor at a time, and against code by other authors.

Ten steps on random gradients that depend on the weights. Wrong variants of the equations must be told apart.
"""

from functools import partial

import adopt
import lion_pytorch
import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from support.optimizers import MATRICES, descend, gradients, parameters, sampled_gradients

from spectral_mup.optim.adopt import ADOPT
from spectral_mup.optim.lamb import LAMB
from spectral_mup.optim.shampoo import Shampoo
from spectral_mup.optim.soap import SOAP
from spectral_mup.optim.sophia import Sophia

STEPS, TOKENS, LR = 10, 64, 0.02
VECTORS = [(7,), (2, 3, 4)]
SQUARE = [(16, 16), (24, 24), (16, 16)]

# --- the equations: (W, G, state, t from 1, gradient on sampled labels) to the next W ---------------------------------


def adopt_by_the_formula(w, g, s, t, _, decay=0.1, betas=(0.9, 0.9999), eps=1e-6, count_from=1):
    """arXiv 2411.02853, Algorithm 2; the second call clips at 1."""
    if t == 1:
        s.update(m=0.0 * g, v=g * g)
        return w
    bound = (t - 2 + count_from) ** 0.25
    x = (g / s["v"].sqrt().clamp(min=eps)).clamp(-bound, bound)
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * x
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g * g
    return (1 - LR * decay) * w - LR * s["m"]


def lamb_by_the_formula(w, g, s, t, _, decay=0.5, betas=(0.9, 0.999), eps=1e-2, decoupled=True, trust=True, correct=True):
    """arXiv 1904.00962, Algorithm 2."""
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g * g
    c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if correct else (1, 1)
    u = s["m"] / c1 / ((s["v"] / c2).sqrt() + eps) + (0 if decoupled else decay * w)
    ratio = w.norm() / u.norm() if trust and w.ndim > 1 else 1
    return (1 - LR * decay * decoupled) * w - LR * ratio * u


def sophia_by_the_formula(w, g, s, t, sampled, decay=0.1, betas=(0.96, 0.99), gamma=0.5, eps=1e-12, k=3, tokens=TOKENS, late=0):
    """arXiv 2305.14342, Algorithm 3 with the Gauss–Newton–Bartlett estimate; `late` takes it after the step."""
    s.setdefault("m", 0.0 * g)
    s.setdefault("h", 0.0 * g)
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    h = betas[1] * s["h"] + (1 - betas[1]) * tokens * sampled**2 if (t - 1) % k == 0 else s["h"]
    u = (s["m"] / (gamma * (s["h"] if late else h)).clamp(min=eps)).clamp(-1, 1)
    s["h"] = h
    return (1 - LR * decay) * w - LR * u


def shampoo_by_the_formula(
    w, g, s, t, _, decay=0.1, betas=(0.9, 0.95), eps=1e-6, accumulate="ema", interval=1, exponent=-0.25, grafting="none"
):
    """arXiv 1802.09568, Algorithm 1, by singular values; the averages are arXiv 2002.09018's, with bias correction."""
    old, new = (betas[1], 1 - betas[1]) if accumulate == "ema" else (1, 1)
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g * g
    for side, gram in (("L", g @ g.T), ("R", g.T @ g)):
        s[side] = old * s.get(side, 0.0) + new * gram
        if t * (1 - betas[1]) <= 1 or t % interval == 0:
            a, b, _ = torch.linalg.svd(s[side] / (1 - betas[1] ** t if accumulate == "ema" else 1))
            s[side + "root"] = a @ ((b + eps * b[0]) ** exponent).diag() @ a.T
    m = s["m"] / (1 - betas[0] ** t)
    u = s["Lroot"] @ m @ s["Rroot"]
    u = u * (m / (s["v"] / (1 - betas[1] ** t)).sqrt()).norm() / u.norm() if grafting == "adam" else u
    return (1 - LR * decay) * w - LR * u


def soap_by_the_formula(w, g, s, t, _, decay=0.1, betas=(0.95, 0.95), eps=1e-8, interval=3, move_v=True):
    """arXiv 2409.11321, Algorithm 3, with its official code's first call and order of columns; m is carried over."""
    b1, b2 = betas
    s["L"], s["R"] = (b2 * s.get(x, 0.0) + (1 - b2) * y for x, y in (("L", g @ g.T), ("R", g.T @ g)))
    if t == 1:
        s["p"], s["q"] = (torch.linalg.eigh(s[x])[1].flip(1) for x in "LR")
        s["m"], s["v"] = 0.0 * g, 0.0 * g
        return w
    turned = s["p"].T @ g @ s["q"]
    s["m"], s["v"] = b1 * s["m"] + (1 - b1) * turned, b2 * s["v"] + (1 - b2) * turned**2
    u = s["p"] @ (s["m"] / (1 - b1 ** (t - 1)) / ((s["v"] / (1 - b2 ** (t - 1))).sqrt() + eps)) @ s["q"].T
    if (t - 1) % interval == 0:
        m = s["p"] @ s["m"] @ s["q"].T
        for x, q, axis in (("L", "p", 0), ("R", "q", 1)):
            order = (s[q].T @ s[x] @ s[q]).diag().argsort(descending=True)
            s["v"] = s["v"].index_select(axis, order) if move_v else s["v"]
            s[q] = torch.linalg.qr(s[x] @ s[q][:, order])[0]
        s["m"] = s["p"].T @ m @ s["q"]
    return (1 - LR * decay) * w - LR * u


def walk(formula, shapes, **options) -> list[torch.Tensor]:
    """Weights after STEPS steps of the equations."""
    weights = [p.detach().clone() for p in parameters(shapes, dtype=torch.float64)]
    states: list[dict] = [{} for _ in weights]
    for step in range(STEPS):
        g, sampled = gradients(weights, step), sampled_gradients(weights, step)
        weights = [formula(w, x, s, step + 1, y, **options) for w, x, s, y in zip(weights, g, states, sampled, strict=True)]
    return weights


def error(params, weights, start) -> float:
    """Largest relative difference of the way from the start, over the tensors."""
    moved = zip(params, weights, start, strict=True)
    return max(float((p.detach() - w).norm() / (w - s.detach()).norm()) for p, w, s in moved)


# --- ours against the equations ---------------------------------------------------------------------------------------

CASES = {  # optimizer, what it acts on, its options, formula, options of the formula, options of variants that are wrong
    "adopt": (ADOPT, {"weight_decay": 0.1}, adopt_by_the_formula, {}, [{"count_from": 2}, {"count_from": 0}, {"decay": 0.0}]),
    "lamb": (LAMB, {"weight_decay": 0.5, "eps": 1e-2}, lamb_by_the_formula, {}, [{"decoupled": False}, {"trust": False}]),
    "lamb as published": (
        LAMB, {"weight_decay": 0.5, "eps": 1e-2, "decoupled": False}, lamb_by_the_formula, {"decoupled": False},
        [{"decoupled": False, "correct": False}, {"decoupled": True}],
    ),
    "lamb without the ratio": (
        LAMB, {"weight_decay": 0.5, "eps": 1e-2, "trust": False}, lamb_by_the_formula, {"trust": False}, [{"correct": False}]
    ),
    "sophia": (
        Sophia, {"weight_decay": 0.1, "gamma": 0.5, "hessian_interval": 3}, sophia_by_the_formula, {},
        [{"late": 1}, {"tokens": 1}, {"k": 4}],
    ),
    "shampoo": (Shampoo, {"weight_decay": 0.1}, shampoo_by_the_formula, {}, [{"exponent": -0.5}, {"accumulate": "sum"}]),
    "shampoo, sums": (
        Shampoo, {"weight_decay": 0.1, "accumulate": "sum"}, shampoo_by_the_formula, {"accumulate": "sum"},
        [{"accumulate": "sum", "exponent": -0.5}],
    ),
    "shampoo, interval 4": (
        Shampoo, {"weight_decay": 0.1, "interval": 4, "betas": (0.9, 0.7)}, shampoo_by_the_formula,
        {"interval": 4, "betas": (0.9, 0.7)}, [{"interval": 1, "betas": (0.9, 0.7)}],
    ),
    "shampoo, grafted": (
        Shampoo, {"weight_decay": 0.1, "grafting": "adam"}, shampoo_by_the_formula, {"grafting": "adam"}, [{}]
    ),
    "soap": (SOAP, {"weight_decay": 0.1, "interval": 3}, soap_by_the_formula, {}, [{"interval": 4}, {"move_v": False}]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_step_is_the_formula(name):
    make, options, formula, same, wrong = CASES[name]
    # SOAP's basis has no limit where a gradient has less than full rank, so two ways of rounding part there.
    shapes = SQUARE if make is SOAP else MATRICES if make.matrices_only else MATRICES + VECTORS
    start, params = (parameters(shapes, dtype=torch.float64) for _ in range(2))
    descend(make(params, lr=LR, **options), params, STEPS, tokens=TOKENS)
    assert error(params, walk(formula, shapes, **same), start) <= 1e-9
    for variant in wrong:
        assert error(params, walk(formula, shapes, **variant), start) > 1e-3, variant


# --- ours against other authors ---------------------------------------------------------------------------------------


def compare(ours, theirs, shapes=MATRICES + VECTORS) -> float:
    """Relative difference of two optimizers after STEPS steps each."""
    start, mine, other = (parameters(shapes, dtype=torch.float64) for _ in range(3))
    descend(ours(mine), mine, STEPS, tokens=TOKENS)
    descend(theirs(other), other, STEPS)
    return error(mine, [p.detach() for p in other], start)


@pytest.mark.filterwarnings("ignore")  # it calls functions that torch has deprecated
def test_adopt_equals_its_authors():
    theirs = partial(adopt.ADOPT, lr=LR, weight_decay=0.1, decouple=True)
    assert compare(partial(ADOPT, lr=LR, weight_decay=0.1), partial(theirs, foreach=False)) <= 1e-9
    assert compare(partial(ADOPT, lr=LR, weight_decay=0.1, clip=False), partial(theirs, clip_lambda=None)) <= 1e-9
    # pytorch-optimizer 4.1.0 is no reference: it clips as if one step later, and decays on the first call.
    other = partial(pytorch_optimizer.ADOPT, lr=LR, weight_decay=0.1, weight_decouple=True)
    assert compare(partial(ADOPT, lr=LR, weight_decay=0.1), other) > 1e-3


def test_lamb_equals_another_where_that_is_lamb():
    """pytorch-optimizer 4.1.0 leaves bias correction out, which cancels in the trust ratio if ε = 0 and nothing decays.

    With decay it takes ‖W‖ after the shrink. Without `adam_debias` it divides the finished step by 1 − β1^t, ten times too
    much at first; ‖W‖ it bounds by 10.
    """

    def theirs(params, debias=True, bound=1e9, **options):
        optimizer = pytorch_optimizer.Lamb(params, lr=LR, eps=1e-16, adam_debias=debias, **options)
        optimizer.clamp = bound
        return optimizer

    ours = partial(LAMB, lr=LR, eps=1e-16)
    assert compare(ours, theirs, MATRICES) <= 1e-9
    inside = partial(theirs, weight_decay=0.5, weight_decouple=False)
    assert compare(partial(ours, weight_decay=0.5, decoupled=False), inside, MATRICES) > 1e-3
    assert compare(ours, partial(theirs, debias=False), MATRICES) > 0.1
    assert compare(ours, partial(theirs, bound=10.0), MATRICES) > 0.1


@pytest.mark.parametrize("k", [1, 3])
def test_sophia_equals_another_given_the_hessian(k):
    """pytorch-optimizer's SophiaH with ĥ from outside clips m/h at ρ: our γ = ρ, with lr/ρ, λ·ρ and ε/γ."""
    gamma = 0.5

    def theirs(params):
        optimizer = pytorch_optimizer.SophiaH(
            params, lr=LR / gamma, p=gamma, weight_decay=0.1 * gamma, eps=1e-12 / gamma, update_period=10**9
        )
        take, count = optimizer.step, iter(range(STEPS))

        def step():
            index = next(count)
            sampled = sampled_gradients(params, index)
            take(hessian=[TOKENS * g**2 for g in sampled] if index % k == 0 else None)

        optimizer.step = step  # type: ignore[method-assign]
        return optimizer

    ours = partial(Sophia, lr=LR, weight_decay=0.1, gamma=gamma)
    assert compare(partial(ours, hessian_interval=k), theirs) <= 1e-9
    assert compare(partial(ours, hessian_interval=k + 1), theirs) > 1e-3


def test_shampoo_equals_another():
    """pytorch-optimizer's Shampoo starts L and R at ε·I and sums; ScalableShampoo averages without bias correction.

    ε is 1e-13 there and 0 here: theirs is absolute, ours relative to the largest eigenvalue. Square gradients only, whose
    L and R are regular from the first step on, so that ε does not matter to 1e-9. L and R under-estimate by 1 − β2^t, so
    an lr times √(1 − β2^t) corrects for it.
    """
    ours = partial(Shampoo, lr=LR, betas=(0.0, 0.95), eps=0.0)
    sums = partial(pytorch_optimizer.Shampoo, lr=LR, preconditioning_compute_steps=1, matrix_eps=1e-13)
    assert compare(partial(ours, accumulate="sum"), sums, SQUARE) <= 1e-9
    assert compare(ours, sums, SQUARE) > 1e-3

    def averages(params, correct=True):
        optimizer = pytorch_optimizer.ScalableShampoo(
            params, lr=LR, betas=(0.0, 0.95), graft_type=LayerWiseGrafting.NONE, nesterov=False, use_svd=True,
            start_preconditioning_step=1, preconditioning_compute_steps=1, shape_interpretation=False, matrix_eps=1e-13,
        )  # fmt: skip
        take, count = optimizer.step, iter(range(1, STEPS + 1))

        def step():
            optimizer.param_groups[0]["lr"] = LR * ((1 - 0.95 ** next(count)) ** 0.5 if correct else 1.0)
            take()

        optimizer.step = step  # type: ignore[method-assign]
        return optimizer

    assert compare(ours, averages, SQUARE) <= 1e-9
    assert compare(ours, partial(averages, correct=False), SQUARE) > 1e-3


def test_soap_equals_another():
    """pytorch-optimizer's SOAP takes its QR in float32, hence 1e-6; without a refresh, it agrees to 1e-9.

    It adds ε to √v before bias correction, as the official code does, so ε is negligible here. It decays after the step.
    """
    for interval, bound in ((100, 1e-9), (3, 1e-6)):
        ours = partial(SOAP, lr=LR, eps=1e-15, interval=interval)
        theirs = partial(pytorch_optimizer.SOAP, lr=LR, weight_decay=0.0, eps=1e-15, precondition_frequency=interval)
        assert compare(ours, theirs, SQUARE) <= bound
        assert compare(partial(ours, interval=2), theirs, SQUARE) > 1e-3


def test_lion_is_its_formula():
    """conf/optimizer/lion.yaml takes lion-pytorch's; arXiv 2302.06675, Algorithm 2."""

    def formula(w, g, s, t, _, betas=(0.9, 0.99)):
        m = s.get("m", 0.0)
        s["m"] = betas[1] * m + (1 - betas[1]) * g
        return (1 - LR * 0.1) * w - LR * (betas[0] * m + (1 - betas[0]) * g).sign()

    shapes = MATRICES + VECTORS
    start, params = (parameters(shapes, dtype=torch.float64) for _ in range(2))
    descend(lion_pytorch.Lion(params, lr=LR, weight_decay=0.1, betas=(0.9, 0.99)), params, STEPS)
    assert error(params, walk(formula, shapes), start) <= 1e-9
    assert error(params, walk(formula, shapes, betas=(0.95, 0.99)), start) > 1e-3
