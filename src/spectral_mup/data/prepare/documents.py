"""Documents of local files or of the Hugging Face hub, one after another, never all in memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spectral_mup.data.content import file_sha256
from spectral_mup.data.shards import DataError

HUB = "hf:"
LOCAL = "prepare.input=FILE (.txt, .jsonl, .parquet) or a folder of them, data=text data.path=..., data=shakespeare"


class Document(NamedTuple):
    """A text (UTF-8, or any bytes of a .txt), the place it is from, and how much of the input has been read with it.

    `val`: whether the source's own split has it for validation. `read` is in bytes of the input files, or of text where their
    size is unknown.
    """

    place: str
    text: bytes
    val: bool
    read: int


class Documents(NamedTuple):
    """Documents that can be read again and again.

    `origin` goes into meta.json, `size` is in bytes (0: unknown), `has_splits`: the source has its own split.
    """

    origin: list[dict[str, Any]]
    size: int
    has_splits: bool
    read: Callable[[], Iterator[Document]]


def open_documents(text: str, field: str | None) -> Documents:
    """Open the documents of `prepare.input`: a path, or hf:NAME[:CONFIG][@REVISION].

    A .txt file is one document; .jsonl and .parquet hold one per line or row, at the key `field`, else `text` or `content`.
    Of a folder all files of these kinds are read, in order of their paths. Empty documents are left out. Raises DataError, one
    line with place and fix, for whatever is wrong, some of it only while documents are read.
    """
    fields = (field,) if field else ("text", "content")
    return _hub_documents(text, fields) if text.startswith(HUB) else _local_documents(text, fields)


# --- local files

Texts = Iterator[tuple[str, bytes, int]]  # of a file: place, text, bytes of the file read with it


def _local_documents(path: str, fields: tuple[str, ...]) -> Documents:
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"prepare.input: {root} does not exist, seen from {Path.cwd()}; give an absolute path")
    files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.suffix in READERS and f.is_file())
    if not files:
        raise DataError(f"prepare.input: no {', '.join(READERS)} file under {root}; name a file or another folder")
    sizes = {file: file.stat().st_size for file in files}
    names = {file: file.name if file == root else file.relative_to(root).as_posix() for file in files}
    origin = [{"name": names[file], "bytes": size, "sha256": file_sha256(file)} for file, size in sizes.items()]

    def documents() -> Iterator[Document]:
        before = 0
        for file, size in sizes.items():
            for place, text, read in READERS.get(file.suffix, _whole)(file, fields):
                if text:
                    yield Document(place, text, False, before + read)
            before += size

    return Documents(origin, sum(sizes.values()), False, documents)


def _whole(file: Path, fields: tuple[str, ...]) -> Texts:
    text = file.read_bytes()
    if file.suffix != ".txt" and b"\0" in text[:4096]:
        raise DataError(f"prepare.input: {file.name} is not a text; unpack it to {' or '.join(READERS)}")
    yield file.name, text, len(text)


def _json_lines(file: Path, fields: tuple[str, ...]) -> Texts:
    read = 0
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name} line {number}"
            read += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON, or of UTF-8
                reason = str(error).partition(":")[0]
                raise DataError(f"prepare.input: {place} is not JSON ({reason}); fix or remove the line") from None
            yield place, _text(row, fields, place), read


def _parquet_rows(file: Path, fields: tuple[str, ...]) -> Texts:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"prepare.input: {file.name} needs pyarrow: pip install 'spectral-mup[prepare]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            column = next((name for name in fields if name in names), None)
            if column is None:
                wanted, there = " or ".join(fields), ", ".join(names)
                raise DataError(f"prepare.input: {file.name} has no column {wanted}, only {there}; name one: prepare.field=...")
            size, rows = file.stat().st_size, table.metadata.num_rows
            batches = table.iter_batches(batch_size=1024, columns=[column])
            for number, value in enumerate((value for batch in batches for value in batch.column(0).to_pylist()), 1):
                place = f"{file.name} row {number}"
                yield place, _text({column: value}, fields, place), size * number // rows
    except (pyarrow.lib.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"prepare.input: {file.name} is damaged or not parquet ({reason}); copy or write it again") from None


READERS = {".txt": _whole, ".jsonl": _json_lines, ".parquet": _parquet_rows}


def _text(row: Any, fields: tuple[str, ...], place: str) -> bytes:
    """Return the text of a line or row, as UTF-8."""
    if not isinstance(row, dict):
        raise DataError(f'prepare.input: {place} is not a JSON object; write one object per line, as in {{"text": "..."}}')
    key = next((key for key in fields if key in row), None)
    if key is None:
        wanted, keys = " or ".join(fields), ", ".join(map(str, row)) or "none"
        raise DataError(f"prepare.input: {place} has no key {wanted}, its keys: {keys}; name the right one: prepare.field=...")
    if not isinstance(row[key], str):
        found = type(row[key]).__name__
        raise DataError(f"prepare.input: {place}: {key} is {found}, not text; fix it or name another prepare.field")
    try:
        return row[key].encode()
    except UnicodeEncodeError:
        raise DataError(
            f"prepare.input: {place}: {key} has half a surrogate pair, which UTF-8 cannot encode; fix or remove it"
        ) from None


# --- the hub


def _hub_documents(spec: str, fields: tuple[str, ...]) -> Documents:
    name, _, revision = spec.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError("prepare.input: hf: needs a name, as in hf:Salesforce/wikitext:wikitext-103-raw-v1")
    try:
        sha, splits = hub_splits(name, config or None, revision or None)
    except ImportError:
        raise DataError(
            f"prepare.input={spec} needs the package datasets: pip install 'spectral-mup[hf]'; or {LOCAL}"
        ) from None
    except Exception as error:  # of the network, of the hub, of the library: each version has classes of its own
        raise _hub_error(spec, error) from None
    if "train" not in splits:
        raise DataError(f"prepare.input={spec}: it has no split train, only {', '.join(splits)}; name another or use {LOCAL}")

    def documents() -> Iterator[Document]:
        read = 0
        for split in ("train", "validation"):
            try:
                for number, row in enumerate(splits.get(split, ()), 1):
                    place = f"{name} {split} row {number}"
                    if text := _text(row, fields, place):
                        read += len(text)
                        yield Document(place, text, split == "validation", read)
            except DataError:
                raise
            except Exception as error:
                raise _hub_error(spec, error) from None

    origin = [{"name": f"{HUB}{name}", "config": config or None, "revision": sha, "splits": list(splits)}]
    return Documents(origin, 0, "validation" in splits, documents)


def hub_splits(name: str, config: str | None, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return the commit that a revision stands for, and the rows of train and validation, streamed from it."""
    import datasets
    from huggingface_hub import HfApi

    sha = str(HfApi().dataset_info(name, revision=revision).sha)
    known = datasets.get_dataset_split_names(name, config, revision=sha)
    used = [split for split in ("train", "validation") if split in known] or known
    return sha, {split: datasets.load_dataset(name, config, split=split, revision=sha, streaming=True) for split in used}


def _hub_error(spec: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 160 else reason[:157] + "..."
    return DataError(
        f"prepare.input={spec}: not available from the Hugging Face hub ({type(error).__name__}: {reason}); "
        f"check name and network, or use {LOCAL}"
    )
