"""Under what a run was trained: code, packages, machine. Recorded beside the result, never part of its identity."""

import functools
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from spectral_mup.util.system import machine

PACKAGE = Path(__file__).resolve().parents[1]
COMMIT_FILE = "COMMIT"  # in a copy of the package: the commit it was made from
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "spectral-mup")


@functools.cache
def commit() -> str:
    """Commit of the source tree, with `+` if it has changes; 'unknown' outside a git checkout."""
    if (PACKAGE / COMMIT_FILE).exists():  # a copy that a job runs from
        return (PACKAGE / COMMIT_FILE).read_text().strip()
    try:
        run = functools.partial(subprocess.run, cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True)
        run(["git", "ls-files", "--error-unmatch", "__init__.py"])  # else installed somewhere in another project's checkout
        sha = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return sha + ("+" if run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def provenance(device: Any, devices: int = 1, shard: bool = False) -> dict[str, Any]:
    """What provenance.json holds; `devices` train together, each with a `shard` of the model or all of it."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
        "host": socket.gethostname(),
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": devices,
        "shard": shard,
        "threads": torch.get_num_threads(),
    }
