"""A job runs the code that was launched: the package from a checkout or installed, and the user's own modules."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import ROOT

from spectral_mup.cluster.slurm import snapshot
from spectral_mup.cluster.slurm.script import environment
from spectral_mup.cluster.slurm.snapshot import code_now, snapshot_code


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"WHERE = 'launched'  # {name}\n")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's folder, which is the working directory."""
    folder = tmp_path / "user"
    write(
        folder,
        "my_optimizer.py",
        "conf/rule/mine.yaml",
        "sweeps/mine.yaml",
        "sweeps/results/large.py",
        "runs/r/big",
        "lib/x.py",
    )
    monkeypatch.chdir(folder)
    return folder


USER_FILES = {"user/my_optimizer.py", "user/conf/rule/mine.yaml", "user/sweeps/mine.yaml"}


def test_of_a_checkout_its_sources_and_of_another_folder_the_user_s_own(user, monkeypatch):
    _, files = code_now()
    assert USER_FILES | {"src/spectral_mup/__init__.py", "conf/config.yaml", "launch.py"} <= set(files)
    assert {name for name in files if name.startswith("user/")} == USER_FILES
    assert not [name for name in files if "results/" in name or "__pycache__" in name]
    monkeypatch.chdir(ROOT)
    _, there = code_now()
    assert not [name for name in there if name.startswith("user/conf")] and "user/launch.py" in there


def test_of_an_installed_package_its_folder_with_conf_and_sweeps(user, tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "spectral_mup"
    write(package, "__init__.py", "conf/config.yaml", "sweeps/default.yaml", "cluster/local.py", "__pycache__/x.pyc")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    code, files = code_now()
    assert set(files) - USER_FILES == {
        f"src/spectral_mup/{name}" for name in ("__init__.py", "conf/config.yaml", "sweeps/default.yaml", "cluster/local.py")
    }
    write(user, "second.py")
    assert code_now()[0] != code


def test_a_job_imports_what_was_launched_whatever_has_changed_since(user, tmp_path):
    code = snapshot_code(tmp_path / "jobs")
    (user / "my_optimizer.py").write_text("WHERE = 'changed'\n")
    submission = SimpleNamespace(path=tmp_path / "jobs" / "1", code=code)
    program = "import my_optimizer, lib.x, spectral_mup; print(my_optimizer.WHERE, spectral_mup.__file__)"
    script = "\n".join(["unset PYTHONPATH", *environment(submission), f"{sys.executable} -P -c '{program}'"])  # pyright: ignore
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, cwd=user, timeout=60)
    where, file = done.stdout.split()
    assert where == "launched" and file == f"{tmp_path}/jobs/code/{code}/src/spectral_mup/__init__.py"
    assert (Path(file).parent / "COMMIT").is_file()
