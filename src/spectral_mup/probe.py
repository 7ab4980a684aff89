"""What is measured while a run trains: features on a fixed batch, and the tensors of a step. Changes nothing of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.optim.linalg import spectral_norm
from spectral_mup.theory.growth import Growth
from spectral_mup.theory.rules import Multipliers


class Probe:
    """Measures at chosen steps. Build it right after init: the features of step 0 are its reference.

    Feature rows: RMS of each module's output and of its change since step 0. Tensor rows: spectral norms ‖W‖₂ and ‖ΔW‖₂ of
    the step (power iteration), stable rank ‖·‖_F²/‖·‖₂² of ΔW and of the gradient, its Frobenius norm, the step's lr.
    """

    def __init__(
        self, model: nn.Module, x_BT: Tensor, growths: Mapping[str, Growth], forward: Multipliers, steps: list[int]
    ) -> None:
        self.model, self.x_BT, self.growths, self.forward = model, x_BT, growths, forward
        self.steps = frozenset(steps)
        self.reference = self._features()
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def first_rows(self) -> list[dict[str, Any]]:
        """Rows of step 0: features and weights at init, no update yet."""
        return self._feature_rows(0) + [
            self._tensor_row(0, name, p, {}) for name, p in self.model.named_parameters() if p.requires_grad
        ]

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep weights and gradients of the step that is about to be taken."""
        self._before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self._gradients = {n: p.grad.detach().clone() for n, p in self.model.named_parameters() if p.grad is not None}

    @torch.no_grad()
    def after_step(self, step: int, lrs: Mapping[str, float]) -> list[dict[str, Any]]:
        """Rows of the step just taken; `lrs` is the lr each parameter trained with in it."""
        rows = self._feature_rows(step)
        for name, p in self.model.named_parameters():
            if name in self._before:
                update, gradient = p - self._before[name], self._gradients[name]
                norm = float(spectral_norm(_matrix(update)))
                values = {
                    "lr": lrs[name],
                    "update_norm": norm,
                    "update_stable_rank": _stable_rank(update, norm),
                    "grad_norm": float(gradient.norm()),
                    "grad_stable_rank": _stable_rank(gradient, float(spectral_norm(_matrix(gradient)))),
                }
                rows.append(self._tensor_row(step, name, p, values))
        self._before, self._gradients = {}, {}
        return rows

    def _tensor_row(self, step: int, name: str, p: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        growth = self.growths[name]
        c = {"readout": self.forward.logits, "embedding": self.forward.embedding}.get(growth.kind, 1.0)
        return {
            "step": step,
            "name": name,
            "what": "tensor",
            "kind": growth.kind,
            "fan_out": growth.shape[0],
            "fan_in": growth.shape[1],
            "multiplier": c * (self.forward.branch if growth.in_block else 1.0),
            "weight_norm": float(spectral_norm(_matrix(p.detach()))),
        } | values

    def _feature_rows(self, step: int) -> list[dict[str, Any]]:
        rows = []
        for name, (kind, h) in (self.reference if step == 0 else self._features()).items():
            change = h - self.reference[name][1]
            row = {"step": step, "name": name, "what": "feature", "kind": kind}
            rows.append(row | {"rms": _rms(h), "delta_rms": _rms(change)})
        return rows

    @torch.no_grad()
    def _features(self) -> dict[str, tuple[str, Tensor]]:
        """{module: (kind, output)} on the probe batch: embeddings, linear maps, residual blocks, and the scaled logits."""
        found: dict[str, tuple[str, Tensor]] = {}
        hooks = []
        readouts = {id(p) for n, p in self.model.named_parameters() if self.growths[n].kind in ("readout", "embedding")}

        def watch(name: str, kind: str, module: nn.Module) -> None:
            hooks.append(module.register_forward_hook(lambda _m, _i, out: found.update({name: (kind, out.float())})))

        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding):
                watch(name, "embedding", module)
            elif isinstance(module, nn.Linear) and id(module.weight) not in readouts:
                watch(name, "hidden", module)
            elif isinstance(module, nn.ModuleList):
                for index, block in enumerate(module):
                    watch(f"{name}.{index}", "hidden", block)
        training = self.model.training
        self.model.eval()
        try:
            logits = self.model(self.x_BT)
        finally:
            self.model.train(training)
            for hook in hooks:
                hook.remove()
        found["logits"] = ("readout", logits.float())
        return found


def _matrix(t: Tensor) -> Tensor:
    return (t if t.ndim > 1 else t[:, None]).float()


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def _stable_rank(t: Tensor, norm: float) -> float:
    return float(t.float().square().sum()) / norm**2 if norm > 0 else 0.0
