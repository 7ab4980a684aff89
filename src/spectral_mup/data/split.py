"""Where validation begins: in the last tenth of every document, so that both parts are of the same plays or files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

MB = 2**20
# Validation is this part of the text. Change the words with the rule: they are in every fingerprint.
SPLIT = "last tenth of every document, cut after a line end"


def split_point(document: bytes | np.ndarray) -> int:
    """Return where validation begins: after the last line end between 80 and 90 %, within 1 MB, else at 90 %."""
    stop = len(document) * 9 // 10
    start = max(len(document) * 8 // 10, stop - MB)
    return start + (bytes(document[start:stop]).rfind(b"\n") + 1 or stop - start)


def split_documents(documents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all documents for training and those for validation, no byte in both."""
    parts = [(document[: (at := split_point(document))], document[at:]) for document in documents]
    train, val = (b"".join(part) for part in zip(*parts, strict=True))
    return np.frombuffer(train, np.uint8), np.frombuffer(val, np.uint8)


def split_file(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Split like `split_documents` of one document, but memory-mapped, so that the file may be larger than memory."""
    text = np.memmap(file, np.uint8, mode="r")
    at = split_point(text)
    return text[:at], text[at:]
