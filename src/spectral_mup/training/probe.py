"""What is measured while a run trains: features on a fixed batch, and the tensors of a step. Changes nothing of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spectral_mup.optim.linalg import spectral_norms
from spectral_mup.optim.stacked import whole
from spectral_mup.theory.growth import Growth, is_conv1d, named_modules, named_parameters, owners
from spectral_mup.theory.rules import Multipliers


class Probe:
    """Measures at chosen steps. Build it right after init: the features of step 0 are its reference.

    Feature rows: RMS of each module's output and of its change since step 0. Tensor rows: spectral norms ‖W‖₂ and ‖ΔW‖₂ of
    the step (power iteration), stable rank ‖·‖_F²/‖·‖₂² of ΔW and of the gradient, its Frobenius norm, the step's lr; of the
    weight of a linear map the alignments ‖W·x‖/(‖W‖₂·‖x‖) and ‖ΔW·x‖/(‖ΔW‖₂·‖x‖) with its inputs x on the fixed batch, all
    norms over the batch; and what the optimizer has to say of its own (StackedOptimizer.diagnostics).
    The fixed batch is a tensor, or a function that runs the model on one.
    """

    def __init__(
        self,
        model: nn.Module,
        x_BT: Tensor | Callable[[], Any],
        growths: Mapping[str, Growth],
        forward: Multipliers,
        steps: list[int],
    ) -> None:
        self.model, self.x_BT, self.growths, self.forward = model, x_BT, growths, forward
        self.steps = frozenset(steps)
        self.reference, self._inputs = self._forward()
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def feature_rows(self, step: int) -> list[dict[str, Any]]:
        """The feature rows of a step just taken, alone."""
        return self._feature_rows(step, self._forward()[0])

    def first_rows(self) -> list[dict[str, Any]]:
        """Rows of step 0: features and weights at init, no update yet."""
        rows = self._feature_rows(0, self.reference)
        named = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        for names in _parts(named):
            matrices = [_matrix(whole(named[name])) for name in names]
            for name, matrix, norm in zip(names, matrices, spectral_norms(matrices), strict=True):
                rows.append(self._tensor_row(0, name, matrix, norm))
        return rows

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep weights and gradients of the step that is about to be taken."""
        self._before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self._gradients = {n: p.grad.detach().clone() for n, p in self.model.named_parameters() if p.grad is not None}

    @torch.no_grad()
    def after_step(
        self, step: int, lrs: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, float]] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of the step just taken; `lrs` is the lr each parameter trained with in it, `diagnostics` more of its row."""
        features, self._inputs = self._forward()
        rows = self._feature_rows(step, features)
        now = dict(self.model.named_parameters())
        for names in _parts(self._before):
            rows += self._step_rows(step, names, now, lrs, diagnostics or {})
        self._before, self._gradients, self._inputs = {}, {}, {}
        return rows

    def _step_rows(
        self,
        step: int,
        names: list[str],
        now: Mapping[str, Tensor],
        lrs: Mapping[str, float],
        diagnostics: Mapping[str, Mapping[str, float]],
    ) -> list[dict[str, Any]]:
        rows = []
        weights = [_matrix(whole(now[name].detach())) for name in names]
        updates = [_matrix(whole(now[name] - self._before[name])) for name in names]
        gradients = [_matrix(whole(self._gradients[name])) for name in names]
        norms = iter(spectral_norms([*weights, *updates, *gradients]))
        weight_norms, update_norms, grad_norms = ([next(norms) for _ in names] for _ in range(3))
        for i, name in enumerate(names):
            rows.append(
                self._tensor_row(step, name, weights[i], weight_norms[i])
                | {
                    "lr": lrs[name],
                    "update_norm": update_norms[i],
                    "update_stable_rank": _stable_rank(updates[i], update_norms[i]),
                    "grad_norm": float(gradients[i].norm()),
                    "grad_stable_rank": _stable_rank(gradients[i], grad_norms[i]),
                }
                | self._alignment("update", name, updates[i], update_norms[i])
                | dict(diagnostics.get(name, {}))
            )
        return rows

    def _tensor_row(self, step: int, name: str, weight: Tensor, weight_norm: float) -> dict[str, Any]:
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
            "weight_norm": weight_norm,
        } | self._alignment("weight", name, weight, weight_norm)

    def _alignment(self, of: str, name: str, matrix: Tensor, norm: float) -> dict[str, float]:
        x = self._inputs.get(name)
        if x is None or not norm > 0:
            return {}
        return {f"{of}_alignment": float((x @ matrix.float().mT).norm() / (norm * x.norm()))}

    def _feature_rows(self, step: int, features: Mapping[str, tuple[str, Tensor]]) -> list[dict[str, Any]]:
        rows = []
        for name, (kind, h) in features.items():
            change = h - self.reference[name][1]
            row = {"step": step, "name": name, "what": "feature", "kind": kind}
            rows.append(row | {"rms": _rms(h), "delta_rms": _rms(change)})
        return rows

    @torch.no_grad()
    def _forward(self) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
        """{module: (kind, output)} on the probe batch: embeddings, linear maps, residual blocks, and what the model puts out;
        and {weight: input (tokens, fan_in)} of linear maps."""
        found: dict[str, tuple[str, Tensor]] = {}
        inputs: dict[str, Tensor] = {}
        hooks = []
        names = {id(p): n for n, p in named_parameters(self.model).items()}
        held = owners(self.model)

        def keep(name: str, kind: str, out: Any) -> None:
            if (h := _tensor(out)) is not None and h.ndim:
                found[name] = (kind, h.float())

        def watch(name: str, kind: str, module: nn.Module) -> None:
            hooks.append(module.register_forward_hook(lambda _m, _i, out: keep(name, kind, out)))

        def watch_input(weight: str, module: nn.Module) -> None:
            hooks.append(module.register_forward_pre_hook(lambda _m, x: inputs.update({weight: x[0].flatten(0, -2).float()})))

        for name, module in named_modules(self.model).items():
            if isinstance(module, nn.Linear):
                watch_input(names[id(module.weight)], module)
            if isinstance(module, nn.Embedding):
                watch(name, "embedding", module)
            elif isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module):
                kind = self.growths[names[id(module.weight)]].kind
                if kind not in ("readout", "embedding"):
                    watch(name, "hidden", module)
                elif kind == "embedding" and len(held[id(module.weight)]) == 1:  # an input layer, and no tied readout
                    watch(name, "embedding", module)
            elif isinstance(module, nn.ModuleList):
                for index, block in enumerate(module):
                    watch(f"{name}.{index}", "hidden", block)
        watch("logits", "readout", self.model)
        training = self.model.training
        self.model.eval()
        try:
            self.x_BT() if callable(self.x_BT) else self.model(self.x_BT)
        finally:
            self.model.train(training)
            for hook in hooks:
                hook.remove()
        return found, inputs


def _tensor(out: Any) -> Tensor | None:
    """What a module put out: a tensor, the logits of transformers' outputs, or the first of several tensors."""
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple | list) and out else out
    return out if isinstance(out, Tensor) else None


def _parts(named: Mapping[str, Tensor]) -> list[list[str]]:
    """The names all at once, so that equal shapes share their power iterations; one by one where tensors are sharded, as the
    whole model may not fit a device."""
    sharded = any(hasattr(t, "device_mesh") for t in named.values())
    return [[name] for name in named] if sharded else [list(named)]


def _matrix(t: Tensor) -> Tensor:
    return (t.flatten(1) if t.ndim > 1 else t[:, None]).float()


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def _stable_rank(t: Tensor, norm: float) -> float:
    return float(t.square().sum()) / norm**2 if norm > 0 else 0.0
