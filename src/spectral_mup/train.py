"""The one training loop: batch → loss → gradient → step, with probes, checkpoints and a verdict on divergence.

    train(science, folder, …) → result

Every number depends on the science config alone, so on a CPU a run that was killed and resumed equals an unbroken one bit for
bit (with precision `auto`, in the precision it began with).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.auto import resolve
from spectral_mup.build import init_model, make_optimizers, parametrize
from spectral_mup.optim.base import StackedOptimizer, UsesSampledLabels
from spectral_mup.probe import Probe
from spectral_mup.record import RunFolder, read_rows, write_atomic

KEPT_CHECKPOINTS = 2
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
    science: Mapping[str, Any],
    folder: RunFolder,
    corpus: data.Corpus,
    *,
    device: torch.device,
    log_every: int = 10,
    checkpoint_seconds: float = 30.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, Any] | None:
    """Train one Point into its claimed run folder and return its result; None if stopped before the end.

    Resumes from the newest checkpoint that can be read. `should_stop` is asked before every step; `on_rows` sees the metrics
    rows as they are written. Raises HeldError if the folder was taken over, OSError if it cannot be written.
    """
    t, context, seed = science["train"], science["model"]["context"], science["seed"]
    meta, p = parametrize(science, corpus.vocab_size)
    model = init_model(meta, science, p, device)
    optimizers = make_optimizers(model, science, p)
    x_probe, _ = data.probe_batch(corpus.val, count=science["probe"]["sequences"], context=context)
    probe = Probe(model, torch.from_numpy(x_probe).to(device), p.growths, p.forward, science["probe"]["steps"])
    torch.manual_seed(seed)  # dropout, after init has used generators of its own

    losses: list[float] = []
    auto = resolve(science, device.type)
    done, auto = _resume(folder, model, optimizers, auto, device)
    if done:
        folder.cut("metrics.jsonl", done)
        folder.cut("norms.jsonl", done)
        losses = [math.nan if row["loss"] is None else row["loss"] for row in read_rows(folder.path / "metrics.jsonl")]
    else:
        for name in ("metrics.jsonl", "norms.jsonl"):
            write_atomic(folder.path / name, b"")
        folder.append("norms.jsonl", probe.first_rows())

    forward = torch.compile(model) if auto["compile"] == "true" else model
    bf16 = auto["precision"] == "bfloat16"
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    names = {id(p): name for name, p in model.named_parameters()}
    curved = [o for o in optimizers if isinstance(o, UsesSampledLabels)]
    pending: list[Tensor] = []
    evaluations: dict[int, float] = {}
    saved_at = time.monotonic()
    model.train()

    def backward(step: int, sampled: bool = False) -> Tensor:
        """Add the gradient of the mean loss over the step's batch, on its own labels or sampled ones, and return that loss."""
        loss = torch.zeros((), device=device)
        for micro in range(t["accumulate"]):
            part_of = {"batch_size": t["batch_size"], "context": context, "microbatch": micro, "microbatches": t["accumulate"]}
            x, y = (torch.from_numpy(a).to(device) for a in data.batch(corpus.train, seed=seed, step=step, **part_of))
            with autocast():
                if sampled:
                    draws = torch.from_numpy(data.label_draws(seed=seed, step=step, **part_of)).to(device)
                    part = sampled_loss(forward(x), draws) / t["accumulate"]
                else:
                    part = forward(x, y) / t["accumulate"]
            part.backward()
            loss = loss + part.detach()
        return loss

    def flush() -> int | None:
        """Write what is pending; the step at which the run diverged, if it has."""
        nonlocal losses, pending, evaluations
        known = len(losses)
        if pending:
            losses += torch.stack(pending).tolist()
            rows = _metric_rows(losses, len(pending), evaluations)
            folder.append("metrics.jsonl", rows)
            on_rows(rows)
            pending, evaluations = [], {}
            folder.write_status({"step": len(losses), "steps": t["steps"], "loss": losses[-1], "time": time.time()})
        return divergence(losses, t["diverge_factor"], t["diverge_patience"], known)

    for step in range(done, t["steps"]):
        if should_stop():
            if flush() is None:
                save_checkpoint(folder, step, model, optimizers, auto)
            return None
        factor = schedule_factor(step, steps=t["steps"], warmup=t["warmup"], schedule=t["schedule"], final_lr=t["final_lr"])
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = group["base_lr"] * factor
        if due := [o for o in curved if step % o.hessian_interval == 0]:
            backward(step, sampled=True)
            for optimizer in due:
                optimizer.update_hessian(t["batch_size"] * context)
            model.zero_grad(set_to_none=True)
        loss = backward(step)
        if t["clip"] is not None:
            nn.utils.clip_grad_norm_(model.parameters(), t["clip"])
        probed = step + 1 in probe.steps
        if probed:
            probe.before_step()
        for optimizer in optimizers:
            optimizer.step()
        if probed:
            lrs = {names[id(q)]: g["lr"] for o in optimizers for g in o.param_groups for q in g["params"]}
            ours = [o for o in optimizers if isinstance(o, StackedOptimizer)]
            told = {names[id(q)]: d for o in ours for q, d in o.diagnostics().items()}
            folder.append("norms.jsonl", probe.after_step(step + 1, lrs, told))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        pending.append(loss)
        if t["eval_every"] and (step + 1) % t["eval_every"] == 0 and step + 1 < t["steps"]:
            evaluations[step + 1] = evaluate(
                model, corpus, t["eval_sequences"], t["batch_size"] // t["accumulate"], context, device, bf16
            )

        if (step + 1) % log_every == 0 or step + 1 == t["steps"]:
            diverged = flush()
            if diverged is not None:
                return _finish(folder, science, corpus, losses, diverged, math.nan, model, auto)
            if time.monotonic() - saved_at > checkpoint_seconds and step + 1 < t["steps"]:
                save_checkpoint(folder, step + 1, model, optimizers, auto)
                saved_at = time.monotonic()

    val_loss = evaluate(model, corpus, t["eval_sequences"], t["batch_size"] // t["accumulate"], context, device, bf16)
    diverged = None if math.isfinite(val_loss) else t["steps"]
    return _finish(folder, science, corpus, losses, diverged, val_loss, model, auto)


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
    science: Mapping[str, Any],
    corpus: data.Corpus,
    losses: list[float],
    diverged: int | None,
    val_loss: float,
    model: nn.Module,
    auto: Mapping[str, str],
) -> dict[str, Any]:
    t, context = science["train"], science["model"]["context"]
    if diverged is not None:  # what came after depends on when the loop noticed
        losses = losses[:diverged]
        for name in ("metrics.jsonl", "norms.jsonl"):
            folder.cut(name, diverged)
    tail = losses[-TRAIN_LOSS_STEPS:]
    result = {
        "status": "done" if diverged is None else "diverged",
        "diverged_step": diverged,
        "steps": len(losses),
        "val_loss": val_loss if diverged is None else None,
        "train_loss": sum(tail) / len(tail) if diverged is None else None,
        "tokens": len(losses) * t["batch_size"] * context,
        "epochs": data.epochs_seen(corpus.train, len(losses), t["batch_size"], context),
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
    folder.finish(result)
    for old in sorted(folder.checkpoints.glob("*.pt")):
        old.unlink()
    return result


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: RunFolder, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], auto: Mapping[str, str]
) -> None:
    """Write ckpt/<step>.pt atomically and keep the last two. Raises HeldError if the run is no longer ours."""
    import io

    folder.check_claim()
    state = {
        "step": step,
        "auto": dict(auto),
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(folder.checkpoints / f"{step:09d}.pt", buffer.getvalue())
    for old in sorted(folder.checkpoints.glob("*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _resume(
    folder: RunFolder, model: nn.Module, optimizers: list[torch.optim.Optimizer], auto: dict[str, str], device: torch.device
) -> tuple[int, dict[str, str]]:
    """Load the newest checkpoint that can be read; its step (0 if there is none) and what `auto` meant so far."""
    for path in sorted(folder.checkpoints.glob("*.pt"), reverse=True):
        state = _load(path, device)
        if state is None:
            continue
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
        return state["step"], state["auto"]
    return 0, auto


def _load(path: Path, device: torch.device) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in many ways (zip, pickle, EOF); each means: use the one before
        warnings.warn(f"{path} cannot be read and is skipped ({type(error).__name__}: {error})", stacklevel=2)
        return None
