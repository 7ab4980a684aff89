"""Laws of token files: read as written, whole or not at all, many as one."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.texts import shard

from spectral_mup import data
from spectral_mup.data import DataError


@pytest.mark.parametrize(("dtype", "magic", "version"), [("u2", 20240520, 1), ("u4", 20240801, 7)])
def test_a_shard_comes_back_as_written(tmp_path: Path, dtype: str, magic: int, version: int):
    ids = np.random.default_rng(0).integers(0, 50257, 1000)
    path = shard(tmp_path / "a.bin", ids, dtype)
    header = np.fromfile(path, "<i4", count=256)
    assert header[:4].tolist() == [magic, version, 1000, 0]
    assert path.stat().st_size == 1024 + 1000 * np.dtype(dtype).itemsize
    read = data.read_shard(path)
    assert isinstance(read, np.memmap) and read.dtype == dtype and np.array_equal(read, ids)
    assert np.array_equal(data.read_headerless(path), ids)  # a header that fits is believed


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = shard(tmp_path / "a.bin", [1, 2, 3])

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        shard(path, [4, 5, 6])
    assert data.read_shard(path).tolist() == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("ids", "dtype"), [([65536], "u2"), ([-1], "u2"), ([0.5], "u2"), ([[1]], "u2"), ([1], "u1")])
def test_what_does_not_fit_is_not_written(tmp_path: Path, ids: list, dtype: str):
    with pytest.raises(ValueError):
        shard(tmp_path / "a.bin", ids, dtype)
    assert not list(tmp_path.iterdir())


def test_shards_are_their_concatenation(shards: Path):
    parts = [data.read_shard(shards / f"part_{i}.bin") for i in range(3)]
    joined, whole = data.Shards(parts), np.concatenate(parts)
    assert len(joined) == len(whole) and joined.dtype == whole.dtype
    for span in (
        slice(None),
        slice(90, 110),
        slice(99, 100),
        slice(100, 107),
        slice(-5, None),
        slice(50, 20),
    ):
        assert np.array_equal(joined[span], whole[span])
    assert [joined[i] for i in (0, 99, 100, 106, 107, -1)] == [whole[i] for i in (0, 99, 100, 106, 107, -1)]
    with pytest.raises(IndexError):
        joined[407]
    for context in (1, 10, 150):  # inside a part, over one border, over a whole part
        for step in range(5):
            of_joined = data.batch(joined, seed=0, step=step, batch_size=64, context=context)
            of_whole = data.batch(whole, seed=0, step=step, batch_size=64, context=context)
            assert np.array_equal(of_joined, of_whole)
    every = np.arange(len(whole) - 20)
    assert np.array_equal(joined.windows(every, 20), np.lib.stride_tricks.sliding_window_view(whole, 20)[:-1])


def test_shards_of_two_dtypes_are_refused(tmp_path: Path):
    for i, dtype in enumerate(("u2", "u2", "u4")):
        shard(tmp_path / f"{i}.bin", np.arange(9), dtype)
    with pytest.raises(DataError, match="same dtype"):
        data.load("llmc", str(tmp_path), 50)
