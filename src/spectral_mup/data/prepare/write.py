"""action=prepare: a text becomes a folder of shards with a meta.json, whole or not at all.

The folder is written beside its place under a name of its own, and renamed when it is complete. Its writer holds a lock for
as long as the process lives, so that leftovers of a killed process can be told apart from a folder that is still being written.
"""

import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from spectral_mup.data.content import file_sha256, hash_files
from spectral_mup.data.prepare.documents import HUB, Documents, open_documents
from spectral_mup.data.prepare.pieces import batches, choose_rule, training_text
from spectral_mup.data.prepare.settings import PrepareConfig
from spectral_mup.data.prepare.tokenizers import PACKAGES, Tokenizer, build, model_hashes
from spectral_mup.data.shards import DataError, write_shard
from spectral_mup.data.sources import META, META_FORMAT, Prepared
from spectral_mup.util.files import write_atomic

CHECKED = 16  # texts that are decoded again, to see whether the tokenizer is lossless
TRAINING, TOKENIZING = "training the BPE", "tokenizing"
Show = Callable[[str, int, int, int], None]  # called with what is done, bytes done, bytes in all (0 if unknown), tokens so far


def prepare(settings: PrepareConfig, show: Show) -> tuple[dict[str, Any], bool]:
    """Write the folder `settings.out`; return its meta.json and whether it existed already.

    Every document is preceded by the end-of-text id, as in llm.c's shards, unless there is one document alone. The same text
    and settings give the same bytes. Raises DataError, with nothing written, for whatever is wrong.
    """
    out = Path(settings.out or "").expanduser().absolute()
    identity = _identity(settings)
    existing = _existing(out)
    if existing is not None and existing["settings"] == identity and identity["input"]:  # the hub need not be asked again
        return existing, True
    documents = open_documents(settings.input or "", settings.field)
    if existing is None:
        with _temporary_folder(out) as folder:
            meta = _write(folder, settings, identity, documents, show)
            try:
                os.rename(folder, out)
                return meta, False
            except OSError:
                existing = _existing(out)  # another process was faster
                if existing is None:
                    raise
    differing = [key for key in identity if existing["settings"].get(key) != identity[key]]
    differing += ["the text"] if existing["sources"] != documents.origin else []
    if differing:
        raise DataError(
            f"prepare.out: {out} was prepared from something else ({', '.join(differing)} differs); "
            "choose another folder, or delete this one"
        )
    return existing, True


def _identity(p: PrepareConfig) -> dict[str, Any]:
    """Return the settings that decide the tokens, apart from the text."""
    return {
        "input": p.input if (p.input or "").startswith(HUB) else None,  # a file is known by its content
        "tokenizer": p.tokenizer,
        "vocab_size": p.vocab_size if p.trains_bpe else None,
        "model": model_hashes(p.tokenizer, p.model),
        "shard_tokens": p.shard_tokens,
        "field": p.field,
    }


def _existing(out: Path) -> dict[str, Any] | None:
    """Return the meta.json of a folder that exists; None if nothing does.

    Raises DataError if something else is in its place.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / META).is_file():
        raise DataError(f"prepare.out: {out} already exists and was not written by action=prepare; choose a new folder")
    folder = Prepared("prepared", str(out), None)
    folder.files()
    return folder.meta


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Make a folder of this process beside `out`, deleted in the end unless it was renamed; leftovers of dead ones go first.

    The lock is a file beside the folder (a folder itself cannot be locked over NFS), and is held before the folder exists.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for leftover in out.parent.glob(f"{prefix}*.lock"):
        with suppress(Timeout, PermissionError), _locked(leftover, timeout=0):
            pass  # deleted at the end; else its writer is alive, or another user
    with _locked(out.parent / f"{prefix}{secrets.token_hex(4)}.lock", timeout=60) as folder:  # others hold it for a moment only
        folder.mkdir()
        yield folder


@contextmanager
def _locked(lock: Path, timeout: float) -> Iterator[Path]:
    """Hold a lock file; yield the folder that it protects, then delete both. Raises Timeout if it is taken."""
    with FileLock(lock, timeout):
        try:
            yield lock.with_suffix("")
        finally:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


class ShardWriter:
    """The shards of one split, each of `shard_tokens` ids but the last; documents continue from one to the next.

    Before each of them comes `eot`, an array of one id or none, which has the dtype to write.
    """

    def __init__(self, folder: Path, name: str, eot: np.ndarray, shard_tokens: int) -> None:
        self.folder, self.name, self.eot, self.shard_tokens = folder, name, eot, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.documents = self.n_bytes = self.n_tokens = 0
        self._parts, self._buffered = [eot[:0]], 0

    def add(self, ids: np.ndarray, part_bytes: int) -> None:
        """Add the ids of a text that begins a document's part of that many bytes, or with 0 of one that continues it."""
        if part_bytes:
            self.documents += 1
            self.n_bytes += part_bytes
            ids = np.concatenate([self.eot, ids])
        self._parts.append(ids.astype(self.eot.dtype))
        self.n_tokens += len(ids)
        self._buffered += len(ids)
        if self._buffered >= self.shard_tokens:
            self.flush(self.shard_tokens)

    def flush(self, least: int) -> None:
        """Write shards for as long as there are `least` ids: those of a full one, or 1 at the end."""
        ids = np.concatenate(self._parts)
        while len(ids) >= least:
            file, part = self.folder / f"{self.name}_{len(self.shards):06d}.bin", ids[: self.shard_tokens]
            write_shard(file, part, part.dtype)
            shard = {"file": file.name, "split": self.name, "n_tokens": len(part)}
            self.shards.append(shard | {"bytes": file.stat().st_size, "sha256": file_sha256(file)})
            ids = ids[self.shard_tokens :]
        self._parts, self._buffered = [ids.copy()], len(ids)


def _write(folder: Path, p: PrepareConfig, identity: dict[str, Any], documents: Documents, show: Show) -> dict[str, Any]:
    """Fill the folder, meta.json last, and return its content."""
    show(TRAINING if p.trains_bpe else TOKENIZING, 0, documents.size, 0)
    rule, several = choose_rule(documents)
    learned = training_text(documents, rule, lambda read: show(TRAINING, read, documents.size, 0))
    tokenizer = build(p.tokenizer, p.model, p.vocab_size, lambda: learned)
    if several and tokenizer.eot_id is None:
        raise DataError(f"prepare.model: {p.model} has no end-of-text id to put between documents; name another tokenizer")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    eot = np.array([tokenizer.eot_id] if several else [], dtype)
    splits = [ShardWriter(folder, name, eot, p.shard_tokens) for name in ("train", "val")]
    lossless = _tokenize(documents, rule, tokenizer, splits, show)
    if tokenizer.save:
        tokenizer.save(folder)
    train, val = ([folder / shard["file"] for shard in split.shards] for split in splits)
    package = PACKAGES.get(p.tokenizer)
    meta = {
        "format": META_FORMAT,
        "tokenizer": p.tokenizer,
        "lossless": lossless,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "eot_id": tokenizer.eot_id,
        "eot_position": "before every document" if several else None,
        "split": rule,
        "n_tokens": {split.name: split.n_tokens for split in splits},
        "n_bytes": {split.name: split.n_bytes for split in splits},
        "documents": {split.name: split.documents for split in splits},
        "content": hash_files((train, val)),
        "shards": [shard for split in splits for shard in split.shards],
        "sources": documents.origin,
        "settings": identity,
        "versions": {package: importlib.metadata.version(package)} if package else {},
    }
    write_atomic(folder / META, (json.dumps(meta, indent=1) + "\n").encode())
    return meta


def _tokenize(documents: Documents, rule: str, tokenizer: Tokenizer, splits: Sequence[ShardWriter], show: Show) -> bool | None:
    """Write the shards of both splits; return whether the first texts come back from their tokens.

    Raises DataError if a split is empty.
    """
    lossless = None
    for pieces, read in batches(documents, rule, tokenizer):
        encoded = list(zip(pieces, tokenizer.encode([piece.text for piece in pieces]), strict=True))
        if lossless is None:
            checked = encoded[:CHECKED]
            lossless = all(tokenizer.decode(ids) == piece.text.encode(tokenizer.charset) for piece, ids in checked)
        for piece, ids in encoded:
            splits[piece.val].add(ids, piece.part_bytes)
        show(TOKENIZING, read, documents.size, sum(split.n_tokens for split in splits))
    for split, use in zip(splits, ("training", "validation"), strict=True):
        split.flush(1)
        if split.n_tokens < 2:
            raise DataError(f"prepare.input: {split.n_tokens} tokens are left for {use}: give a longer text")
    return lossless
