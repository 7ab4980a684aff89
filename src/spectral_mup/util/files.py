"""Files that survive a kill at any moment: atomic writes, JSON, lines of JSON."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers see the old content or the new, never half. Raises OSError, leaving the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    """Rename a folder with content, or remove it. Whether the target was free: of two processes that try, one gets it."""
    try:
        os.rename(prepared, target)
        return True
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise


def numbered(folder: Path) -> list[int]:
    """The numbers among the names in a folder, ascending; none without the folder."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def json_bytes(value: Any) -> bytes:
    """Readable JSON with sorted keys. Raises ValueError on numbers that are not finite."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any | None:
    """Content of a file, None if it does not exist. Raises RecordError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        obstacle = next(p for p in path.parents if p.is_file())
        raise RecordError(f"{obstacle} is a file where a folder should be; move it away, or set paths.runs") from None
    except ValueError:
        raise RecordError(f"{path}: not JSON; restore the file, or delete the run folder to train it again") from None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl file without a last line that a kill cut off. Raises RecordError on a broken line anywhere else."""
    with path.open() as f:
        for number, line in enumerate(f, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise RecordError(f"{path}, line {number}: not JSON; the file was damaged, delete the run folder") from None


def write_cache(path: Path, value: Any) -> None:
    """Keep plain JSON for later processes, under a checksum; where it cannot be written, they do without."""
    text = json.dumps(value).encode()
    with suppress(OSError):
        write_atomic(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read_cache(path: Path) -> Any | None:
    """What `write_cache` kept there, None if it is missing or damaged."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return json.loads(text) if digest == hashlib.sha256(text).hexdigest().encode() else None
