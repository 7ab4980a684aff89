"""What is measured while a run trains: features on a fixed batch, and the tensors of a step. Changes nothing of the run."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from spectral_mup.optim.linalg import spectral_norms
from spectral_mup.optim.stacks import full_tensor
from spectral_mup.scaling.inspect import is_conv1d, named_modules, named_parameters, own_parameters, owners
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.theory.growth import Growth
from spectral_mup.training.quantities import QUANTITIES, Quantity, TensorStep
from spectral_mup.training.trainer import Trainer


class Probe:
    """Measurement at chosen steps. Build it right after init: the features of step 0 are its reference.

    Feature rows: RMS of each module's output and of its change since step 0. Tensor rows: the quantities of each tensor, and
    what the optimizer reports of its own (StackedOptimizer.diagnostics).
    The fixed batch is a tensor, or a function that runs the model on one.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Tensor | Callable[[], Any],
        scaling: ModelScaling,
        steps: Collection[int] = (),
        quantities: Mapping[str, Quantity] = QUANTITIES,
    ) -> None:
        self.model, self.scaling, self.quantities, self.steps = model, scaling, quantities, frozenset(steps)
        self.run_batch = batch if callable(batch) else lambda: model(batch)
        self.reference, self._inputs = self._forward()

    def feature_rows(self, step: int) -> list[dict[str, Any]]:
        """Return the feature rows of a step just taken, alone."""
        return self._feature_rows(step, self._forward()[0])

    def first_rows(self) -> list[dict[str, Any]]:
        """Return the rows of step 0: features and weights at init, no update yet."""
        rows = self._feature_rows(0, self.reference)
        named = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        for names in _parts(named):
            weights = [_matrix(full_tensor(named[name])) for name in names]
            for name, weight, norm in zip(names, weights, spectral_norms(weights), strict=True):
                rows.append(self._tensor_row(0, name, TensorStep(weight, norm, self._inputs.get(name))))
        return rows

    @contextmanager
    @torch.no_grad()
    def measure(self, trainer: Trainer, rows: list[dict[str, Any]]) -> Iterator[None]:
        """Surround the optimizers' part of a step (Trainer.step(around=…)) and append the rows of that step."""
        having = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        before = {name: p.detach().clone() for name, p in having.items()}
        gradients = {name: p.grad.detach().clone() for name, p in having.items()}  # type: ignore[union-attr]
        yield
        step, lrs, diagnostics = trainer.step_number + 1, trainer.lrs(), trainer.diagnostics()
        features, inputs = self._forward()
        rows += self._feature_rows(step, features)
        now = dict(self.model.named_parameters())
        for names in _parts(before):
            weights = [_matrix(full_tensor(now[name].detach())) for name in names]
            updates = [_matrix(full_tensor(now[name] - before[name])) for name in names]
            grads = [_matrix(full_tensor(gradients[name])) for name in names]
            norms = spectral_norms([*weights, *updates, *grads])
            n = len(names)
            for i, name in enumerate(names):
                tensor = TensorStep(
                    weights[i], norms[i], inputs.get(name), updates[i], norms[n + i], grads[i], norms[2 * n + i], lrs[name]
                )
                rows.append(self._tensor_row(step, name, tensor) | diagnostics.get(name, {}))

    def _tensor_row(self, step: int, name: str, tensor: TensorStep) -> dict[str, Any]:
        growth, forward = self.scaling.growths[name], self.scaling.multipliers
        row: dict[str, Any] = {"step": step, "name": name, "what": "tensor", "kind": growth.kind}
        row |= {"fan_out": growth.shape[0], "fan_in": growth.shape[1]}
        row["multiplier"] = forward.of(growth) * (forward.branch if growth.in_block else 1.0)
        values = {column: quantity(tensor) for column, quantity in self.quantities.items()}
        return row | {column: value for column, value in values.items() if value is not None}

    def _feature_rows(self, step: int, features: Mapping[str, tuple[str, Tensor]]) -> list[dict[str, Any]]:
        rows = []
        for name, (kind, h) in features.items():
            row = {"step": step, "name": name, "what": "feature", "kind": kind, "rms": _rms(h)}
            rows.append(row | {"delta_rms": _rms(h - self.reference[name][1])})
        return rows

    @torch.no_grad()
    def _forward(self) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
        """Return {module: (kind, output)} on the fixed batch, and {weight: input (tokens, fan_in)} of linear maps."""
        training = self.model.training
        self.model.eval()
        try:
            with FeatureHooks(self.model, self.scaling.growths) as hooks:
                self.run_batch()
        finally:
            self.model.train(training)
        return hooks.outputs, hooks.inputs


class FeatureHooks(AbstractContextManager["FeatureHooks"]):
    """Hooks that keep what embeddings, linear maps, residual blocks and the model put out, and what linear maps read."""

    def __init__(self, model: nn.Module, growths: Mapping[str, Growth]) -> None:
        self.outputs: dict[str, tuple[str, Tensor]] = {}
        self.inputs: dict[str, Tensor] = {}
        self._handles = []
        names, held = {id(p): n for n, p in named_parameters(model).items()}, owners(model)
        for name, module in named_modules(model).items():
            if isinstance(module, nn.Linear):
                self._keep_input(names[id(_weight(module))], module)
            if isinstance(module, nn.Embedding):
                self._keep_output(name, "embedding", module)
            elif isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module):
                weight = _weight(module)
                kind = growths[names[id(weight)]].kind
                if kind not in ("readout", "embedding"):
                    self._keep_output(name, "hidden", module)
                elif kind == "embedding" and len(held[id(weight)]) == 1:  # an input layer, and no tied readout
                    self._keep_output(name, "embedding", module)
            elif isinstance(module, nn.ModuleList) and not isinstance(module, ParametrizationList):
                for index, block in enumerate(module):
                    self._keep_output(f"{name}.{index}", "hidden", block)
        self._keep_output("logits", "readout", model)

    def _keep_output(self, name: str, kind: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            if (h := _tensor(out)) is not None and h.ndim:
                self.outputs[name] = (kind, h.float())

        self._handles.append(module.register_forward_hook(hook))

    def _keep_input(self, weight: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.inputs[weight] = inputs[0].flatten(0, -2).float()

        self._handles.append(module.register_forward_pre_hook(hook))

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _weight(module: nn.Module) -> Tensor:
    """Return the parameter that is a module's weight, the largest where it is made of several, as under weight norm."""
    return max((p for name, p in own_parameters(module) if name.startswith("weight")), key=torch.numel)


def _tensor(out: Any) -> Tensor | None:
    """Return what a module put out: a tensor, the logits of transformers' outputs, or the first of several tensors."""
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple | list) and out else out
    return out if isinstance(out, Tensor) else None


def _parts(named: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names all at once, so that equal shapes share their power iterations; one by one where tensors are sharded.

    A sharded model may not fit a device as a whole.
    """
    sharded = any(hasattr(t, "device_mesh") for t in named.values())
    return [[name] for name in named] if sharded else [list(named)]


def _matrix(t: Tensor) -> Tensor:
    return (t.flatten(1) if t.ndim > 1 else t[:, None]).float()


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())
