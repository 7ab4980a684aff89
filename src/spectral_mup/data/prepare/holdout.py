"""Which text is held out for validation: a tenth of every document, a hundredth of them by hash, or the source's own part."""

import hashlib
from itertools import islice

from spectral_mup.data.prepare.documents import Document, Documents
from spectral_mup.data.shards import DataError
from spectral_mup.data.split import SPLIT, split_point

BY_HASH = "whole documents: validation is those with sha1 % 100 = 0"
OF_SOURCE = "that of the source"
MIN_DOCUMENTS = 200  # below, whole documents are too coarse a sample to hold out
SURVEYED = 1000  # documents read to choose the rule; the chance that none of these falls to validation is 4e-5


def choose_rule(documents: Documents) -> tuple[str, bool]:
    """The split rule, and whether there are several documents. DataError if there are none."""
    count = held_out = 0
    for document in islice(documents.read(), SURVEYED):
        count += 1
        held_out += is_held_out(document.text)
    if count == 0:
        raise DataError("prepare.input: it contains no text; name another")
    rule = OF_SOURCE if documents.has_splits else BY_HASH if count >= MIN_DOCUMENTS and held_out else SPLIT
    return rule, count > 1 or documents.has_splits


def is_held_out(text: bytes) -> bool:
    """Whether the rule BY_HASH takes a document for validation."""
    return int.from_bytes(hashlib.sha1(text).digest()) % 100 == 0


def split_document(document: Document, rule: str) -> list[tuple[bool, bytes]]:
    """A document's texts, each with whether it is for validation."""
    text = document.text
    if rule == OF_SOURCE:
        return [(bool(document.val), text)]
    if rule == BY_HASH:
        return [(is_held_out(text), text)]
    at = split_point(text)
    at += next((i for i, byte in enumerate(text[at : at + 4]) if byte & 0xC0 != 0x80), 0)  # not within a character of UTF-8
    return [(val, part) for val, part in ((False, text[:at]), (True, text[at:])) if part]
