"""A folder of shards that says itself what it is: meta.json, written by `prepare`, read as data=prepared.

meta.json            tokenizer, vocab_size, dtype, eot, counts, split rule, sources, settings, and of every shard its sha256
train_000000.bin     llm.c shards, see shards.py
val_000000.bin
tokenizer.json       where a BPE was trained
"""

import json
from pathlib import Path
from typing import Any

from spectral_mup.data.shards import DataError

META = "meta.json"
FORMAT = 1  # of meta.json


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json says. DataError if there is none, or none that can be read."""
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta["format"] != FORMAT:
            raise DataError(f"data.path: {folder}/{META} is of format {meta['format']}, not {FORMAT}: prepare the text again")
        return meta
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"data.path: no {META} in {folder}; name a folder that action=prepare wrote, or use data=llmc or data=nanogpt"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.path: {folder}/{META} is damaged: prepare the text again into another folder") from None


def vocabulary(folder: Path, vocab_size: int | None) -> int:
    """The size of the vocabulary; `vocab_size` may be larger, to pad it. DataError if it is smaller."""
    known = read_meta(folder)["vocab_size"]
    if vocab_size is not None and vocab_size < known:
        raise DataError(f"data.vocab_size: {folder.name} has {known} token ids, so {vocab_size} is too small; leave it out")
    return vocab_size or known


def token_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The shards for training and for validation, each there and of the size it was written with; DataError if not."""
    splits: dict[str, list[Path]] = {"train": [], "val": []}
    for shard in read_meta(folder)["shards"]:
        file = folder / shard["file"]
        found = file.stat().st_size if file.is_file() else None
        if found != shard["bytes"]:
            said = "missing" if found is None else f"damaged: {found} bytes, not {shard['bytes']}"
            raise DataError(f"data.path: {file} is {said}; copy it again, or prepare the text again into another folder")
        splits[shard["split"]].append(file)
    return splits["train"], splits["val"]


def checked(folder: Path, content: str) -> str:
    """`content`, the hash of the shards as they are now; DataError unless it is that of when they were made."""
    if content != read_meta(folder)["content"]:
        raise DataError(
            f"data.path: shards in {folder} are not those of its {META}; `sha256sum` tells which: copy them again, "
            "or prepare the text again into another folder"
        )
    return content


def described(folder: Path) -> tuple[str, ...]:
    """In words: the tokenizer and what it read."""
    meta = read_meta(folder)
    names = [source["name"] for source in meta["sources"]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"{meta['tokenizer']} tokens of {', '.join(names[:3])}{more}",)
