"""action=prepare: a text becomes a folder of shards with a meta.json, whole or not at all.

The folder is written beside its place under a name of its own, and renamed when all of it is there. Its writer holds a lock for
as long as the process lives, so that leftovers of a killed process can be told apart from a folder that is still being written.
"""

import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from spectral_mup.data.content import hash_files
from spectral_mup.data.prepare.documents import HUB, Documents, open_documents
from spectral_mup.data.prepare.holdout import choose_rule
from spectral_mup.data.prepare.pieces import Piece, batches, training_text
from spectral_mup.data.prepare.settings import PrepareConfig
from spectral_mup.data.prepare.shard_writer import ShardWriter
from spectral_mup.data.prepare.tokenizers import Tokenizer, build, model_hashes
from spectral_mup.data.prepared import FORMAT, META, read_meta, token_files
from spectral_mup.data.shards import DataError
from spectral_mup.util.files import write_atomic

CHECKED = 16  # texts that are decoded again, to see whether the tokenizer is lossless
TRAINING, TOKENIZING = "training the BPE", "tokenizing"

Show = Callable[[str, int, int, int], None]
"""Called with what is done, bytes done, bytes in all (0 if unknown), tokens so far."""


def prepare(settings: PrepareConfig, show: Show) -> tuple[dict[str, Any], bool]:
    """Write the folder `settings.out`; return its meta.json and whether it existed already.

    Every document is preceded by the end-of-text id, as in llm.c's shards, unless there is one document alone. The same text
    and settings give the same bytes. DataError, and nothing written, for whatever is wrong.
    """
    out = Path(settings.out or "").expanduser().absolute()
    identity = _identity(settings)
    existing = _existing(out)
    if existing is not None and existing["settings"] == identity and identity["input"]:  # the hub need not be asked again
        return existing, True
    documents = open_documents(settings.input or "", settings.field)
    if existing is not None:
        return _check_same(existing, identity, documents, out), True
    with _temporary_folder(out) as folder:
        meta = _write(folder, settings, identity, documents, show)
        try:
            os.rename(folder, out)
        except OSError:
            existing = _existing(out)  # another process was faster
            if existing is None:
                raise
            return _check_same(existing, identity, documents, out), True
    return meta, False


def _identity(p: PrepareConfig) -> dict[str, Any]:
    """The settings that decide the tokens, apart from the text."""
    return {
        "input": p.input if (p.input or "").startswith(HUB) else None,  # a file is known by its content
        "tokenizer": p.tokenizer,
        "vocab_size": p.vocab_size if p.tokenizer == "bpe" and p.model is None else None,
        "model": model_hashes(p.tokenizer, p.model),
        "shard_tokens": p.shard_tokens,
        "field": p.field,
    }


def _existing(out: Path) -> dict[str, Any] | None:
    """The meta.json of a folder that exists; None if nothing does. DataError if something else is in its place."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / META).is_file():
        raise DataError(f"prepare.out: {out} already exists and was not written by action=prepare; choose a new folder")
    meta = read_meta(out)
    token_files(out, meta)
    return meta


def _check_same(meta: dict[str, Any], identity: dict[str, Any], documents: Documents, out: Path) -> dict[str, Any]:
    differing = [key for key in identity if meta["settings"].get(key) != identity[key]]
    if meta["sources"] != documents.origin:
        differing.append("the text")
    if differing:
        raise DataError(
            f"prepare.out: {out} was prepared from something else ({', '.join(differing)} differs); "
            "choose another folder, or delete this one"
        )
    return meta


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder of this process beside `out`, deleted in the end unless it was renamed; leftovers of dead processes go first.

    The lock is a file beside the folder (a folder itself cannot be locked over NFS), and is held before the folder exists.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for leftover in out.parent.glob(f"{prefix}*.lock"):
        try:
            with _locked(leftover, timeout=0) as folder:
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, PermissionError):
            pass  # its writer is alive, or another user
    with _locked(out.parent / f"{prefix}{secrets.token_hex(4)}.lock", timeout=60) as folder:  # others hold it for a moment only
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(lock: Path, timeout: float) -> Iterator[Path]:
    """Hold a lock file, then delete it; yields the path of the folder that it protects. Raises Timeout if it is taken."""
    with FileLock(lock, timeout):
        try:
            yield lock.with_suffix("")
        finally:
            lock.unlink(missing_ok=True)


def _write(folder: Path, p: PrepareConfig, identity: dict[str, Any], documents: Documents, show: Show) -> dict[str, Any]:
    """Fill the folder, meta.json last, and return its content."""
    trains_bpe = p.tokenizer == "bpe" and p.model is None
    show(TRAINING if trains_bpe else TOKENIZING, 0, documents.size, 0)
    rule, several = choose_rule(documents)

    def on_read(read: int) -> None:
        show(TRAINING, read, documents.size, 0)

    tokenizer = build(p.tokenizer, p.model, p.vocab_size, lambda: training_text(documents, rule, on_read))
    if several and tokenizer.eot_id is None:
        raise DataError(f"prepare.model: {p.model} has no end-of-text id to put between documents; name another tokenizer")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    eot = np.array([tokenizer.eot_id] if several else [], dtype)
    splits = [ShardWriter(folder, name, dtype, p.shard_tokens) for name in ("train", "val")]
    lossless = _tokenize(documents, rule, tokenizer, eot, splits, show)
    if tokenizer.save:
        tokenizer.save(folder)
    train, val = (split.files for split in splits)
    meta = {
        "format": FORMAT,
        "tokenizer": p.tokenizer,
        "lossless": lossless,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "eot_id": tokenizer.eot_id,
        "eot_position": "before every document" if several else None,
        "split": rule,
        "n_tokens": {split.name: len(split) for split in splits},
        "n_bytes": {split.name: split.n_bytes for split in splits},
        "documents": {split.name: split.documents for split in splits},
        "content": hash_files((train, val)),
        "shards": [shard for split in splits for shard in split.shards],
        "sources": documents.origin,
        "settings": identity,
        "versions": {tokenizer.package: importlib.metadata.version(tokenizer.package)} if tokenizer.package else {},
    }
    write_atomic(folder / META, (json.dumps(meta, indent=1) + "\n").encode())
    return meta


def _tokenize(
    documents: Documents, rule: str, tokenizer: Tokenizer, eot: np.ndarray, splits: Sequence[ShardWriter], show: Show
) -> bool | None:
    """Write the shards of both splits; whether the first texts come back from their tokens. DataError if a split is empty."""
    lossless = None
    for pieces, read in batches(documents, rule, tokenizer):
        encoded = tokenizer.encode([piece.text for piece in pieces])
        if lossless is None:
            lossless = _is_lossless(tokenizer, pieces[:CHECKED], encoded[:CHECKED])
        for piece, ids in zip(pieces, encoded, strict=True):
            if piece.part_bytes:
                splits[piece.val].begin_document(eot, piece.part_bytes)
            splits[piece.val].add(ids)
        show(TOKENIZING, read, documents.size, sum(map(len, splits)))
    for split, use in zip(splits, ("training", "validation"), strict=True):
        split.close()
        if len(split) < 2:
            raise DataError(f"prepare.input: {len(split)} tokens are left for {use}: give a longer text")
    return lossless


def _is_lossless(tokenizer: Tokenizer, pieces: Sequence[Piece], encoded: Sequence[np.ndarray]) -> bool:
    pairs = zip(pieces, encoded, strict=True)
    return all(tokenizer.decode(ids) == piece.text.encode(tokenizer.charset) for piece, ids in pairs)
