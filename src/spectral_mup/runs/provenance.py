"""What a run was trained with: code, packages, machine. Recorded beside the result, never part of its identity."""

import functools
import hashlib
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.registry import code_digest
from spectral_mup.util.system import machine

PACKAGE = Path(__file__).resolve().parents[1]
DECIDING = (  # the code that decides a run's numbers
    "data/**/*.py", "models/**/*.py", "optim/**/*.py", "scaling/**/*.py", "theory/**/*.py", "training/**/*.py", "util/seeds.py",
)  # fmt: skip
COMMIT_FILE = "COMMIT"  # in a copy of the package: the commit it was made from
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "spectral-mup")


@functools.cache
def commit() -> str:
    """Return the commit of the source tree, with `+` if it has changes; 'unknown' outside a git checkout."""
    if (PACKAGE / COMMIT_FILE).exists():  # a copy that a job runs from
        return (PACKAGE / COMMIT_FILE).read_text().strip()
    try:
        run = functools.partial(subprocess.run, cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True)
        run(["git", "ls-files", "--error-unmatch", "__init__.py"])  # fails unless this is the package's own checkout
        sha = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return sha + ("+" if run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def code() -> str:
    """Return the first 12 hex digits of SHA-256 over the modules that decide a run's numbers."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in DECIDING for path in PACKAGE.glob(pattern)):
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def code_of(found: Mapping[str, Any] | None) -> str | None:
    """Describe the code that trained a run, by its provenance.json; runs of one verdict should agree in it. None: not known."""
    if not found:
        return None
    packages, own = found.get("packages"), found.get("own")
    said = [f"code {found['code']}" if "code" in found else f"commit {found.get('commit')}"]
    said += [f"torch {packages.get('torch')}"] if isinstance(packages, dict) else []
    said += [f"{name} {digest}" for name, digest in sorted(own.items())] if isinstance(own, dict) else []
    return ", ".join(said)


def provenance(run: RunConfig, device: Any, devices: int = 1, shard: bool = False) -> dict[str, Any]:
    """Return the content of provenance.json; `devices` train together, each with a `shard` of the model or all of it.

    `own` are digests of optimizers that are neither this package's nor torch's; those of a user's model or data are in the
    run's config.
    """
    import torch

    targets = sorted(str(algorithm.target) for algorithm in run.optimizer.algorithms.values())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "commit": commit(),
        "code": code(),
        "own": {name: str(code_digest(name))[:12] for name in targets if not name.startswith(("torch.", "spectral_mup."))},
        "python": platform.python_version(),
        "packages": versions,
        "host": socket.gethostname(),
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": devices,
        "shard": shard,
        "threads": torch.get_num_threads(),
    }
