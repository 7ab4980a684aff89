"""Folders of token files."""

from pathlib import Path

import numpy as np
import pytest
from support.texts import shard


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 100, 7 and 300 tokens, which count on from 0 to 406."""
    for i, (start, stop) in enumerate(((0, 100), (100, 107), (107, 407))):
        shard(tmp_path / f"part_{i}.bin", np.arange(start, stop))
    return tmp_path


@pytest.fixture
def nanogpt(tmp_path: Path) -> Path:
    np.arange(900, dtype="<u2").tofile(tmp_path / "train.bin")
    np.arange(100, dtype="<u2").tofile(tmp_path / "val.bin")
    return tmp_path
