"""action=prepare: a text becomes a folder of shards with a meta.json, whole or not at all.

The folder is written beside its place under a name of its own, and renamed when all of it is there. Whoever writes one holds a
lock on it, which the system drops when the process dies: so what the dead left behind is told from what is being written.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectral_mup.config.schema import PrepareConfig
from spectral_mup.data.corpus import content_of
from spectral_mup.data.prepare.documents import HUB, Source, open_source
from spectral_mup.data.prepare.folder import FORMAT, META, read_meta, token_files
from spectral_mup.data.prepare.tokenizers import Tokenizer, build, model_hashes
from spectral_mup.data.shards import DataError, file_sha256, write_shard
from spectral_mup.data.split import parts, survey
from spectral_mup.util.files import write_atomic

TRAINED_ON = 2**28  # bytes of text a BPE is trained on; more changes its merges little
PIECE = 2**16  # characters; so that threads share a long document
LINE_END = re.compile(r"[!-~](?=\n)")
BATCH = 2**21  # characters encoded at once, which bounds the memory
CHECKED = 16  # texts that are decoded again, to see whether the tokenizer is lossless
LOCK = ".lock"
TRAINING, TOKENIZING = "training the BPE", "tokenizing"

Show = Callable[[str, int, int, int], None]
"""Called with what is done, bytes done, bytes in all (0 if unknown), tokens so far."""


def prepare(settings: PrepareConfig, show: Show) -> tuple[dict[str, Any], bool]:
    """Writes the folder `settings.out`; returns its meta.json and whether it was there already.

    Every document is preceded by the end-of-text id, as in llm.c's shards, unless there is one document alone. The same text
    and settings give the same bytes. DataError, and nothing written, for whatever is wrong.
    """
    out = Path(settings.out or "").expanduser().absolute()
    asked = _asked(settings)
    done = _there(out)
    if done is not None and done["settings"] == asked and asked["input"]:  # the hub need not be asked again
        return done, True
    source = open_source(settings.input or "", settings.field)
    if done is not None:
        _check_same(done, asked, source, out)
        return done, True
    with _partial(out) as folder:
        meta = _write(folder, settings, asked, source, show)
        try:
            os.rename(folder, out)
        except OSError:
            done = _there(out)  # somebody was faster
            if done is None:
                raise
            _check_same(done, asked, source, out)
            return done, True
    return meta, False


def _asked(settings: PrepareConfig) -> dict[str, Any]:
    """What decides the tokens, apart from the text."""
    p = settings
    return {
        "input": p.input if (p.input or "").startswith(HUB) else None,  # a file is known by its content
        "tokenizer": p.tokenizer,
        "vocab_size": p.vocab_size if p.tokenizer == "bpe" and p.model is None else None,
        "model": model_hashes(p.tokenizer, p.model),
        "shard_tokens": p.shard_tokens,
        "field": p.field,
    }


def _there(out: Path) -> dict[str, Any] | None:
    """The meta.json of a folder that is there; None if there is nothing. DataError if something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / META).is_file():
        raise DataError(f"prepare.out: {out} is there and is no prepared text; name a folder that is not there")
    token_files(out)
    return read_meta(out)


def _check_same(done: dict[str, Any], asked: dict[str, Any], source: Source, out: Path) -> None:
    differs = [key for key in asked if done["settings"].get(key) != asked[key]]
    if done["sources"] != source.origin:
        differs.append("the text")
    if differs:
        raise DataError(
            f"prepare.out: {out} was prepared from something else ({', '.join(differs)} differs); "
            "name another folder, or delete this one"
        )


# --- the folder


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A folder of our own beside `out`, gone in the end unless it was renamed; those of dead processes are removed first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for left in out.parent.glob(f"{prefix}*"):
        handle = _lock(left)
        if handle is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    handle = None
    while handle is None:  # once is enough, unless another took the folder for a dead one's before it was locked
        folder = out.parent / f"{prefix}{secrets.token_hex(4)}"
        folder.mkdir()
        handle = _lock(folder)
    try:
        yield folder
        (out / LOCK).unlink(missing_ok=True)  # it has come along
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """An open handle that holds the lock of a folder; None if another process holds it, or may be at it, or it is gone."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)  # a folder itself cannot be locked over NFS
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == os.stat(folder / LOCK).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _write(folder: Path, p: PrepareConfig, asked: dict[str, Any], source: Source, show: Show) -> dict[str, Any]:
    """Fills the folder, meta.json last, and returns what that says."""
    trained = p.tokenizer == "bpe" and p.model is None
    show(TRAINING if trained else TOKENIZING, 0, source.size, 0)
    rule, many = survey(source)
    tokenizer = build(p.tokenizer, p.model, p.vocab_size, lambda: _training_text(source, rule, show))
    if many and tokenizer.eot_id is None:
        raise DataError(f"prepare.model: {p.model} has no end-of-text id to set between documents; name another tokenizer")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    eot = np.array([tokenizer.eot_id] if many else [], dtype)
    train, val = splits = [_Split(folder, name, dtype, p.shard_tokens) for name in ("train", "val")]
    lossless = None
    for rows, read in _batches(source, rule, tokenizer):
        encoded = tokenizer.encode([row.text for row in rows])
        if lossless is None:
            lossless = all(
                tokenizer.decode(ids) == row.text.encode(tokenizer.charset)
                for row, ids in zip(rows[:CHECKED], encoded[:CHECKED], strict=True)
            )
        for row, ids in zip(rows, encoded, strict=True):
            if row.begins:
                splits[row.val].begin(eot, row.begins)
            splits[row.val].add(ids)
        show(TOKENIZING, read, source.size, len(train) + len(val))
    for split, use in ((train, "training"), (val, "validation")):
        split.close()
        if len(split) < 2:
            raise DataError(f"prepare.input: {len(split)} tokens are left for {use}: give a longer text")
    if tokenizer.save:
        tokenizer.save(folder)
    meta = {
        "format": FORMAT,
        "tokenizer": p.tokenizer,
        "lossless": lossless,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "eot_id": tokenizer.eot_id,
        "eot_position": "before every document" if many else None,
        "split": rule,
        "n_tokens": {split.name: len(split) for split in splits},
        "n_bytes": {split.name: split.n_bytes for split in splits},
        "documents": {split.name: split.documents for split in splits},
        "content": content_of([[folder / shard["file"] for shard in split.shards] for split in splits]),
        "shards": [shard for split in splits for shard in split.shards],
        "sources": source.origin,
        "settings": asked,
        "versions": {tokenizer.package: importlib.metadata.version(tokenizer.package)} if tokenizer.package else {},
    }
    write_atomic(folder / META, (json.dumps(meta, indent=1) + "\n").encode())
    return meta


class _Split:
    """The shards of one side of the split, each of `shard_tokens` ids but the last; documents run on from one to the next."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.documents = self.n_bytes = self._held = 0
        self._parts: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(shard["n_tokens"] for shard in self.shards) + self._held

    def begin(self, eot: np.ndarray, n_bytes: int) -> None:
        self.documents += 1
        self.n_bytes += n_bytes
        self.add(eot)

    def add(self, ids: np.ndarray) -> None:
        self._parts.append(ids.astype(self.dtype))
        self._held += len(ids)
        if self._held >= self.shard_tokens:
            ids = np.concatenate(self._parts)
            while len(ids) >= self.shard_tokens:
                self._write(ids[: self.shard_tokens])
                ids = ids[self.shard_tokens :]
            self._parts, self._held = [ids.copy()], len(ids)

    def close(self) -> None:
        if self._held:
            self._write(np.concatenate(self._parts))
            self._parts, self._held = [], 0

    def _write(self, ids: np.ndarray) -> None:
        file = self.folder / f"{self.name}_{len(self.shards):06d}.bin"
        write_shard(file, ids, self.dtype)
        shard = {"file": file.name, "split": self.name, "n_tokens": len(ids)}
        self.shards.append(shard | {"bytes": file.stat().st_size, "sha256": file_sha256(file)})


# --- documents, cut


class _Row(NamedTuple):
    """A text to encode; `begins` is the size in bytes of the part that begins with it, 0 within one."""

    val: bool
    begins: int
    text: str


def _batches(source: Source, rule: str, tokenizer: Tokenizer) -> Iterator[tuple[list[_Row], int]]:
    """Some megabytes of rows at a time, and how far the source is read."""
    rows, size, before, read = [], 0, 0, 0
    for document in source.documents():
        seen = 0
        for val, part in parts(document, rule):
            begins = len(part)
            for text in _pieces(_decoded(part, tokenizer.charset, document.place), tokenizer.by_line):
                rows.append(_Row(val, begins, text))
                begins, size, seen = 0, size + len(text), seen + len(text)
                read = before + (document.read - before) * seen // len(document.text)
                if size >= BATCH:
                    yield rows, read
                    rows, size = [], 0
        before = read = document.read
    if rows:
        yield rows, read


def _training_text(source: Source, rule: str, show: Show) -> Iterator[str]:
    """What a BPE learns from: the training text, or as much of it as is enough."""
    seen = 0
    for document in source.documents():
        for val, part in parts(document, rule):
            if not val:
                seen += len(part)
                yield from _pieces(_decoded(part, "utf-8", document.place), True)
        show(TRAINING, document.read, source.size, 0)
        if seen >= TRAINED_ON:
            return


def _decoded(text: bytes, charset: str, place: str) -> str:
    try:
        return text.decode(charset)
    except UnicodeDecodeError as error:
        raise DataError(
            f"prepare.input: {place}: byte {error.start} is not UTF-8; convert the file, or use prepare.tokenizer=bytes"
        ) from None


def _pieces(text: str, by_line: bool) -> Iterator[str]:
    """A long text in pieces, cut before a line end after a visible ASCII character: no token of GPT-2's pattern spans that."""
    start = 0
    while by_line and (found := LINE_END.search(text, start + PIECE)):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]
