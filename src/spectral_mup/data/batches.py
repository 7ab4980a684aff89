"""Batches as a pure function of (seed, step): no loader and no state, so a resumed run sees the same ones."""

import numpy as np

from spectral_mup.data.shards import DataError, Tokens, windows


def batch_starts(
    tokens: Tokens, *, seed: int, step: int, batch_size: int, context: int, microbatch: int = 0, microbatches: int = 1
) -> np.ndarray:
    """Return where the sequences of `batch` with the same arguments start in the text: int64 (batch_size / microbatches,)."""
    if not (0 <= seed < 2**64 and 0 <= step < 2**64):
        raise ValueError(f"seed and step must be in [0, 2^64), not {seed} and {step}")
    if batch_size < 1 or microbatches < 1 or batch_size % microbatches or not 0 <= microbatch < microbatches:
        raise ValueError(
            f"micro-batch {microbatch} of {microbatches} in a batch of {batch_size}: "
            "the number of micro-batches must divide the batch size, and they count from 0"
        )
    words = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(batch_size)
    words = words.reshape(microbatches, -1)[microbatch]
    return (words % np.uint64(_places(tokens, context))).astype(np.int64)


def batch(
    tokens: Tokens, *, seed: int, step: int, batch_size: int, context: int, microbatch: int = 0, microbatches: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch of one step: (x, y), int64 arrays (batch_size / microbatches, context), y the tokens after x.

    Sequence i starts at r_i mod (len(tokens) - context), where r_i is the i-th 64-bit word of Philox keyed by (seed, step):
    uniform, with replacement, the same in every numpy version. So a batch does not depend on those drawn before it, and a
    smaller batch is the beginning of a larger one. `batch_size` is always that of the whole step: micro-batches 0 ... k - 1 of
    k, one after another, are its sequences. Raises DataError if the text is too short for the context; ValueError if the
    numbers make no batch. Philox: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    where = {"seed": seed, "step": step, "batch_size": batch_size, "microbatch": microbatch, "microbatches": microbatches}
    return _shifted(tokens, batch_starts(tokens, context=context, **where), context)


def label_draws(
    *, seed: int, step: int, batch_size: int, context: int, microbatch: int = 0, microbatches: int = 1
) -> np.ndarray:
    """Draw uniformly in [0, 1) what chooses sampled labels, one per token of `batch` with the same arguments.

    Float32 (batch_size / microbatches, context), from 24 bits each of the Philox stream of (seed, step), far behind the
    words that `batch` takes: so the labels too depend on (seed, step) alone, and not on how the batch is cut.
    """
    words = np.random.Philox(key=np.array([seed, step], np.uint64), counter=[0, 0, 0, 1]).random_raw(batch_size * context)
    draws = (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return draws.reshape(microbatches, -1, context)[microbatch]


def eval_batch(tokens: Tokens, *, count: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` evenly spaced sequences: (x, y), two int64 arrays (count, context), y the tokens after x.

    No random number: the same for every width, seed and step. Sequence i starts in the middle of the i-th of `count` equal
    parts; sequences overlap only if count * context exceeds the text.
    """
    places = _places(tokens, context)
    if not 1 <= count <= places:
        raise DataError(
            f"data.path: {len(tokens)} tokens hold 1 to {places} different sequences of context {context}, "
            f"not {count}: give a longer text or ask for fewer"
        )
    return _shifted(tokens, (2 * np.arange(count) + 1) * places // (2 * count), context)


# The few validation sequences on which features are measured. By a count of their own: they stay when evaluation is resized.
probe_batch = eval_batch


def epochs_seen(tokens: Tokens, steps: int, batch_size: int, context: int) -> float:
    """Return how often `steps` batches read the text on average; beyond 1 or 2 the loss measures memory as well."""
    return steps * batch_size * context / len(tokens)


def _places(tokens: Tokens, context: int) -> int:
    """Count the starts that leave room for a sequence and the one token after it."""
    if context < 1:
        raise ValueError(f"the context must be at least 1 token, not {context}")
    if len(tokens) <= context:
        raise DataError(
            f"data.path: {len(tokens)} tokens are too few for a sequence of context {context} and the token "
            "after it: give a longer text or a shorter context"
        )
    return len(tokens) - context


def _shifted(tokens: Tokens, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    ids = windows(tokens, starts, context + 1)
    return ids[:, :-1].astype(np.int64), ids[:, 1:].astype(np.int64)  # copies: changing x leaves y alone
