"""What part of a text is for validation: the last tenth of every document, or of many documents a hundredth by hash."""

import hashlib
from itertools import islice

import numpy as np

from spectral_mup.data.prepare.documents import Document, Source
from spectral_mup.data.shards import DataError

MB = 2**20
# Validation is this part of the text. Change the words with the rule: they are in every fingerprint.
SPLIT = "last tenth of every document, cut after a line end"
BY_HASH = "whole documents: validation is those with sha1 % 100 = 0"
OF_SOURCE = "that of the source"
FEW = 200  # documents: below, whole ones are too coarse a sample to hold out
LOOK = 1000  # documents read to choose the rule; that of so many none falls to validation has a chance of 4e-5


def cut(document: bytes | np.ndarray) -> int:
    """Where validation begins: after the last line end between 80 and 90 %, within 1 MB, else at 90 %."""
    stop = len(document) * 9 // 10
    start = max(len(document) * 8 // 10, stop - MB)
    return start + (bytes(document[start:stop]).rfind(b"\n") + 1 or stop - start)


def survey(source: Source) -> tuple[str, bool]:
    """The split rule, and whether there are several documents."""
    count = held_out = 0
    for document in islice(source.documents(), LOOK):
        count += 1
        held_out += _is_held_out(document.text)
    if count == 0:
        raise DataError("prepare.input: there is no text in it; name another")
    rule = OF_SOURCE if source.splits else BY_HASH if count >= FEW and held_out else SPLIT
    return rule, count > 1 or source.splits


def _is_held_out(text: bytes) -> bool:
    return int.from_bytes(hashlib.sha1(text).digest()) % 100 == 0


def parts(document: Document, rule: str) -> list[tuple[bool, bytes]]:
    """A document's texts, each with whether it is for validation."""
    text = document.text
    if rule == OF_SOURCE:
        return [(bool(document.val), text)]
    if rule == BY_HASH:
        return [(_is_held_out(text), text)]
    at = cut(text)
    at += next((i for i, byte in enumerate(text[at : at + 4]) if byte & 0xC0 != 0x80), 0)  # not within a character of UTF-8
    return [(val, part) for val, part in ((False, text[:at]), (True, text[at:])) if part]
