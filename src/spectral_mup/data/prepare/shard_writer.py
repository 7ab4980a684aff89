"""Token ids to shards of a fixed number of tokens."""

from pathlib import Path
from typing import Any

import numpy as np

from spectral_mup.data.content import file_sha256
from spectral_mup.data.shards import write_shard


class ShardWriter:
    """The shards of one split, each of `shard_tokens` ids but the last; documents continue from one to the next."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.documents = self.n_bytes = self.buffered = 0
        self._parts: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(shard["n_tokens"] for shard in self.shards) + self.buffered

    @property
    def files(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.shards]

    def begin_document(self, eot: np.ndarray, n_bytes: int) -> None:
        self.documents += 1
        self.n_bytes += n_bytes
        self.add(eot)

    def add(self, ids: np.ndarray) -> None:
        self._parts.append(ids.astype(self.dtype))
        self.buffered += len(ids)
        if self.buffered >= self.shard_tokens:
            ids = np.concatenate(self._parts)
            while len(ids) >= self.shard_tokens:
                self._write(ids[: self.shard_tokens])
                ids = ids[self.shard_tokens :]
            self._parts, self.buffered = [ids.copy()], len(ids)

    def close(self) -> None:
        if self.buffered:
            self._write(np.concatenate(self._parts))
            self._parts, self.buffered = [], 0

    def _write(self, ids: np.ndarray) -> None:
        file = self.folder / f"{self.name}_{len(self.shards):06d}.bin"
        write_shard(file, ids, self.dtype)
        shard = {"file": file.name, "split": self.name, "n_tokens": len(ids)}
        self.shards.append(shard | {"bytes": file.stat().st_size, "sha256": file_sha256(file)})
