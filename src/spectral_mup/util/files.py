"""Files that survive a kill at any moment: atomic writes, JSON, lines of JSON."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError

MOST_BYTES = 2**26  # of a .json file; none of ours comes near
TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")  # names of files that `write_atomic` has not put in place yet
DIGITS = re.compile("[0-9]+")  # str.isdigit takes ² for one, which int() does not


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace `path` by `data`: readers see the old content or the new, never half. Raises OSError, leaving the old.

    `mode` are its permissions, before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, which nobody else writes to now."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def check_writable(folder: Path) -> Path:
    """Write, rename and remove a file in the folder, or in the nearest one above it that exists, and return that one.

    Raises OSError if that fails, or if a file lies where a folder should be.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    trial = existing / f".{secrets.token_hex(8)}"
    try:
        trial.write_bytes(b"x")
        trial.rename(trial.with_suffix(".renamed"))
    finally:
        for path in (trial, trial.with_suffix(".renamed")):
            with suppress(OSError):
                path.unlink()
    return existing


def rename_to_free(prepared: Path, target: Path) -> bool:
    """Rename a folder with content if the target is free, else remove it; return whether the target was free.

    Of two processes that try, one gets it.
    """
    try:
        os.rename(prepared, target)
        return True
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise


def numbered(folder: Path) -> list[int]:
    """List the numbers among the names in a folder, ascending; none without the folder."""
    return sorted(int(path.name) for path in folder.iterdir() if DIGITS.fullmatch(path.name)) if folder.is_dir() else []


def json_bytes(value: Any, sort_keys: bool = True) -> bytes:
    """Encode readable JSON, keys as they come where their order matters. Raises ValueError on numbers that are not finite."""
    return (json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n").encode()


def read_json(path: Path, kind: Any = None, fix: str = "restore it, or move it away") -> Any | None:
    """Read the content of a file, None if it does not exist.

    `kind` is a pydantic TypeAdapter of what it must be, any JSON without. Raises RecordError, which names the file and the
    `fix`, on anything else that lies there.
    """
    try:
        content = json.loads(read_regular(path), parse_constant=_refuse_constant)
        if kind is not None:
            kind.validate_python(content)
        return content
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        obstacle = next(p for p in path.parents if p.exists() and not p.is_dir())
        raise RecordError(f"{obstacle} is a file where a folder should be; move it away, or set paths.runs") from None
    except RecordError as error:
        raise RecordError(f"{error}; {fix}") from None
    except RecursionError:
        raise RecordError(f"{path}: nested too deep; {fix}") from None
    except ValueError as error:
        raise RecordError(f"{path}: {_mistake(error)}; {fix}") from None


def read_regular(path: Path) -> bytes:
    """Read the content of a file.

    Raises RecordError where a folder, a device or a pipe lies, which may never answer, or a file that is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
        os.close(descriptor)
        raise RecordError(f"{path}: {'too large' if stat.S_ISREG(found.st_mode) else 'not a regular file'}")
    with open(descriptor, "rb") as file:
        return file.read()


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity, which are no JSON


def _mistake(error: ValueError) -> str:
    """Say what is wrong with the content of a file: the first thing that pydantic found, or no JSON at all."""
    if not hasattr(error, "errors"):
        return "not JSON"
    first = error.errors(include_url=False)[0]  # type: ignore[attr-defined]
    where = ".".join(str(key) for key in first["loc"] if key != "Record")
    return f"{where}: {first['msg'].lower()}" if where else first["msg"].lower()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl file, each with a `step`, without a last line that a kill cut off.

    Raises RecordError on other lines.
    """
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise RecordError(
                    f"{path}, line {number}: no row of JSON; the file was damaged; move the run's folder away to train it again"
                )
            yield row


def write_cache(path: Path, value: Any) -> None:
    """Keep plain JSON for later processes, under a checksum; where it cannot be written, they do without."""
    text = json.dumps(value).encode()
    with suppress(OSError):
        write_atomic(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read_cache(path: Path) -> Any | None:
    """Read what `write_cache` kept there, None if it is missing or damaged."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return json.loads(text) if digest == hashlib.sha256(text).hexdigest().encode() else None
