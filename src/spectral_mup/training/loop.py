"""The one training loop: batch → loss → gradient → step, with probes, checkpoints and a verdict on divergence.

    train(run, folder, …) → result

Every number depends on the run config alone, so on a CPU a run that was killed and resumed equals an unbroken one bit for
bit (with precision `auto`, in the precision it began with). Over several devices, or another number of them, it is equal but
for rounding, and for what dropout draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.optim.stacked import StackedOptimizer, UsesSampledLabels
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.scaling.build import init_model, make_optimizers, parametrize
from spectral_mup.training.checkpoint import load_checkpoint, save_checkpoint
from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup
from spectral_mup.training.precision import resolve_auto
from spectral_mup.training.probe import Probe
from spectral_mup.util.files import read_rows, write_atomic

TRAIN_LOSS_STEPS = 20  # steps whose mean is the result's train_loss


def schedule_factor(step: int, *, steps: int, warmup: int, schedule: str, final_lr: float) -> float:
    """lr of a step (from 0) as a fraction of the peak: linear warmup, then constant, or linear or cosine to `final_lr`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    shape = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_lr + (1.0 - final_lr) * shape


def divergence(losses: list[float], factor: float, patience: int, since: int = 0) -> int | None:
    """Step (from 1) at which a run diverged, or None: not finite, or above factor·losses[0] for `patience` steps on end.

    Steps up to `since` are known not to have been the one.
    """
    high, first = 0, max(0, since - patience)
    for step, loss in enumerate(losses[first:], first + 1):
        if not math.isfinite(loss):
            return step
        high = high + 1 if loss > factor * losses[0] else 0
        if high >= patience:
            return step
    return None


def sampled_loss(logits_BTV: Tensor, draws_BT: Tensor) -> Tensor:
    """Mean cross entropy on labels drawn from softmax(logits): each where the cumulative softmax passes its uniform draw."""
    logits = logits_BTV.flatten(0, 1).float()
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    labels = torch.searchsorted(cumulative, draws_BT.reshape(-1, 1), right=True).squeeze(-1)
    return nn.functional.cross_entropy(logits, labels.clamp_max(logits.size(-1) - 1))


def train(
    run: RunConfig,
    folder: RunFolder,
    corpus: data.Corpus,
    *,
    device: torch.device,
    log_every: int = 10,
    checkpoint_seconds: float = 30.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    processes: ProcessGroup = SINGLE_PROCESS,
    shard: bool = False,
) -> dict[str, Any] | None:
    """Train one run into its claimed run folder and return its result; None if stopped before the end.

    Resumes from the newest checkpoint that can be read. `should_stop` is asked before every step; `on_rows` sees the metrics
    rows as they are written. Raises ClaimedError if the folder was taken over, OSError if it cannot be written.

    All `processes` of a group call it with the same run, each with its device: a step's batch is cut over them by
    micro-batches, with `shard` the parameters too. One asked to stop stops all; files and `on_rows` are the leader's alone.
    Raises ValueError if the batch cannot be cut so.
    """
    t, context, seed = run.train, run.model.context, run.seed
    microbatches = processes.size * t.accumulate
    if t.batch_size % microbatches:
        raise ValueError(
            f"train.batch_size={t.batch_size}: not a multiple of train.accumulate={t.accumulate} "
            f"times {processes.size} processes; change one"
        )
    meta, p = parametrize(run, corpus.vocab_size)
    model = init_model(meta, run, p, torch.device("cpu"))
    wrapped = processes.wrap(model, device, shard)
    optimizers = make_optimizers(model, run, p)
    x_probe, _ = data.probe_batch(corpus.val, count=run.probe.sequences, context=context)
    probe = Probe(model, torch.from_numpy(x_probe).to(device), p.growths, p.forward, run.probe.steps)
    torch.manual_seed(seed)  # dropout, after init has used generators of its own

    losses: list[float] = []
    auto = resolve_auto(t, run.width, device.type)
    done, auto = load_checkpoint(folder, model, optimizers, auto, device, processes)
    processes.seed(seed, done)
    rows = [] if done else probe.first_rows()
    if processes.is_main:
        if done:
            folder.truncate_after("metrics.jsonl", done)
            folder.truncate_after("norms.jsonl", done)
            losses = [math.nan if row["loss"] is None else row["loss"] for row in read_rows(folder.path / "metrics.jsonl")]
        else:
            for name in ("metrics.jsonl", "norms.jsonl"):
                write_atomic(folder.path / name, b"")
            folder.append("norms.jsonl", rows)
    losses = processes.broadcast(losses)

    forward = torch.compile(wrapped) if auto["compile"] == "true" else wrapped
    unsynced = getattr(wrapped, "no_sync", nullcontext)  # DDP averages gradients once a step, not once a micro-batch
    bf16 = auto["precision"] == "bfloat16"
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    names = {id(p): name for name, p in model.named_parameters()}
    curved = [o for o in optimizers if isinstance(o, UsesSampledLabels)]
    pending: list[Tensor] = []
    evaluations: dict[int, float] = {}
    saved_at = time.monotonic()
    since = {"began": done, "started": time.time()}
    model.train()

    def backward(step: int, sampled: bool = False) -> Tensor:
        """Add the gradient of the mean loss over the step's batch, on its own labels or sampled ones.

        Returns the mean loss over this rank's share.
        """
        loss = torch.zeros((), device=device)
        mine = range(processes.rank * t.accumulate, (processes.rank + 1) * t.accumulate)
        for micro in mine:
            part_of = {"batch_size": t.batch_size, "context": context, "microbatch": micro, "microbatches": microbatches}
            x, y = (torch.from_numpy(a).to(device) for a in data.batch(corpus.train, seed=seed, step=step, **part_of))
            with autocast(), nullcontext() if micro == mine[-1] else unsynced():
                if sampled:
                    draws = torch.from_numpy(data.label_draws(seed=seed, step=step, **part_of)).to(device)
                    part = sampled_loss(forward(x), draws) / t.accumulate
                else:
                    part = forward(x, y) / t.accumulate
            part.backward()
            loss = loss + part.detach()
        return loss

    def validate() -> float:
        return evaluate(model, corpus, t.eval_sequences, t.batch_size // microbatches, context, device, bf16)

    def flush() -> int | None:
        """Write what is pending; the step at which the run diverged, if it has."""
        nonlocal losses, pending, evaluations
        known = len(losses)
        if pending:
            losses += processes.mean(torch.stack(pending)).tolist()
            if processes.is_main:
                rows = _metric_rows(losses, len(pending), evaluations)
                folder.append("metrics.jsonl", rows)
                on_rows(rows)
                folder.write_status({"step": len(losses), "steps": t.steps, "loss": losses[-1], "time": time.time()} | since)
            pending, evaluations = [], {}
        return divergence(losses, t.diverge_factor, t.diverge_patience, known)

    for step in range(done, t.steps):
        if processes.any(should_stop()):
            if flush() is None:
                save_checkpoint(folder, step, model, optimizers, auto, processes)
            return None
        factor = schedule_factor(step, steps=t.steps, warmup=t.warmup, schedule=t.schedule, final_lr=t.final_lr)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = group["base_lr"] * factor
        if due := [o for o in curved if step % o.hessian_interval == 0]:
            backward(step, sampled=True)
            for optimizer in due:
                optimizer.update_hessian(t.batch_size * context)
            model.zero_grad(set_to_none=True)
        loss = backward(step)
        if t.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        probed = step + 1 in probe.steps
        if probed:
            probe.before_step()
        for optimizer in optimizers:
            optimizer.step()
        if probed:
            lrs = {names[id(q)]: g["lr"] for o in optimizers for g in o.param_groups for q in g["params"]}
            ours = [o for o in optimizers if isinstance(o, StackedOptimizer)]
            told = {names[id(q)]: d for o in ours for q, d in o.diagnostics().items()}
            rows = probe.after_step(step + 1, lrs, told)
            if processes.is_main:
                folder.append("norms.jsonl", rows)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        pending.append(loss)
        if t.eval_every and (step + 1) % t.eval_every == 0 and step + 1 < t.steps:
            evaluations[step + 1] = validate()

        if (step + 1) % log_every == 0 or step + 1 == t.steps:
            diverged = flush()
            if diverged is not None:
                return _finish(folder, run, corpus, losses, diverged, math.nan, model, auto, processes)
            due_to_save = processes.is_main and time.monotonic() - saved_at > checkpoint_seconds
            if step + 1 < t.steps and processes.any(due_to_save):
                save_checkpoint(folder, step + 1, model, optimizers, auto, processes)
                saved_at = time.monotonic()

    val_loss = validate()
    diverged = None if math.isfinite(val_loss) else t.steps
    return _finish(folder, run, corpus, losses, diverged, val_loss, model, auto, processes)


@torch.no_grad()
def evaluate(
    model: nn.Module, corpus: data.Corpus, sequences: int, batch_size: int, context: int, device: torch.device, bf16: bool
) -> float:
    """Mean cross entropy in nats per token on the fixed, evenly spaced validation sequences."""
    x, y = (torch.from_numpy(a) for a in data.eval_batch(corpus.val, count=sequences, context=context))
    model.eval()
    total = 0.0
    for xs, ys in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total += float(model(xs.to(device), ys.to(device))) * len(xs)
    model.train()
    return total / sequences


def _metric_rows(losses: list[float], count: int, evaluations: Mapping[int, float]) -> list[dict[str, Any]]:
    first = len(losses) - count
    rows = []
    for step, loss in enumerate(losses[first:], first + 1):
        rows.append({"step": step, "loss": loss} | ({"val_loss": evaluations[step]} if step in evaluations else {}))
    return rows


def _finish(
    folder: RunFolder,
    run: RunConfig,
    corpus: data.Corpus,
    losses: list[float],
    diverged: int | None,
    val_loss: float,
    model: nn.Module,
    auto: Mapping[str, str],
    processes: ProcessGroup,
) -> dict[str, Any]:
    t, context = run.train, run.model.context
    losses = losses[:diverged]  # what came after depends on when the loop noticed
    tail = losses[-TRAIN_LOSS_STEPS:]
    result = {
        "status": "done" if diverged is None else "diverged",
        "diverged_step": diverged,
        "steps": len(losses),
        "val_loss": val_loss if diverged is None else None,
        "train_loss": sum(tail) / len(tail) if diverged is None else None,
        "tokens": len(losses) * t.batch_size * context,
        "epochs": data.epochs_seen(corpus.train, len(losses), t.batch_size, context),
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": auto["precision"],
        "compile": auto["compile"],
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val),
        },
    }
    if processes.is_main:
        if diverged is not None:
            for name in ("metrics.jsonl", "norms.jsonl"):
                folder.truncate_after(name, diverged)
        folder.finish(result)
        for old in sorted(folder.checkpoints.glob("*.pt")):
            old.unlink()
    return processes.broadcast(result)  # no rank goes on before it is written
