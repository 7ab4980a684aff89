"""The text of a run as micro-batches on its device, and the losses on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_mup import data
from spectral_mup.training.trainer import sampled_label_loss

RESIDENT_SHARE = 0.2  # of a GPU's free memory that the text may take, to be gathered there


@dataclass(frozen=True)
class TextBatch:
    """A micro-batch of token ids (sequences, context), and uniform draws that choose sampled labels for it."""

    x: Tensor
    y: Tensor
    draws: Callable[[], Tensor]


def text_loss(model: Any, batch: TextBatch) -> Tensor:
    """Return the mean cross entropy in nats per token."""
    return model(batch.x, batch.y)


def sampled_text_loss(model: Any, batch: TextBatch) -> tuple[Tensor, int]:
    """Return the loss on labels drawn from the model's own softmax, and their number."""
    return sampled_label_loss(_logits(model, batch.x), batch.draws()), batch.x.numel()


def logits_loss(model: Any, batch: TextBatch) -> Tensor:
    """Return the mean cross entropy of a model that returns logits, or an object that has them as `logits`."""
    return F.cross_entropy(_logits(model, batch.x).flatten(0, -2).float(), batch.y.flatten())


def _logits(model: Any, x: Tensor) -> Tensor:
    out = model(x)
    return getattr(out, "logits", out)


def text_batches(
    tokens: data.Tokens, seed: int, batch_size: int, context: int, parts: range, of: int, device: torch.device
) -> Callable[[int], list[TextBatch]]:
    """Return what maps a step to micro-batches `parts`, out of `of`, of its batch: a pure function of (seed, step)."""

    def batches(step: int) -> list[TextBatch]:
        found = []
        for part in parts:
            where: dict[str, int] = {"seed": seed, "step": step, "batch_size": batch_size, "context": context}
            where |= {"microbatch": part, "microbatches": of}
            x, y = (on_device(a, device) for a in data.batch(tokens, **where))
            found.append(TextBatch(x, y, lambda where=where: on_device(data.label_draws(**where), device)))
        return found

    return batches


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy host values to a device; a GPU copies them while the host continues."""
    return to_device(torch.from_numpy(values), device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class StaticText:
    """The micro-batches of one step at fixed addresses, for a step that is captured: the tokens of `text_batches`.

    Where the text is small beside the memory that is free on the device it lies there as a whole, and a step copies only
    where its sequences start.
    """

    def __init__(
        self, tokens: data.Tokens, seed: int, batch_size: int, context: int, parts: range, of: int, device: torch.device
    ) -> None:
        self.tokens, self.device, self.parts = tokens, device, parts
        self.where = {"seed": seed, "batch_size": batch_size, "context": context, "microbatches": of}
        # laid out as those of `text_batches`, else torch.compile would compile again, in the midst of the capture
        self.x, self.y = torch.zeros(2, len(parts), batch_size // of, context, dtype=torch.int64, device=device)
        self.offsets = torch.arange(context + 1, device=device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
        fits = 4 * len(tokens) <= RESIDENT_SHARE * free
        self.resident = torch.from_numpy(np.asarray(tokens[:]).astype(np.int32)).to(device) if fits else None

    def fill(self, step: int) -> None:
        """Put in the tokens of a step (from 0)."""
        starts = [data.batch_starts(self.tokens, step=step, microbatch=part, **self.where) for part in self.parts]
        if self.resident is None:
            windows = [data.windows(self.tokens, at, len(self.offsets)).astype(np.int64) for at in starts]
            window = on_device(np.stack(windows), self.device)
        else:
            window = self.resident[on_device(np.stack(starts), self.device)[..., None] + self.offsets]
        self.x.copy_(window[..., :-1])
        self.y.copy_(window[..., 1:])

    def batches(self) -> list[TextBatch]:
        """Return its micro-batches; sampled labels are drawn elsewhere, as they are not captured."""
        return [TextBatch(x, y, lambda: torch.empty(0)) for x, y in zip(self.x, self.y, strict=True)]
