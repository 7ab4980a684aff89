"""The one step that all optimizers of this package share.

Parameters of equal shape, dtype and device are stacked to (n, *shape), 16-bit ones in float32; `direction` maps the stacked
gradient to the stacked direction U; one place applies W ← (1 − lr·λ)·W − lr·U. A new optimizer is a subclass with `init_state`
and `direction`. With `numbers` and `steady` it says what changes from step to step, so that a step can be captured once as a
CUDA graph and replayed. Where an optimizer acts on matrices, `direction` sees (N, out, in) whatever shape a parameter has in
torch: parts of a fused projection, heads, experts and convolutions too (matrices.py).

Parameters that are sharded over processes (DTensors, as FSDP2 makes them) are gathered: every process computes the whole
direction and keeps the whole state.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from spectral_mup.optim.matrices import MatrixView, matrix_view
from spectral_mup.optim.schedules import ScheduleWatch
from spectral_mup.optim.stacks import (
    Group,
    Stack,
    State,
    by_parameter,
    named,
    same_kind,
    shard_like,
    share_state,
    stack_dtype,
    stack_of,
)

Number = float | Tensor  # a 0-dim tensor where a step is captured as a CUDA graph


@runtime_checkable
class UsesSampledLabels(Protocol):
    """An optimizer that estimates curvature from gradients on labels drawn from the model's own softmax (arXiv 2305.14342).

    Before every `hessian_interval`-th step, the first included, a trainer leaves in p.grad the gradient of the mean loss
    over `tokens` tokens so labelled, calls `update_hessian(tokens)` and clears the gradients; then it takes the step.
    If that mean is over micro-batches and ranks, `tokens` counts those of all.
    """

    @property
    def hessian_interval(self) -> int: ...

    def update_hessian(self, tokens: int) -> None: ...


class StackedOptimizer(torch.optim.Optimizer):
    """Base of optimizers whose direction is a function of a stack of equal-shaped parameters.

    State is kept stacked and shown per parameter as views of the stack, so state_dict, deepcopy and checkpoints see an
    ordinary torch optimizer. Steps are counted per parameter, so one whose gradients begin late starts as if alone.
    Raises ValueError on complex parameters, on sparse gradients, on options out of range and, if `matrices_only`, on
    parameters that are not matrices, whether they come by the constructor or by add_param_group.
    """

    matrices_only = True
    capturable = False  # whether `numbers` and `steady` cover all that changes from step to step
    feed: Callable[[Group, int], Group] | None = None  # while a step is captured: gives a group its numbers, as tensors

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._stacks: dict[tuple[int, ...], State] = {}
        self._watch = ScheduleWatch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; raises ValueError, and adds nothing, on parameters or options that cannot be taken."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def check(self, group: Group) -> None:
        """Raise ValueError on parameters and options that this optimizer cannot take; a subclass adds its own."""
        for name, p in named(group):
            if p.is_complex():
                fix = "train its real and imaginary part, torch.view_as_real(p), or give it to torch.optim.AdamW"
                raise ValueError(f"{type(self).__name__}: {name} is complex; {fix}")
            try:
                self._view(p, group)
            except ValueError as error:
                shape = tuple(p.shape)
                raise ValueError(
                    f"{type(self).__name__} acts on matrices, got a parameter of shape {shape} ({name}); {error}"
                ) from None
        if not self.matrices_only and group.get("split") is not None:
            raise ValueError(f"{type(self).__name__}: split is for optimizers that act on matrices; leave it out")
        for option in ("lr", "weight_decay", "eps"):
            self.check_option(group, option, "a number, at least 0", lambda x: x >= 0)
        self.check_option(
            group, "betas", "two numbers, at least 0 and below 1", lambda x: all(0 <= b < 1 for b in x) and len(x) == 2
        )
        self.check_option(group, "momentum", "a number, at least 0 and below 1", lambda x: 0 <= x < 1)

    def _view(self, p: Tensor, group: Group) -> MatrixView | None:
        """Return how a parameter is read as matrices; None: it is taken whole. Raises ValueError where it cannot be read."""
        view = matrix_view(p.shape, group) if self.matrices_only else None
        return None if view is None or view.plain else view

    def check_option(self, group: Group, option: str, wanted: str, holds: Callable[[Any], bool]) -> None:
        """Raise ValueError if the group has the option and `holds` is false of it; `wanted` says in words what it must be."""
        try:
            ok = option not in group or bool(holds(group[option]))
        except TypeError:  # a string or None where a number is due
            ok = False
        if not ok:
            raise ValueError(f"{type(self).__name__}: {option} is {wanted}, not {group[option]!r}")

    def init_state(self, weight: Tensor, group: Group) -> State:
        """Return fresh state for stacked weights (n, *shape), in the stack's dtype; every tensor keeps the leading axis n."""
        raise NotImplementedError(f"{type(self).__name__}.init_state")

    def direction(self, gradient: Tensor, weight: Tensor, state: State, group: Group, step: int) -> Tensor | None:
        """Return U for stacked gradients and weights (n, *shape), before lr; update `state` in place. Steps count from 1.

        `group` also has what `numbers` returned. On None neither step nor decay is taken, as in a first call that only fills
        the state.
        """
        raise NotImplementedError(f"{type(self).__name__}.direction")

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Return the numbers in `direction` that change from step to step, as a bias correction does; they join `group`."""
        return {}

    def steady(self, group: Group, step: int) -> bool:
        """Return whether a step runs the same operations as most; others, as those that renew a root, are never captured."""
        return True

    def step_numbers(self, group: Group, step: int) -> dict[str, float]:
        """Return `numbers` and those of the shared step: lr, and shrink = 1 − lr·λ."""
        return {"lr": group["lr"], "shrink": 1.0 - group["lr"] * self.decay(group)} | self.numbers(group, step)

    def decay(self, group: Group) -> float:
        """Return λ of the shared step; 0 if an optimizer decays inside its direction."""
        return group["weight_decay"]

    def diagnose(self, stack: Stack) -> dict[str, Tensor]:
        """Return {quantity: (n,)} of the step just taken, from a stack's state; empty unless a subclass has some."""
        return {}

    @torch.no_grad()
    def diagnostics(self) -> dict[Tensor, dict[str, float]]:
        """Return {parameter: {quantity: value}} after a step, before its gradients are cleared; see `diagnose`.

        Of a parameter that is several matrices, the mean over them.
        """
        told: dict[Tensor, dict[str, float]] = {}
        for stack in self.stacks():
            of_parts = [self.diagnose(part) for _, part in stack.parts()]
            quantities = {name: by_parameter([q[name] for q in of_parts], len(stack.params)) for name in of_parts[0]}
            told |= {p: {name: values[i] for name, values in quantities.items()} for i, p in enumerate(stack.params)}
        return told

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stacks = {}  # loaded tensors are not views of the old stacks
        self.__dict__.setdefault("_watch", ScheduleWatch())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state as torch does, but without rounding that of 16-bit parameters to their dtype."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p, i in zip(parameters, ids, strict=True):
            if stack_dtype(p) != p.dtype:
                saved = state_dict["state"].get(i, {}).items()
                self.state[p].update({name: x.to(p.device) for name, x in saved if isinstance(x, Tensor)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.before_step()
        for stack in self.stacks():
            group, params, weight, step = stack.group, stack.params, stack.weight, stack.step + 1
            if self.feed is not None:
                fed = self.feed(group, step)
                u = self._direction(stack, fed)
                assert u is not None, "a step that is not steady was captured"
                shrunk = weight * fed["shrink"] if self.decay(group) else weight
                new = torch.addcmul(shrunk, u.to(weight.dtype), fed["lr"], value=-1.0)
                torch._foreach_copy_(params, list(new.unbind(0)))  # pyright: ignore[reportPrivateImportUsage]
                continue
            numbers = self.step_numbers(group, step)
            u = self._direction(stack, group | numbers)
            for p in params:
                self.state[p]["step"] = step
            if u is not None:
                self._apply(params, weight, u, numbers["shrink"] if self.decay(group) else 1.0, numbers["lr"])
        return loss

    def before_step(self) -> None:
        """Warn, once, of mistakes in the loop around the optimizer; a subclass adds its own."""
        self._watch(self)

    def _direction(self, stack: Stack, group: Group) -> Tensor | None:
        """Return U of a stack (n, *shape), matrices of one size at a time; `group` has the numbers of the step."""
        us = {
            suffix: self.direction(part.gradient, part.weight, part.state, group, stack.step + 1)
            for suffix, part in stack.parts()
        }
        if any(u is None for u in us.values()):
            return None
        return us[""] if stack.view is None else stack.view.put(us, len(stack.params))  # type: ignore[arg-type]

    def _apply(self, params: list[Tensor], weight: Tensor, u: Tensor, shrink: float, lr: float) -> None:
        """Apply W ← shrink·W − lr·U, rounded once where W has 16 bits."""
        us = [shard_like(x, p) for x, p in zip(u.to(weight.dtype).unbind(0), params, strict=True)]
        if params[0].dtype == weight.dtype:
            if shrink != 1.0:
                torch._foreach_mul_(params, shrink)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(params, us, alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]
        else:
            for p, x in zip(params, us, strict=True):
                p.copy_(p.to(weight.dtype) * shrink - lr * x)

    def steady_next(self) -> bool:
        """Return whether the next step is steady for all parameters."""
        ages = {(i, self.state[p].get("step", 0)) for i, group in enumerate(self.param_groups) for p in group["params"]}
        return all(self.steady(self.param_groups[i], age + 1) for i, age in ages)

    def count_step(self) -> None:
        """Count a step that a captured graph took."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] += 1

    def stacks(self) -> Iterator[Stack]:
        """Yield the parameters that have gradients, stacked by group, shape, dtype, device and number of steps taken so far."""
        self._check_gradients()
        for group in self.param_groups:
            for step, params in same_kind(group, self.state):
                stack = stack_of(group, params, step, self._view(params[0], group))
                yield stack._replace(state=self._stacked_state(stack))

    def _check_gradients(self) -> None:
        """Raise ValueError on a sparse gradient, before anything has moved."""
        for group in self.param_groups:
            for name, p in named(group):
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise ValueError(
                        f"{type(self).__name__} does not accept sparse gradients, as {name} has; build it with sparse=False"
                    )

    def _stacked_state(self, stack: Stack) -> State:
        ids = tuple(map(id, stack.params))
        if ids not in self._stacks:
            parts = {"": stack.weight} if stack.view is None else stack.view.take(stack.weight)
            fresh = {
                name + suffix: tensor
                for suffix, weight in parts.items()
                for name, tensor in self.init_state(weight, stack.group).items()
            }
            share_state(fresh, stack, self.state)
            # The parameters no longer see a stack that held one of them before.
            self._stacks = {old: state for old, state in self._stacks.items() if not set(old) & set(ids)}
            self._stacks[ids] = fresh
        return self._stacks[ids]


def bias_corrections(group: Group, step: int) -> dict[str, float]:
    """Return 1 − β^step of the first and the second moment."""
    beta1, beta2 = group["betas"]
    return {"correction1": 1.0 - beta1**step, "correction2": 1.0 - beta2**step}
