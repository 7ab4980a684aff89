"""Train one run of a sweep into its folder, with probes, checkpoints and a check for divergence.

Every number depends on the run config alone, so on a CPU a run that was killed and resumed equals an unbroken one bit for bit
(with precision `auto`, in the precision it began with). On several devices, or resumed on another number of them, it is equal
but for rounding, and for what dropout draws.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectral_mup import data
from spectral_mup.runs.metrics import join
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.scaling.forward_multipliers import set_multipliers_
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import hyperparameters, scale_run
from spectral_mup.training.checkpoint import DAMAGED, load_checkpoint, save_checkpoint
from spectral_mup.training.cuda_graph import GraphedStep, can_capture, set_capturable
from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup
from spectral_mup.training.divergence import divergence
from spectral_mup.training.own_batches import own_task
from spectral_mup.training.precision import resolve_auto
from spectral_mup.training.probe import Probe
from spectral_mup.training.quantities import resolve_quantities
from spectral_mup.training.schedule import schedule_factor
from spectral_mup.training.stopwatch import Stopwatch
from spectral_mup.training.task import Task, text_task
from spectral_mup.training.trainer import Trainer
from spectral_mup.training.weights import keep_weights
from spectral_mup.util.files import read_rows, write_atomic

TRAIN_LOSS_STEPS = 20  # steps whose mean is the result's train_loss
GPU_WRITE_SECONDS = 0.5  # at least, between two writes of losses, as each waits for the GPU
NORM_STEPS = 10  # between two measurements of the gradient's norm; not cluster.log_every, as metrics depend on the run alone
LOGS = ("metrics.jsonl", "norms.jsonl")


def train_run(
    run: RunConfig,
    folder: RunFolder,
    corpus: data.Corpus | data.OwnBatches,
    *,
    device: torch.device,
    log_every: int = 10,
    checkpoint_seconds: float = 30.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    processes: ProcessGroup = SINGLE_PROCESS,
    shard: bool = False,
) -> dict[str, Any] | None:
    """Train a run into its claimed folder and return its result; None if stopped before the end.

    Resumes from the newest checkpoint that is whole. `should_stop` is asked before every step; `on_rows` gets the rows of
    metrics.jsonl as they are written, each joined with those of norms.jsonl and timing.jsonl. Raises ClaimedError if the
    folder was taken over, OSError if it cannot be written.

    All `processes` of a group must call it with the same run, each on its own device: they share the micro-batches of a step
    and, with `shard`, the parameters. If one is asked to stop, all stop; only the main one writes files and calls `on_rows`.
    Raises ValueError if the batch cannot be divided so.
    """
    t = run.train
    task = make_task(run, corpus, device, processes)
    trainer, take_step, probe, auto = build_trainer(run, folder, task, corpus.vocab_size, device, processes, shard)
    watch = Stopwatch(run, trainer.model, task.about(1)["tokens"], auto["precision"], device, processes.size)
    log = RunLog(run, folder, trainer, watch, on_rows)
    log.resume(trainer.step_number, probe)
    saved_at = written_at = time.monotonic()
    pause = GPU_WRITE_SECONDS if device.type == "cuda" and processes.size == 1 else 0.0  # processes would disagree
    trainer.model.train()
    while (step := trainer.step_number + 1) <= t.steps:
        if processes.any(should_stop()):
            if log.write() is None:
                save_checkpoint(folder, trainer, auto)
            return None
        rows: list[dict[str, Any]] = []
        log.take(step, take_step(probe.measure(trainer, rows) if step in probe.steps else None))
        if rows:
            log.write_norms(rows)
        if t.eval_every and step % t.eval_every == 0 and step < t.steps:
            log.evaluations[step] = trainer.evaluate(task.validation())
        if step == t.steps or step % log_every == 0 and time.monotonic() - written_at >= pause:
            diverged, written_at = log.write(), time.monotonic()
            if diverged is not None:
                return log.finish(task, auto, diverged, math.nan)
            due = processes.is_main and time.monotonic() - saved_at > checkpoint_seconds
            if step < t.steps and processes.any(due):
                save_checkpoint(folder, trainer, auto)
                saved_at = time.monotonic()
    val_loss = trainer.evaluate(task.validation())
    return log.finish(task, auto, None if math.isfinite(val_loss) else t.steps, val_loss)


def probed_steps(run: RunConfig) -> set[int]:
    """Return `probe.steps` and, if there are any, a quarter of the run and its end: what early steps show may not last."""
    late = (max(1, run.train.steps // 4), run.train.steps) if run.probe.steps else ()
    return {*run.probe.steps, *late}


def norm_due(step: int) -> bool:
    """Return whether the gradient's norm is measured at a step: the first and every tenth."""
    return step == 1 or step % NORM_STEPS == 0


def checkpoint_blocks(model: Any, random: bool) -> None:
    """Make each block recompute its activations in the backward pass; `random`: it draws random numbers, as for dropout.

    Raises ValueError on a model that cannot.
    """
    if hasattr(model, "checkpoint_blocks"):
        model.checkpoint_blocks(random=random)
    elif hasattr(model, "gradient_checkpointing_enable"):  # transformers
        arguments = {"use_reentrant": False, "preserve_rng_state": random}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    else:
        raise ValueError("train.checkpoint_activations: the model has no method checkpoint_blocks(random); set it to false")


def make_task(run: RunConfig, corpus: data.Corpus | data.OwnBatches, device: torch.device, processes: ProcessGroup) -> Task:
    """Return the data and losses of a run, from a text or from the user's own batches."""
    own = isinstance(corpus, data.OwnBatches)
    return own_task(run, corpus, device, processes) if own else text_task(run, corpus, device, processes)


def build_trainer(
    run: RunConfig,
    folder: RunFolder,
    task: Task,
    vocab_size: int | None,
    device: torch.device,
    processes: ProcessGroup,
    shard: bool,
) -> tuple[Trainer, Callable[..., Tensor], Probe, dict[str, str]]:
    """Build, scale, initialise and resume the run's model; return (trainer, its step, probe, what `auto` means).

    Raises ValueError if the batch cannot be divided among the processes, or train.graph=true cannot be had.
    """
    t = run.train
    microbatches = processes.size * t.accumulate
    if t.batch_size % microbatches:
        raise ValueError(
            f"train.batch_size={t.batch_size}: not a multiple of train.accumulate={t.accumulate} "
            f"times {processes.size} processes; change one"
        )
    torch.manual_seed(run.seed)  # for what init_ does not draw
    model = run.model.build(vocab_size, run.width, run.depth)
    scaling = scale_run(run, model, vocab_size)
    set_multipliers_(model, scaling)
    init_(model, scaling, seed=run.seed)
    if t.checkpoint_activations:
        checkpoint_blocks(model, random=run.model.dropout > 0)
    wrapped = processes.wrap(model, device, shard)
    quantities = resolve_quantities(run.probe.quantities)
    probe = Probe(model, task.probe_batch(model), scaling, probed_steps(run), quantities)
    torch.manual_seed(run.seed)  # dropout; init has used generators of its own
    schedule = partial(schedule_factor, steps=t.steps, warmup=t.warmup, schedule=t.schedule, final_lr=t.final_lr)
    optimizers = make_optimizers(model, scaling, **hyperparameters(run))
    trainer = Trainer(
        model, optimizers, task.batches, task.loss, schedule=schedule, clip=t.clip,
        sampled_loss=task.sampled_loss, forward=wrapped, processes=processes,
        norm_due=norm_due,
    )  # fmt: skip
    redraws = t.checkpoint_activations and run.model.dropout > 0  # resetting a generator cannot be captured
    capturable = task.static_text is not None and processes.size == 1 and not redraws and can_capture(optimizers, device)
    if t.graph == "true" and not capturable:
        raise ValueError(
            "train.graph=true: needs a GPU, a family of the package, one process and optimizers that can be captured, and "
            "no dropout in blocks whose activations are checkpointed; use train.graph=auto"
        )
    meant = resolve_auto(t, run.width, run.cost / processes.size, device.type, capturable=capturable)
    auto = load_checkpoint(folder, trainer, meant)
    processes.seed(run.seed, trainer.step_number)
    trainer.bfloat16 = auto["precision"] == "bfloat16"
    if auto["compile"] == "true":
        trainer.forward = torch.compile(wrapped)
    graphed = auto["graph"] == "true" and capturable  # a checkpoint may come from another machine
    set_capturable(optimizers, graphed)
    take_step = GraphedStep(trainer, task.static_text()) if graphed and task.static_text else trainer.step
    return trainer, take_step, probe, auto


class RunLog:
    """The losses of a run, written or still on the device, and its result."""

    def __init__(
        self,
        run: RunConfig,
        folder: RunFolder,
        trainer: Trainer,
        watch: Stopwatch,
        on_rows: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self.run, self.folder, self.trainer, self.watch, self.on_rows = run, folder, trainer, watch, on_rows
        self.processes = trainer.processes
        self.losses: list[float] = []
        self.losses_pending: list[Tensor] = []
        self.gradients_pending: dict[int, Tensor] = {}  # norms, by step
        self.norms_pending: list[dict[str, Any]] = []  # rows that on_rows has not seen
        self.evaluations: dict[int, float] = {}
        self.since: dict[str, float] = {}

    def resume(self, step: int, probe: Probe) -> None:
        """Drop the rows beyond a checkpoint's step; at step 0, start the files anew with the probe's first rows."""
        self.since = {"began": step, "started": time.time()}
        self.watch.begin(step)
        first = probe.first_rows() if step == 0 else []
        if self.processes.is_main and step:
            for name in LOGS:
                self.folder.truncate_after(name, step)
            rows = read_rows(self.folder.path / LOGS[0])
            self.losses = [math.nan if row["loss"] is None else row["loss"] for row in rows]
        elif self.processes.is_main:
            for name in LOGS:
                write_atomic(self.folder.path / name, b"")
            self.write_norms(first)
        if self.processes.is_main:
            self.folder.truncate_timing(step)
        self.losses = self.processes.broadcast(self.losses)

    def take(self, step: int, loss: Tensor) -> None:
        """Keep the loss of a step just taken, and the gradient's norm if measured, without waiting for the device."""
        self.losses_pending.append(loss)
        if self.trainer.norm_due(step) and self.trainer.gradient_norm is not None:
            self.gradients_pending[step] = self.trainer.gradient_norm

    def write(self) -> int | None:
        """Write what is pending; return the step at which the run diverged, if it has."""
        known, t = len(self.losses), self.run.train
        if self.losses_pending:
            self.losses += self.processes.mean(torch.stack(self.losses_pending)).tolist()
            if self.processes.is_main:
                rows, timing = self._rows(known), self.watch.row(len(self.losses))
                self.folder.append(LOGS[0], rows)
                self.folder.append_timing(timing)
                self.on_rows(join(rows, [timing], self.norms_pending))
                last = {"step": len(self.losses), "steps": t.steps, "loss": self.losses[-1], "time": time.time()}
                self.folder.write_status(timing | last | self.since)
            self.losses_pending, self.gradients_pending, self.norms_pending, self.evaluations = [], {}, [], {}
        return divergence(self.losses, t.diverge_factor, t.diverge_patience, known)

    def write_norms(self, rows: list[dict[str, Any]]) -> None:
        self.norms_pending += rows
        if self.processes.is_main:
            self.folder.append(LOGS[1], rows)

    def _rows(self, known: int) -> list[dict[str, Any]]:
        """Return rows of metrics.jsonl: loss and lr of the base at every step, at some the gradient's norm or a val_loss."""
        gradients = torch.stack([*self.gradients_pending.values()]).tolist() if self.gradients_pending else []
        norms, rows = dict(zip(self.gradients_pending, gradients, strict=True)), []
        for step, loss in enumerate(self.losses[known:], known + 1):
            row = {"step": step, "loss": loss, "lr": 2.0**self.run.log2_lr * self.trainer.schedule(step - 1)}
            more = {"grad_norm": norms.get(step), "val_loss": self.evaluations.get(step)}
            rows.append(row | {name: value for name, value in more.items() if value is not None})
        return rows

    def finish(self, task: Task, auto: Mapping[str, str], diverged: int | None, val_loss: float) -> dict[str, Any]:
        """Write and return the result; drop what came after a divergence, and the checkpoints."""
        losses = self.losses[:diverged]  # what came after depends on when the loop noticed
        tail = losses[-TRAIN_LOSS_STEPS:]
        result = {
            "status": "done" if diverged is None else "diverged",
            "diverged_step": diverged,
            "steps": len(losses),
            "val_loss": val_loss if diverged is None else None,
            "train_loss": sum(tail) / len(tail) if diverged is None else None,
            "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
            "precision": auto["precision"],
            "compile": auto["compile"],
            "graph": auto["graph"],
        } | task.about(len(losses))
        if self.processes.is_main:
            if diverged is not None:
                for name in LOGS:
                    self.folder.truncate_after(name, diverged)
                self.folder.truncate_timing(diverged)
        if diverged is None and self.run.train.keep:
            keep_weights(self.folder, self.trainer)
        if self.processes.is_main:
            self.folder.finish(result)
            for old in [*self.folder.checkpoint_files(), *self.folder.checkpoints.glob(f"*.pt{DAMAGED}")]:
                old.unlink()
        return self.processes.broadcast(result)  # no rank continues before it is written
