"""Token files on disk: shards with the llm.c header, headerless uint16 files, and many files read as one.

A shard is a header of 256 little-endian int32, [magic, version, n_tokens, 0, ...], then n_tokens ids:

    magic 20240520, version 1: uint16 ids   (karpathy/llm.c, KellerJordan/modded-nanogpt)
    magic 20240801, version 7: uint32 ids   (llm.c, Llama-3 tokens)

nanoGPT's train.bin and val.bin hold uint16 ids and no header.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectral_mup.errors import ConfigError
from spectral_mup.util.files import write_atomic

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
FORMATS = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}  # magic: (version, dtype)


class DataError(ConfigError):
    """What is wrong with the data, the config key to change, and the fix, in one line."""


class Shards:
    """Several 1-D token arrays of one dtype, read as the one sequence they would make when concatenated.

    Indexed by an int or by a slice of step 1, and by `windows`; a memmap stays on disk until it is read.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        if len({part.dtype for part in parts}) != 1:
            raise DataError("data.path: the shards of a split must have the same dtype: write the others again")
        self.parts = list(parts)
        self.dtype = self.parts[0].dtype
        self.bounds = np.cumsum([0] + [len(part) for part in parts])  # part i is [bounds[i], bounds[i + 1])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            at = range(len(self))[key]  # counts from the end if negative, raises IndexError if outside
            return self._span(at, at + 1)[0]
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise ValueError("shards are sliced with step 1 only")
        return self._span(start, stop)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the sequences [start, start + length) as the rows of an array (len(starts), length)."""
        out = np.empty((len(starts), length), self.dtype)
        first, last = (np.searchsorted(self.bounds, at, side="right") - 1 for at in (starts, starts + length - 1))
        inside = first == last
        for i in np.unique(first[inside]):
            rows = inside & (first == i)
            out[rows] = windows(self.parts[i], starts[rows] - self.bounds[i], length)
        for row in np.flatnonzero(~inside):
            out[row] = self._span(starts[row], starts[row] + length)
        return out

    def _span(self, start: int, stop: int) -> np.ndarray:
        pairs = zip(self.parts, self.bounds.tolist(), strict=False)  # bounds has one more, the end
        return np.concatenate([part[max(start - at, 0) : max(stop - at, 0)] for part, at in pairs])


Tokens = np.ndarray | Shards


def windows(tokens: Tokens, starts: np.ndarray, length: int) -> np.ndarray:
    """Return the sequences [start, start + length) of `tokens` as the rows of an array (len(starts), length)."""
    if isinstance(tokens, Shards):
        return tokens.windows(starts, length)
    return np.asarray(tokens)[starts[:, None] + np.arange(length)]


def read_shard(path: str | Path) -> np.ndarray:
    """Map the ids of a shard with header, as a read-only 1-D memmap. Raises DataError if header and file disagree."""
    path = Path(path)
    header, size = np.fromfile(path, "<i4", HEADER_INTS).tolist(), path.stat().st_size
    if (short := len(header) < HEADER_INTS) or header[0] not in FORMATS:
        problem = "the file is shorter than a header" if short else f"its first int32 is {header[0]}"
        raise DataError(
            f"data.path: {path.name} is not an llm.c shard: {problem}, not {' or '.join(map(str, FORMATS))}; "
            "a folder of headerless uint16 files is data=nanogpt"
        )
    (version, dtype), count = FORMATS[header[0]], header[2]
    if header[1] != version:
        raise DataError(
            f"data.path: {path.name} has magic {header[0]} and version {header[1]}; "
            f"only its version {version} can be read: write it again"
        )
    if size != HEADER_BYTES + count * dtype.itemsize:
        raise DataError(
            f"data.path: {path.name} is truncated or damaged: its header says {count} tokens, "
            f"{count * dtype.itemsize} bytes, but it has {size - HEADER_BYTES}: copy or write it again"
        )
    if count == 0:
        raise DataError(f"data.path: {path.name} contains no tokens: remove it or write it again")
    return np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def read_headerless(path: str | Path) -> np.ndarray:
    """Map the uint16 ids of a nanoGPT .bin file as a read-only 1-D memmap.

    A file whose header and size fit llm.c's is read as `read_shard` does. Raises DataError if empty or of odd size.
    """
    path = Path(path)
    header, size = np.fromfile(path, "<i4", HEADER_INTS).tolist(), path.stat().st_size
    if len(header) == HEADER_INTS and header[0] in FORMATS:
        if size == HEADER_BYTES + header[2] * FORMATS[header[0]][1].itemsize:
            return read_shard(path)
    if size == 0:
        raise DataError(f"data.path: {path.name} is empty: write it again")
    if size % 2:
        raise DataError(f"data.path: {path.name} has {size} bytes, odd, so it is not uint16: write it again")
    return np.memmap(path, "<u2", mode="r")


def write_shard(path: str | Path, tokens: Tokens, dtype: Any = np.uint16) -> None:
    """Write a shard with header, atomically: version 1 for uint16, version 7 for uint32.

    Raises ValueError if an id does not fit.
    """
    ids, wanted = np.asarray(tokens[:]), np.dtype(dtype)
    found = [(magic, version) for magic, (version, known) in FORMATS.items() if known == wanted]
    if not found:
        raise ValueError(f"a shard holds uint16 or uint32, not {wanted}")
    limit = np.iinfo(wanted).max
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"a shard holds a 1-D array of integers, not {ids.ndim}-D of {ids.dtype}")
    if ids.size and not (0 <= int(ids.min()) and int(ids.max()) <= limit):
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit 0 to {limit}: write another dtype")
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = *found[0], ids.size
    on_disk = np.ascontiguousarray(ids, wanted.newbyteorder("<"))
    write_atomic(Path(path), b"".join([header.data, on_disk.data]))  # no copy but this one
