"""A folder of shards with a meta.json that describes them, written by action=prepare, read as data=prepared.

meta.json            tokenizer, vocab_size, dtype, eot, counts, split rule, sources, settings, and of every shard its sha256
train_000000.bin     llm.c shards, see shards.py
val_000000.bin
tokenizer.json       where a BPE was trained
"""

import json
from pathlib import Path
from typing import Any

from spectral_mup.data.content import Splits
from spectral_mup.data.shards import DataError

META = "meta.json"
FORMAT = 1  # of meta.json


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json. DataError if it does not exist or cannot be read."""
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta["format"] != FORMAT:
            raise DataError(f"data.path: {folder}/{META} has format {meta['format']}, not {FORMAT}: prepare the text again")
        return meta
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"data.path: no {META} in {folder}; name a folder that action=prepare wrote, or use data=llmc or data=nanogpt"
        ) from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError):
        raise DataError(f"data.path: {folder}/{META} is damaged: prepare the text again into another folder") from None


def token_files(folder: Path, meta: dict[str, Any]) -> Splits:
    """The shards for training and for validation. DataError unless each is there with the size it was written with."""
    splits: dict[str, list[Path]] = {"train": [], "val": []}
    for shard in meta["shards"]:
        file = folder / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            state = "missing" if size is None else f"damaged: {size} bytes, not {shard['bytes']}"
            raise DataError(f"data.path: {file} is {state}; copy it again, or prepare the text again into another folder")
        splits[shard["split"]].append(file)
    return splits["train"], splits["val"]
