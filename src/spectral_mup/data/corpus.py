"""A text as a run sees it: tokens to train on, tokens to validate on, and what identifies them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_mup.data.content import largest_id
from spectral_mup.data.shards import DataError, Tokens
from spectral_mup.data.sources import SOURCES
from spectral_mup.data.split import SPLIT
from spectral_mup.util.registry import code_digest, lookup

BATCHES = "batches"  # the source that is a function


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and to validate on, 1-D sequences of uint8, uint16 or uint32: an array, a memmap, or `Shards`.

    `sha256` is that of the content: for one text file, what `sha256sum` prints; for more than 64 MB it begins with `sampled:`
    and covers sizes and samples. `note` is what a caller should show the user, or empty.
    """

    name: str
    train: Tokens
    val: Tokens
    vocab_size: int
    sha256: str
    note: str


@dataclass(frozen=True)
class OwnBatches:
    """Batches in place of a text: `make(seed, step)` of the user's own; `sha256` is that of the file that defines it."""

    name: str
    make: Callable[..., Any]
    vocab_size: int | None
    sha256: str
    note: str = ""


def load_data(source: str, path: str | None, vocab_size: int | None, target: str | None) -> Corpus | OwnBatches:
    """Load what a config's `data` names: a text, or of source `batches` the function at the import path `target`.

    Raises what `load` raises.
    """
    if source != BATCHES:
        return load(source, path, vocab_size)
    make, digest = _own_batches(target)
    return OwnBatches(str(target), make, vocab_size, digest)


def load(source: str, path: str | None = None, vocab_size: int | None = None) -> Corpus:
    """Read a corpus; the arguments are the config's `data.source` (a key of SOURCES or an import path), `path`, `vocab_size`.

    Token files and a single text file are mapped, not read. Raises DataError, one line with the config key and the fix, for
    whatever is wrong, and ConfigError for a source that does not exist.
    """
    text = lookup(SOURCES, source, "data.source")(source, path, vocab_size)
    content = text.content_hash()
    train, val = text.read()
    for split, tokens in (("training", train), ("validation", val)):
        if len(tokens) < 2:
            raise DataError(f"data.path: {len(tokens)} tokens are left for {split}: give a longer text")
        if text.vocab_size <= np.iinfo(tokens.dtype).max and (largest := largest_id(tokens)) >= text.vocab_size:
            raise DataError(
                f"data.vocab_size: the text has token id {largest}, so {text.vocab_size} is too small; "
                f"give {largest + 1} or more"
            )
    name = source if path is None else f"{source}:{Path(path).name}"
    return Corpus(name, train, val, text.vocab_size, content, text.note)


def fingerprint(source: str, path: str | None, vocab_size: int | None, target: str | None = None) -> str:
    """Return 64 hex digits that change with the text, the split rule or the vocabulary, not with where files lie.

    Reads everything up to 64 MB, beyond that the sizes and evenly spaced blocks of 1 MB. Raises what `load` raises, except for
    what only the content of token files shows.
    """
    if source == BATCHES:
        return hashlib.sha256(f"{source}\n{target}\n{vocab_size}\n{_own_batches(target)[1]}\n".encode()).hexdigest()
    text = lookup(SOURCES, source, "data.source")(source, path, vocab_size)
    return hashlib.sha256(f"{source}\n{SPLIT}\n{text.vocab_size}\n{text.content_hash()}\n".encode()).hexdigest()


def vocabulary(source: str, path: str | None, vocab_size: int | None, target: str | None = None) -> int | None:
    """Return the number of token ids, without reading the text; None: a user's own batches need none.

    Raises what `load` raises.
    """
    if source == BATCHES:
        return vocab_size
    return lookup(SOURCES, source, "data.source")(source, path, vocab_size).vocab_size


def _own_batches(target: str | None) -> tuple[Callable[..., Any], str]:
    """Return the function that data.target names, and a digest of the code that defines it."""
    if not target:
        raise DataError("data.target: data=batches needs it; give the import path of a function, as in my_module.batches")
    make, digest = lookup({}, target, "data.target"), code_digest(target)
    if not callable(make) or digest is None:
        raise DataError(f"data.target={target}: must be a function of (seed, step) in a file of its own")
    return make, digest
