"""What identifies a text: SHA-256 in full up to 64 MB, beyond that of sizes and evenly spaced samples."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from spectral_mup.data.shards import DataError, Tokens

MB = 2**20
SMALL = 64 * MB  # up to here a corpus is hashed, and its ids are checked, in full; beyond, in samples
SAMPLES = 16  # blocks of 1 MB, about 50 ms of hashing
Splits = tuple[Sequence[Path], Sequence[Path]]  # the files for training and those for validation


def hash_files(splits: Splits) -> str:
    """Hash the files for training and those for validation, whatever they are called; above 64 MB it begins with `sampled:`.

    A file is read once in a process, and again when its size or modification time differs. Raises DataError if one cannot be
    read.
    """
    files = [(split, file, file.stat()) for split, files in enumerate(splits) for file in files]
    whole = sum(stat.st_size for _, _, stat in files) <= SMALL
    samples = 0 if whole else max(1, SAMPLES // len(files))
    hashed = [(split, stat.st_size, hash_blocks(file, samples, stat.st_size, stat.st_mtime_ns)) for split, file, stat in files]
    lines = "".join(f"{split} {size} {digest}\n" for split, size, digest in hashed)
    content = hashed[0][2] if len(files) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return content if whole else f"sampled:{content}"


def largest_id(tokens: Tokens) -> int:
    """Return the largest token id; of more than 64 MB, the largest in 16 blocks."""
    count, block = len(tokens), MB // tokens.dtype.itemsize
    if count * tokens.dtype.itemsize <= SMALL:
        return int(tokens[:].max())
    return max(int(tokens[start : start + block].max()) for start in spread(count, SAMPLES, block))


def file_sha256(path: str | Path) -> str:
    """Return what `sha256sum` prints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spread(total: int, count: int, block: int) -> list[int]:
    """Return the starts of `count` blocks spread evenly over `total`, the first at its beginning and the last at its end."""
    room = max(total - block, 0)
    return sorted({room * i // max(count - 1, 1) for i in range(count)})


@lru_cache(maxsize=65536)
def hash_blocks(file: Path, samples: int, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file, or with samples > 0 of its size and that many evenly spaced blocks of 1 MB. Cached."""
    try:
        if not samples:
            return file_sha256(file)
        digest = hashlib.sha256(str(size).encode())
        with open(file, "rb") as stream:
            for start in spread(size, samples, MB):
                stream.seek(start)
                digest.update(stream.read(MB))
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"data.path: cannot read {file}: {error.strerror}; check its permissions") from error
