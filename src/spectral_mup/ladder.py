"""Measure how the spectral norm of an optimizer's direction grows with width, without being told.

The direction U is what the lr multiplies: U = −ΔW/lr. Small GPTs over a ladder of widths train on text for some steps. Each
step is rescaled per tensor, so that its effective update has the norm update·‖W‖₂ of the base model, times
√(m_out/m_in): every width then trains as the spectral condition asks, whatever the law is, and no lr need be known.
The hidden side of the MLP stays as wide as in the base model: so some matrices grow in both dims, some in one alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.build import Parametrization, base_stds, forward_of, growths_of, make_model, make_optimizers
from spectral_mup.config import ROLES, mlp_hidden
from spectral_mup.optim.base import UsesSampledLabels
from spectral_mup.optim.linalg import spectral_norms
from spectral_mup.schema import ModelConfig, model_config
from spectral_mup.theory.apply import init_, law_of, scale_all
from spectral_mup.theory.growth import Growth
from spectral_mup.theory.rules import Law, Rule
from spectral_mup.train import sampled_loss

FIRST_LR = 2.0**-10  # of the first step, before any direction is known; it only decides how well the step is rounded
LOSS_SCALE = 16.0


class DeriveError(ValueError):
    """An optimizer or a ladder that cannot be measured; the message says why and what to change."""


@dataclass(frozen=True)
class Rung:
    """A model of the ladder, on the meta device, with what the formula says of it but for the unknown size law."""

    width: int
    science: Mapping[str, Any]
    model: ModelConfig
    p: Parametrization


def make_ladder(science: Mapping[str, Any], vocab_size: int, widths: Sequence[int]) -> list[Rung]:
    """One Rung a width, the first the base. Raises DeriveError if a tensor that should grow does not."""
    base_width = widths[0]
    config = model_config(science["model"])
    config = replace(config, mlp_hidden=mlp_hidden(config, base_width))
    blind: dict[str, Any] = _blind(science) | {
        "base_width": base_width,
        "base_depth": science["depth"],
        "model": asdict(config),
    }

    rungs = []
    for width in widths:
        mine = {**blind, "width": width}
        forward = forward_of(mine)
        growths = growths_of(config, vocab_size, width, base_width, science["depth"])
        algorithms = mine["optimizer"]["algorithms"]
        laws = {role: Law(name := mine["optimizer"][role], {}, algorithms[name]["eps_law"]) for role in ROLES}
        scalings = scale_all(growths, Rule(**mine["rule"]), laws, forward)
        rungs.append(Rung(width, mine, config, Parametrization(growths, scalings, forward, laws)))
    check_ladder({rung.width: rung.p.growths for rung in rungs})
    return rungs


def check_ladder(growths: Mapping[int, Mapping[str, Growth]]) -> None:
    """Every dim that a kind says grows must have grown from each width to the next. Raises DeriveError naming the tensor."""
    widths = sorted(growths)
    if len(widths) < 3 or len(set(widths)) < len(growths):
        raise DeriveError(f"derive.width={widths}: a slope needs three widths or more, as in 'derive.width=[64,128,256]'")
    grew = False
    for name, first in growths[widths[0]].items():
        for small, large in zip(widths, widths[1:], strict=False):
            a, b = growths[small][name], growths[large][name]
            should = {"embedding": (True, False), "vector": (True, False), "readout": (False, True)}.get(
                first.kind, (None, None)
            )
            for side, must, old, new in zip(("fan_out", "fan_in"), should, a.shape, b.shape, strict=True):
                if must and new <= old:
                    raise DeriveError(
                        f"{name}: its {side} should grow with width but is {old} at width {small} and {new} at width {large}; "
                        "nothing can be learned from such a ladder"
                    )
            if first.kind == "matrix":
                if a.shape == b.shape:
                    raise DeriveError(
                        f"{name}: a growing matrix has shape {a.shape} at width {small} and at width {large} alike"
                    )
                grew = True
    if not grew:
        raise DeriveError("no hidden matrix of this model grows with width: there is nothing to derive")


def _blind(science: Mapping[str, Any]) -> dict[str, Any]:
    """The science config with every size law, lr and decay taken out of its optimizer."""
    blind = deepcopy(dict(science))
    for algorithm in blind["optimizer"]["algorithms"].values():
        algorithm |= {"size": {}, "lr": 1.0, "lr_shape": {}}
    blind["optimizer"]["weight_decay"] = dict.fromkeys(blind["optimizer"]["weight_decay"], 0.0)
    return blind | {"log2_lr": 0.0}


def measure(
    rungs: Sequence[Rung],
    corpus: data.Corpus,
    *,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    update: float,
    on_run: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> list[dict[str, Any]]:
    """Rows {width, seed, loss_scale, step, tensor, kind, label, algorithm, ratios, direction, lr}, one a step and tensor.

    direction is ‖U‖₂, lr what makes the wanted update of it; label says how the tensor grows, as 'matrix (m, m)'; ratios are
    the quantities that size laws are written in. One more run at the base width, its loss × 16, tells whether U follows the
    size of the gradient. on_run sees (widths done, their sum, seconds so far).
    """
    labels = {name: _label(growth) for name, growth in rungs[-1].p.growths.items()}
    runs = [(rung, seed, 1.0) for seed in seeds for rung in rungs] + [(rungs[0], seeds[0], LOSS_SCALE)]
    total, base_norms, rows, start = sum(r.width for r, *_ in runs), {}, [], time.monotonic()
    done = 0
    for rung, seed, loss_scale in runs:
        if seed not in base_norms:  # the base comes first
            base_norms[seed] = _weight_norms(_fresh(rungs[0], corpus, seed))
        wanted = {name: update * norm * _target(rung, name) for name, norm in base_norms[seed].items()}
        rows += [
            row | {"label": labels[row["tensor"]]} for row in _train(rung, corpus, seed, steps, batch_size, wanted, loss_scale)
        ]
        done += rung.width
        on_run(done, total, time.monotonic() - start)
    return rows


def _label(growth: Growth) -> str:
    """'readout (1, m)': kind, and which of (fan_out, fan_in) grow."""
    return f"{growth.kind} ({', '.join('m' if m != 1 else '1' for m in (growth.m_out, growth.m_in))})"


def _fresh(rung: Rung, corpus: data.Corpus, seed: int) -> nn.Module:
    model = make_model(rung.model, corpus.vocab_size, rung.width, rung.science["depth"], rung.p.forward)
    init_(model, rung.p.scalings, rung.p.growths, base_stds(rung.science), seed)
    return model


@torch.no_grad()
def _weight_norms(model: nn.Module) -> dict[str, float]:
    """‖W‖₂ by name; a vector as if its entries were 1, a zero matrix as if they had std fan_in^-1/2."""
    norms = {}
    for name, p in model.named_parameters():
        norm = spectral_norms([p.detach()])[0] if p.ndim > 1 else 0.0
        norms[name] = norm or (p.numel() ** 0.5 if p.ndim < 2 else 1.0)
    return norms


def _target(rung: Rung, name: str) -> float:
    """Growth of ‖ΔW‖₂ that the spectral condition asks of the parameter: √(m_out/m_in)/c."""
    growth = rung.p.growths[name]
    return (growth.m_out / growth.m_in) ** 0.5 / _multiplier(rung, growth)


def _multiplier(rung: Rung, growth: Growth) -> float:
    return {"readout": rung.p.forward.logits, "embedding": rung.p.forward.embedding}.get(growth.kind, 1.0)


def _train(
    rung: Rung, corpus: data.Corpus, seed: int, steps: int, batch_size: int, wanted: Mapping[str, float], loss_scale: float
) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    model = _fresh(rung, corpus, seed)
    optimizers = make_optimizers(model, rung.science, rung.p)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {id(p): name for name, p in parameters.items()}
    groups = [(group, [names[id(p)] for p in group["params"]]) for o in optimizers for group in o.param_groups]
    part_of = {"batch_size": batch_size, "context": rung.model.context}
    for group, _ in groups:
        group["lr"] = FIRST_LR
    rows = []
    for step in range(steps):
        x, y = (torch.from_numpy(a) for a in data.batch(corpus.train, seed=seed, step=step, **part_of))
        for optimizer in optimizers:
            if isinstance(optimizer, UsesSampledLabels) and step % optimizer.hessian_interval == 0:
                draws = torch.from_numpy(data.label_draws(seed=seed, step=step, **part_of))
                (loss_scale * sampled_loss(model(x), draws)).backward()
                optimizer.update_hessian(part_of["batch_size"] * part_of["context"])
                model.zero_grad(set_to_none=True)
        loss = loss_scale * model(x, y)
        loss.backward()
        before = {name: p.detach().clone() for name, p in parameters.items()}
        for optimizer in optimizers:
            try:
                optimizer.step()
            except Exception as error:
                raise DeriveError(
                    f"{type(optimizer).__name__}.step() failed on an ordinary gradient ({type(error).__name__}: {error}); "
                    "only optimizers that step on p.grad alone can be derived"
                ) from error
            optimizer.zero_grad(set_to_none=True)
        directions = _rescale(parameters, before, groups, wanted)
        if not all(d < float("inf") for d in directions.values()) or not bool(loss.isfinite()):
            raise DeriveError(f"width {rung.width}, step {step + 1}: the loss or an update is not finite; lower derive.update")
        for name, norm in directions.items():
            growth = rung.p.growths[name]
            c = _multiplier(rung, growth)
            ratios = growth.ratios() | {"c": c, "a": 1.0, "s": rung.p.scalings[name].init_std}
            row = {"width": rung.width, "seed": seed, "loss_scale": loss_scale, "step": step + 1, "tensor": name}
            row |= {"kind": growth.kind, "algorithm": law_of(growth, rung.p.laws).name, "ratios": ratios}
            rows.append(row | {"direction": norm, "lr": wanted[name] / norm})
    return rows


@torch.no_grad()
def _rescale(
    parameters: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
    groups: Sequence[tuple[dict[str, Any], list[str]]],
    wanted: Mapping[str, float],
) -> dict[str, float]:
    """Give every update its wanted norm, set the lrs to what would have done so, and return ‖U‖₂ by name."""
    updates = {name: p.detach() - before[name] for name, p in parameters.items()}
    norms = spectral_norms([u if u.ndim > 1 else u[:, None] for u in updates.values()])
    moved = {name: norm for name, norm in zip(updates, norms, strict=True) if norm > 0}
    directions = {}
    for group, names in groups:
        mine = [name for name in names if name in moved]
        for name in mine:
            directions[name] = moved[name] / group["lr"]
            parameters[name].copy_(before[name] + updates[name] * (wanted[name] / moved[name]))
        if mine:
            ratios = torch.tensor([wanted[name] / directions[name] for name in mine], dtype=torch.float64)
            group["lr"] = float(ratios.log().mean().exp())
    return directions
