"""What a run trains on and is judged by, whatever its data are."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.training.distributed import ProcessGroup
from spectral_mup.training.text import StaticText, TextBatch, logits_loss, sampled_text_loss, text_batches, text_loss
from spectral_mup.training.trainer import Batch, Loss, SampledLoss


@dataclass(frozen=True)
class Task:
    """The data and losses of one process of a run, each a pure function of the run's config.

    Attributes:
        batches: Step (from 0) to the micro-batches that this process trains on.
        loss: (model, micro-batch) to its mean loss, a scalar.
        sampled_loss: The same on labels drawn from the model's softmax, and their number; None: there is none.
        validation: The fixed validation set: (batch, number of sequences) pairs.
        probe_batch: What the model is run on to measure its features, as Probe takes it.
        static_text: The batches at fixed addresses, for a captured step; None: they have none.
        about: Number of steps to what the result says of the data: tokens, epochs, corpus.
    """

    batches: Callable[[int], list[Batch]]
    loss: Loss
    sampled_loss: SampledLoss | None
    validation: Callable[[], Iterable[tuple[Batch, int]]]
    probe_batch: Callable[[nn.Module], Tensor | Callable[[], Any]]
    static_text: Callable[[], StaticText] | None
    about: Callable[[int], dict[str, Any]]


def text_task(run: RunConfig, corpus: data.Corpus, device: torch.device, processes: ProcessGroup) -> Task:
    """Make the task of next-token prediction on a text: see data.batch."""
    t, context, of = run.train, run.model.context, processes.size * run.train.accumulate
    parts = range(processes.rank * t.accumulate, (processes.rank + 1) * t.accumulate)
    text = (corpus.train, run.seed, t.batch_size, context, parts, of, device)

    def validation() -> Iterator[tuple[TextBatch, int]]:
        """Yield evenly spaced sequences of the validation text."""
        x, y = (torch.from_numpy(a) for a in data.eval_batch(corpus.val, count=t.eval_sequences, context=context))
        for xs, ys in zip(x.split(t.batch_size // of), y.split(t.batch_size // of), strict=True):
            yield TextBatch(xs.to(device), ys.to(device), lambda: torch.empty(0)), len(xs)

    def probe_batch(_model: nn.Module) -> Tensor:
        x, _ = data.probe_batch(corpus.val, count=run.probe.sequences, context=context)
        return torch.from_numpy(x).to(device)

    def about(steps: int) -> dict[str, Any]:
        sizes = {"train_tokens": len(corpus.train), "val_tokens": len(corpus.val)}
        return {
            "tokens": steps * t.batch_size * context,
            "epochs": data.epochs_seen(corpus.train, steps, t.batch_size, context),
            "corpus": {"name": corpus.name, "sha256": corpus.sha256} | sizes,
        }

    return Task(
        batches=text_batches(*text),
        loss=text_loss if run.model.ours else logits_loss,
        sampled_loss=sampled_text_loss,
        validation=validation,
        probe_batch=probe_batch,
        static_text=(lambda: StaticText(*text)) if run.model.ours else None,
        about=about,
    )
