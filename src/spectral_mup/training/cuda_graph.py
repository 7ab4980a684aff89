"""The training step as one CUDA graph: captured once, then replayed without a Python call or a launch for each kernel.

What changes from step to step (tokens, lr, bias corrections) is copied to fixed addresses before each replay. Steps that run
other operations, those that are probed or renew Shampoo's roots say, are taken as usual in between.
"""

import functools
import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from spectral_mup.optim.stacked import Group, StackedOptimizer
from spectral_mup.training.text import StaticText, to_device
from spectral_mup.training.trainer import Trainer

WARMUP = 3  # steps before the capture: libraries allocate their workspaces, torch.compile compiles
MAX_NUMBERS = 4096  # that change from step to step, over all groups and shapes


def can_capture(optimizers: Sequence[torch.optim.Optimizer], device: torch.device) -> bool:
    """Return whether there is a GPU, and all that changes from step to step is known of these optimizers.

    It is known of ours that say so, and of torch's capturable ones.
    """
    return has_graphs(device) and all(
        o.capturable if isinstance(o, StackedOptimizer) else "capturable" in o.defaults for o in optimizers
    )


def has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def set_capturable(optimizers: Sequence[torch.optim.Optimizer], on: bool) -> None:
    """Tell torch's optimizers whether their steps will be captured; a checkpoint may say otherwise."""
    for group in (g for o in optimizers for g in o.param_groups if "capturable" in g):
        group["capturable"] = on


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record the kernels that `step` launches without running them, and return what runs them."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # what a collection frees, an earlier graph say, must not be freed in the midst of a capture
    try:  # other threads may go on meanwhile
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side_stream(device), capture_error_mode="thread_local"):
            step()
    finally:
        gc.enable()
    torch.cuda.reset_peak_memory_stats(device)  # of the steps before, whose memory is free again
    return graph.replay


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for captures and the steps before them: cuBLAS keeps a workspace for each stream it has seen."""
    return torch.cuda.Stream(device)


class GraphedStep:
    """The steps of a trainer whose optimizers `can_capture`, in place of Trainer.step, with the micro-batches of `text`.

    Build it when a checkpoint has been loaded. Raises RuntimeError, which names train.graph, where the capture fails.
    """

    def __init__(self, trainer: Trainer, text: StaticText) -> None:
        self.trainer, self.text = trainer, text
        self.device = text.device
        self.captured: Callable[[], None] | None = None
        self.steps_before = 0
        # float32 is what kernels compute in; on a CPU numbers are the Python ones to the bit
        self.numbers = torch.zeros(
            MAX_NUMBERS, dtype=torch.float32 if self.device.type == "cuda" else torch.float64, device=self.device
        )
        self.sources: list[Callable[[], Iterable[float]]] = []  # of the numbers, in their order
        self.used = 0
        self.loss, self.norm = torch.zeros(2, device=self.device).unbind()
        for optimizer in self._others():
            for state in optimizer.state.values():
                state["step"] = state["step"].to(self.device)

    def __call__(self, around: AbstractContextManager[Any] | None = None) -> Tensor:
        """Take one step and return its loss, as Trainer.step."""
        trainer = self.trainer
        if around is not None or not all(o.steady_next() for o in self._stacked()):
            return trainer.step(around)
        if self.captured is None and self.steps_before < WARMUP:
            self.steps_before += 1
            return self._beside()
        trainer.begin_step()
        if self.captured is None:
            self.captured = self._capture()
        self.text.fill(trainer.step_number)
        values = [x for source in self.sources for x in source()]
        self.numbers[: self.used].copy_(to_device(torch.tensor(values, dtype=self.numbers.dtype), self.device))
        self.captured()
        for optimizer in self._stacked():
            optimizer.count_step()
        trainer.step_number += 1
        if trainer.norm_due(trainer.step_number):
            trainer.gradient_norm = self.norm.clone()
        return self.loss.clone()

    def _stacked(self) -> list[StackedOptimizer]:
        return [o for o in self.trainer.optimizers if isinstance(o, StackedOptimizer)]

    def _others(self) -> list[torch.optim.Optimizer]:
        return [o for o in self.trainer.optimizers if not isinstance(o, StackedOptimizer)]

    def _beside(self) -> Tensor:
        """Take a usual step on a stream of its own, as torch wants those before a capture."""
        if self.device.type != "cuda":
            return self.trainer.step()
        main, side = torch.cuda.current_stream(self.device), side_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            loss = self.trainer.step()
        main.wait_stream(side)
        return loss

    def _capture(self) -> Callable[[], None]:
        groups = [group for optimizer in self._others() for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = self._number(lambda group=group: [group["lr"]])[0]
        for optimizer in self._stacked():
            optimizer.feed = self._feed(optimizer)
        batches = self.text.batches()

        def step() -> None:
            self.loss.copy_(self.trainer.descend(batches, measure_norm=True))
            self.norm.copy_(self.trainer.gradient_norm)  # type: ignore[arg-type]

        try:
            return capture(step, self.device)
        except RuntimeError as error:
            why = error.__context__ or error  # ending the capture fails too, and says less
            raise RuntimeError(f"the step cannot be captured as a CUDA graph, set train.graph=false: {why}") from error
        finally:
            for optimizer in self._stacked():
                optimizer.feed = None
            self.trainer.set_lr()

    def _feed(self, optimizer: StackedOptimizer) -> Callable[[Group, int], Group]:
        """Return what gives a stack its numbers as tensors while the step is captured."""
        now = self.trainer.step_number

        def feed(group: Group, step: int) -> Group:
            def numbers() -> dict[str, float]:
                return optimizer.step_numbers(group, step + self.trainer.step_number - now)

            return group | dict(zip(numbers(), self._number(lambda: numbers().values()), strict=True))

        return feed

    def _number(self, source: Callable[[], Iterable[float]]) -> list[Tensor]:
        """Return 0-dim views of places that will hold what `source` returns before each step."""
        first, count = self.used, len(list(source()))
        self.sources.append(source)
        self.used += count
        return list(self.numbers[first : self.used].unbind())
