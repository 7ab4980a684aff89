"""Under what a run was trained: code, packages, machine. Recorded beside the result, never part of its identity."""

from __future__ import annotations

import functools
import platform
import socket
import subprocess
from importlib import metadata
from typing import Any

from spectral_mup.config.presets import package_root

COMMIT_FILE = "COMMIT"  # in a copy of the source tree: the commit it was made from
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "spectral-mup")


@functools.cache
def commit() -> str:
    """Commit of the source tree, with `+` if it has changes; 'unknown' outside a git checkout."""
    root = package_root()
    if (root / COMMIT_FILE).exists():  # a copy that a job runs from
        return (root / COMMIT_FILE).read_text().strip()
    if not (root / "pyproject.toml").exists():  # installed: a git checkout around it is somebody else's
        return "unknown"
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10, check=True)
        sha = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return sha + ("+" if run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def machine() -> str:
    """Processor and number of cores, as /proc/cpuinfo names it."""
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores" if names else platform.machine()
    except OSError:
        return platform.machine()


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
