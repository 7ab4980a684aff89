"""Documents split into training and validation text, and cut into pieces to encode: a few megabytes at a time.

Validation is a tenth of every document, a hundredth of the documents by hash, or the source's own part. No cut changes a token.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from spectral_mup.data.prepare.documents import Document, Documents
from spectral_mup.data.prepare.tokenizers import Tokenizer
from spectral_mup.data.shards import DataError
from spectral_mup.data.split import SPLIT, split_point

BY_HASH = "whole documents: validation is those with sha1 % 100 = 0"
OF_SOURCE = "that of the source"
MIN_DOCUMENTS = 200  # below, whole documents are too coarse a sample to hold out
SURVEYED = 1000  # documents read to choose the rule; the chance that none of these falls to validation is 4e-5
TRAINING_BYTES = 2**28  # of text for a BPE; more changes its merges little
PIECE = 2**16  # characters; so that threads share a long document
BATCH = 2**21  # characters encoded at once, which bounds the memory
LINE_END = re.compile(r"[!-~](?=\n)")


class Piece(NamedTuple):
    """A text to encode. `part_bytes` is the size of the document's part that begins with it, 0 if none does."""

    val: bool
    part_bytes: int
    text: str


def choose_rule(documents: Documents) -> tuple[str, bool]:
    """Return the split rule, and whether there are several documents. Raises DataError if there are none."""
    held_out = [is_held_out(document.text) for document in islice(documents.read(), SURVEYED)]
    if not held_out:
        raise DataError("prepare.input: it contains no text; name another")
    if documents.has_splits:
        return OF_SOURCE, True
    return BY_HASH if len(held_out) >= MIN_DOCUMENTS and any(held_out) else SPLIT, len(held_out) > 1


def is_held_out(text: bytes) -> bool:
    """Return whether the rule BY_HASH takes a document for validation."""
    return int.from_bytes(hashlib.sha1(text).digest()) % 100 == 0


def split_document(document: Document, rule: str) -> list[tuple[bool, bytes]]:
    """Return a document's texts, each with whether it is for validation."""
    text = document.text
    if rule == OF_SOURCE:
        return [(document.val, text)]
    if rule == BY_HASH:
        return [(is_held_out(text), text)]
    at = split_point(text)
    at += next((i for i, byte in enumerate(text[at : at + 4]) if byte & 0xC0 != 0x80), 0)  # not within a character of UTF-8
    return [(val, part) for val, part in ((False, text[:at]), (True, text[at:])) if part]


def batches(documents: Documents, rule: str, tokenizer: Tokenizer) -> Iterator[tuple[list[Piece], int]]:
    """Yield a few megabytes of pieces at a time, and how many bytes of the input have been read."""
    pieces, size, before, read = [], 0, 0, 0
    for document in documents.read():
        seen = 0
        for val, part in split_document(document, rule):
            part_bytes = len(part)
            for text in cut(decode(part, tokenizer.charset, document.place), tokenizer.by_line):
                pieces.append(Piece(val, part_bytes, text))
                part_bytes, size, seen = 0, size + len(text), seen + len(text)
                read = before + (document.read - before) * seen // len(document.text)
                if size >= BATCH:
                    yield pieces, read
                    pieces, size = [], 0
        before = read = document.read
    if pieces:
        yield pieces, read


def training_text(documents: Documents, rule: str, on_read: Callable[[int], None]) -> Iterator[str]:
    """Yield what a BPE learns from: the training text, or its first 256 MB. `on_read` gets the bytes of the input read."""
    seen = 0
    for document in documents.read():
        for val, part in split_document(document, rule):
            if not val:
                seen += len(part)
                yield from cut(decode(part, "utf-8", document.place), True)
        on_read(document.read)
        if seen >= TRAINING_BYTES:
            return


def decode(text: bytes, charset: str, place: str) -> str:
    try:
        return text.decode(charset)
    except UnicodeDecodeError as error:
        raise DataError(
            f"prepare.input: {place}: byte {error.start} is not UTF-8; convert the file, or use prepare.tokenizer=bytes"
        ) from None


def cut(text: str, by_line: bool) -> Iterator[str]:
    """Yield a long text in pieces, cut before a line end after a visible ASCII character.

    No token of GPT-2's pattern spans that.
    """
    start = 0
    while by_line and (found := LINE_END.search(text, start + PIECE)):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]
