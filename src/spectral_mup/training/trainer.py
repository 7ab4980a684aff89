"""The one training step of sweeps, derive, check_features and a user's own models: gradients, clip, lr, optimizers.

trainer = Trainer(model, optimizers, batches, loss)
while trainer.step_number < steps:
    loss = trainer.step()
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup.optim.stacked import StackedOptimizer, UsesSampledLabels
from spectral_mup.optim.stacks import full_tensor, shard_like
from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup

Batch = Any
Loss = Callable[[Any, Batch], Tensor]
SampledLoss = Callable[[Any, Batch], tuple[Tensor, int]]


def sampled_label_loss(logits: Tensor, draws: Tensor) -> Tensor:
    """Return the mean cross entropy on labels drawn from softmax(logits): each where its cumulative sum passes a draw.

    logits (..., vocabulary); draws (...), uniform in [0, 1).
    """
    logits = logits.flatten(0, -2).float()
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    labels = torch.searchsorted(cumulative, draws.reshape(-1, 1), right=True).squeeze(-1)
    return nn.functional.cross_entropy(logits, labels.clamp_max(logits.size(-1) - 1))


def own_loss(model: Any, batch: Batch) -> Tensor:
    """Return the loss that a model computes from a batch: its output, or the `loss` of that (transformers).

    A dict is passed as keywords, any other batch as positional arguments. Raises ValueError if neither is a scalar.
    """
    out = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    loss = getattr(out, "loss", out)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            "loss: the model's output is neither a scalar nor has a .loss; pass a function, as in loss=lambda model, batch: ..."
        )
    return loss


class Trainer:
    """All that changes from step to step: the model, its optimizers, the step number and torch's generators.

    Args:
        model: The module whose parameters are trained.
        optimizers: Torch optimizers; a group's peak lr is its `base_lr`, else the lr it was built with.
        batches: Step (from 0) to the micro-batches of it that this process trains on.
        loss: (model, micro-batch) to its mean loss, a scalar.
        schedule: Step (from 0) to the lr as a fraction of the peak.
        clip: Largest norm of the gradient; None: unlimited.
        sampled_loss: (model, micro-batch) to the mean loss on labels drawn from the model's own softmax, and their number; for
            optimizers that use them (Sophia), see `UsesSampledLabels`.
        forward: What `loss` calls as the model: its compiled, DDP-wrapped or FSDP2-sharded self; None: the model.
        bfloat16: Whether losses are computed in bfloat16, under torch.autocast.
        processes: Those that train together, each on its own micro-batches.
        norm_due: Step (from 1) to whether `gradient_norm` is measured at it.

    Raises:
        ValueError: An optimizer uses sampled labels and `sampled_loss` is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Callable[[int], Sequence[Batch]],
        loss: Loss,
        *,
        schedule: Callable[[int], float] = lambda step: 1.0,
        clip: float | None = None,
        sampled_loss: SampledLoss | None = None,
        forward: Any = None,
        bfloat16: bool = False,
        processes: ProcessGroup = SINGLE_PROCESS,
        norm_due: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.model, self.optimizers, self.batches, self.loss = model, list(optimizers), batches, loss
        self.schedule, self.clip, self.sampled_loss, self.processes = schedule, clip, sampled_loss, processes
        self.forward = model if forward is None else forward
        self.device = next(model.parameters()).device
        self.bfloat16, self.norm_due = bfloat16, norm_due
        self.gradient_norm: Tensor | None = None  # of the whole gradient, before any clipping, when it was last due
        self.step_number = 0
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self._curved = [o for o in self.optimizers if isinstance(o, UsesSampledLabels)]
        if self._curved and sampled_loss is None:
            raise ValueError(
                f"optimizer {type(self._curved[0]).__name__}: it uses sampled labels; give sampled_loss=, a function of "
                "(model, batch) that returns the mean loss on labels drawn from the model's softmax, and their number"
            )
        for group in self._groups():
            group.setdefault("base_lr", group["lr"])

    def step(self, around: AbstractContextManager[Any] | None = None) -> Tensor:
        """Take one step and return the mean loss of this process's micro-batches.

        Args:
            around: A context entered when the gradients are computed and clipped, and left when the optimizers have stepped.
        """
        self.begin_step()
        loss = self.descend(self.batches(self.step_number), around, self.norm_due(self.step_number + 1))
        self.step_number += 1
        return loss

    def begin_step(self) -> None:
        """Set the lr, and update the curvature of the optimizers for which that is due."""
        self.set_lr()
        if due := [o for o in self._curved if self.step_number % o.hessian_interval == 0]:
            labels = self._backward_sampled()
            for optimizer in due:
                optimizer.update_hessian(labels)
            self.model.zero_grad(set_to_none=True)

    def set_lr(self) -> None:
        """Set the lr of the next step."""
        for group in self._groups():
            group["lr"] = group["base_lr"] * self.schedule(self.step_number)

    def descend(
        self, batches: Sequence[Batch], around: AbstractContextManager[Any] | None = None, measure_norm: bool = False
    ) -> Tensor:
        """Compute the gradients of the mean loss over these micro-batches, and their norm; clip, step and return that loss."""
        loss = self._backward(lambda batch: self.loss(self.forward, batch), batches)
        if self.clip is not None or measure_norm:
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            if self.clip is not None:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
            if measure_norm:
                self.gradient_norm = full_tensor(norm)
        with around or nullcontext():
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return loss

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Batch, int]]) -> float:
        """Return the mean loss over (batch, number of sequences) pairs, weighted by these numbers, without dropout."""
        total, count, was_training = 0.0, 0, self.model.training
        self.model.eval()
        for batch, size in batches:
            with self._autocast():
                total += float(self.loss(self.model, batch)) * size
            count += size
        self.model.train(was_training)
        return total / count

    def lrs(self) -> dict[str, float]:
        """Return {parameter: lr of the latest step}."""
        return {self.names[p]: group["lr"] for group in self._groups() for p in group["params"]}

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """Return {parameter: {quantity: value}} that optimizers report of a step, before its gradients are cleared."""
        stacked = [o for o in self.optimizers if isinstance(o, StackedOptimizer)]
        return {self.names[p]: values for o in stacked for p, values in o.diagnostics().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs, with each sharded tensor whole in main memory.

        A collective: all processes must call it, but only the main one receives the sharded tensors.
        """
        keep = self.processes.is_main
        return {
            "step": self.step_number,
            "model": _gathered(self.model.state_dict(), keep),
            "optimizers": [_gathered(o.state_dict(), keep) for o in self.optimizers],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state_dict in main memory; a collective, as `state_dict`. Names that share a tensor still do."""
        state = _gathered(self.model.state_dict(), self.processes.is_main)
        on_host = {id(w): w.cpu() for w in state.values() if w is not None}
        return {name: on_host[id(w)] for name, w in state.items() if w is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state_dict of any number of processes; torch's generators are restored in a single process only."""
        like = self.model.state_dict()
        whole_model = {name: w.to(like[name].device) for name, w in state["model"].items()}
        self.model.load_state_dict({name: shard_like(w, like[name]) for name, w in whole_model.items()})
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            if not isinstance(optimizer, StackedOptimizer):  # those keep the whole state on every rank
                _shard_state(saved, optimizer)
            optimizer.load_state_dict(saved)
        self.step_number = state["step"]
        if self.processes.size == 1:
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def _backward(self, loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Tensor:
        """Add the gradient of the mean loss over the micro-batches; return that mean."""
        total = torch.zeros((), device=self.device)
        unsynced = getattr(self.forward, "no_sync", nullcontext)  # DDP averages gradients once a step, at the last micro-batch
        for i, batch in enumerate(batches):
            with self._autocast(), nullcontext() if i == len(batches) - 1 else unsynced():
                part = loss_of(batch) / len(batches)
            part.backward()
            total = total + part.detach()
        return total

    def _backward_sampled(self) -> int:
        """Do the same on sampled labels; return their number over all micro-batches and processes."""
        assert self.sampled_loss is not None
        labels = []

        def loss_of(batch: Batch) -> Tensor:
            loss, count = self.sampled_loss(self.forward, batch)  # type: ignore[misc]
            labels.append(count)
            return loss

        self._backward(loss_of, self.batches(self.step_number))
        return sum(labels) * self.processes.size


def _gathered(value: Any, keep: bool) -> Any:
    """Return a state_dict with every DTensor gathered into main memory, or None in its place unless `keep`."""
    if isinstance(value, dict):
        return {key: _gathered(v, keep) for key, v in value.items()}
    if isinstance(value, list):
        return [_gathered(v, keep) for v in value]
    if hasattr(value, "device_mesh"):
        full = full_tensor(value)
        return full.cpu() if keep else None
    return value


def _shard_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Shard those tensors of an optimizer's saved state that have the shape of their parameter, like the parameter."""
    for own, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for p, index in zip(own["params"], theirs["params"], strict=True):
            state = saved["state"].get(index, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[name] = shard_like(value.to(p.device), p)
