"""Corpus to tokens to batches, the batches as a pure function of (seed, step). Needs numpy alone."""

from spectral_mup.data.batches import batch, batch_starts, epochs_seen, eval_batch, label_draws, probe_batch
from spectral_mup.data.corpus import Corpus, OwnBatches, fingerprint, load, load_data, vocabulary
from spectral_mup.data.shards import DataError, Shards, Tokens, read_headerless, read_shard, windows, write_shard
from spectral_mup.data.sources import SOURCES, Source

__all__ = [
    "SOURCES", "Corpus", "DataError", "OwnBatches", "Shards", "Source", "Tokens", "batch", "batch_starts", "epochs_seen",
    "eval_batch", "fingerprint", "label_draws", "load", "load_data", "probe_batch", "read_headerless", "read_shard",
    "vocabulary", "windows", "write_shard",
]  # fmt: skip
