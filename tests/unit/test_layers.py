"""The contracts of pyproject.toml, which `lint-imports` holds the source to, fail on an import that they forbid."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.mark.parametrize(
    ("contract", "module", "line", "edge"),
    [
        (
            "layers",
            "util/registry.py",
            "def late(): import spectral_mup.config",
            "spectral_mup.util.registry -> spectral_mup.config",
        ),
        ("layers", "data/split.py", "import spectral_mup.models", "spectral_mup.data.split -> spectral_mup.models"),
        ("layers", "attic/__init__.py", "", "spectral_mup.attic"),
        ("circles", "data/shards.py", "def late(): import spectral_mup.data.batches", "spectral_mup.data."),
        ("torch", "analysis/collect.py", "import torch.nn", "spectral_mup.analysis.collect -> torch"),
        ("pandas", "training/loop.py", "import spectral_mup.analysis.results", "spectral_mup.training.loop"),
    ],
)
def test_a_forbidden_import_is_seen(contract: str, module: str, line: str, edge: str, tmp_path: Path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.zip"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "src/spectral_mup" / module
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as source:
        source.write(f"\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--contract", contract],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and edge in " ".join(done.stdout.split()), done.stdout + done.stderr
