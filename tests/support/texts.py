"""Small texts and shards to read."""

from pathlib import Path

import numpy as np

from spectral_mup import data

LINES = b"".join(b"line %d of a text\n" % i for i in range(400))


def shard(path: Path, tokens: object, dtype: object = np.uint16) -> Path:
    data.write_shard(path, np.asarray(tokens), dtype)
    return path
