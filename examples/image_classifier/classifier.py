"""Not a language model: a convolutional classifier of images of digits, drawn when they are needed.

Sweep it from this folder, about three minutes on two cores:

    python ../../launch.py sweep=digits && python ../../analyze.py sweep=digits
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEGMENTS = {  # of a seven-segment display: top, upper left, upper right, middle, lower left, lower right, bottom
    0: "1110111", 1: "0010010", 2: "1011101", 3: "1011011", 4: "0111010",
    5: "1101011", 6: "1101111", 7: "1010010", 8: "1111111", 9: "1111011",
}  # fmt: skip
BOXES = [(0, 1, 1, 4), (1, 4, 0, 1), (1, 4, 4, 5), (4, 5, 1, 4), (5, 8, 0, 1), (5, 8, 4, 5), (8, 9, 1, 4)]  # rows, columns
SIDE, VALIDATION = 16, 10**9


def glyphs() -> Tensor:
    """The ten digits, (10, 9, 5), 1 where a segment is lit."""
    images = torch.zeros(10, 9, 5)
    for digit, lit in SEGMENTS.items():
        for on, (top, bottom, left, right) in zip(lit, BOXES, strict=True):
            images[digit, top:bottom, left:right] = float(on)
    return images


def batches(seed: int | None, step: int, batch_size: int) -> dict[str, Tensor]:
    """Digits near the middle under strong noise, a pure function of (seed, step); seed None is the validation set."""
    generator = torch.Generator().manual_seed((VALIDATION if seed is None else seed) * 1_000_003 + step)
    labels = torch.randint(10, (batch_size,), generator=generator)
    images = 1.5 * torch.randn(batch_size, 1, SIDE, SIDE, generator=generator)
    rows, columns = torch.randint(2, 5, (2, batch_size), generator=generator)
    for image, digit, row, column in zip(images, glyphs()[labels], rows, columns, strict=True):
        image[0, row : row + 9, column : column + 5] += 2 * digit
    return {"images": images, "labels": labels}


class Classifier(nn.Module):
    """Images (B, 1, 16, 16) and labels (B,) to the mean cross entropy."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [1, channels, channels, channels]
        self.layers = nn.ModuleList(nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairwise(sizes))
        self.readout = nn.Linear(4 * channels, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = images
        for layer in self.layers:
            h = F.relu(layer(h))
        return F.cross_entropy(self.readout(h.flatten(1)), labels)


def build(width: int) -> Classifier:
    return Classifier(channels=width)
