"""What a job is frozen with: the code as it was launched, and the config with every path made absolute. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from spectral_mup.config.presets import package_root
from spectral_mup.config.schema import Config, to_plain
from spectral_mup.runs.provenance import COMMIT_FILE, commit

PARTS = ("src", "conf", "sweeps", "launch.py", "analyze.py", "pyproject.toml")
SKIPPED = ("sweeps/results/",)  # committed figures: large, and no code


def code_now() -> tuple[str, dict[str, bytes]]:
    """Hash and files of the source tree, uncommitted changes and new files included.

    In a git checkout, what git tracks or would track; elsewhere every file of the same folders.
    """
    root = package_root()
    files = {name: (root / name).read_bytes() for name in _files(root) if (root / name).is_file()}
    if not (root / "src").is_dir():  # installed: conf/ and sweeps/ lie beside the modules
        files = {f"src/{root.name}/{name}": data for name, data in files.items()}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\n{len(files[name])}\n".encode() + files[name])
    return digest.hexdigest()[:16], files


def snapshot_code(jobs: Path) -> str:
    """Copy the source tree to jobs/code/<hash>, once for equal code; returns the hash."""
    code, files = code_now()
    target = jobs / "code" / code
    if target.is_dir():
        return code
    prepared = target.with_name(f"new.{secrets.token_hex(4)}")
    for name, data in (files | {COMMIT_FILE: f"{commit()}\n".encode()}).items():
        path = prepared / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        os.rename(prepared, target)
    except OSError:
        shutil.rmtree(prepared, ignore_errors=True)
        if not target.is_dir():
            raise
    return code


def _files(root: Path) -> list[str]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
            cwd=root, capture_output=True, text=True, timeout=30, check=True,
        ).stdout.split("\0")  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        listed = []
    if not any(listed):  # no checkout
        parts = PARTS if (root / "src").is_dir() else (".",)
        paths = [p for part in parts for p in [root / part, *sorted((root / part).rglob("*"))]]
        listed = [str(p.relative_to(root)) for p in paths if "__pycache__" not in p.parts]
    return sorted(name for name in listed if name and not name.startswith(SKIPPED))


def snapshot_config(config: Config) -> dict[str, Any]:
    """The config in plain words, good from any working directory and for `action=run`."""
    plain = to_plain(config)
    for key, value in plain["paths"].items():
        plain["paths"][key] = str(Path(value).absolute())
    if config.data.path is not None:
        plain["data"]["path"] = str(Path(config.data.path).expanduser().absolute())
    return plain | {"action": "run", "yes": True}
