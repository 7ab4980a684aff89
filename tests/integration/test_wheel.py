"""What `pip install` of the wheel gives, in a venv and a folder that know no checkout."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support.readme import ROOT, snippet

from spectral_mup import __version__, data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the hatchling that is installed."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the wheel; what it depends on is read from this one, whose .pth files (an editable install) are not."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages(folder) / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def site_packages(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SPECTRAL_MUP_PATH")}


def run(venv: Path, folder: Path, *command: str) -> str:
    """What a program of the venv prints, started in a folder. It must succeed."""
    program = [str(venv / "bin" / command[0]), *command[1:]]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def contents(package: Path) -> dict[str, str]:
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_wheel_carries_presets_sweeps_plays_and_types(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("conf", "sweeps", "src/spectral_mup/cli/templates"):
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
        kept = [
            path for path in files if path.parts[0] not in ("sweep", "results", "LOG.md") and "__pycache__" not in path.parts
        ]
        missing = {f"spectral_mup/{folder.removeprefix('src/spectral_mup/')}/{path}" for path in kept} - names
        assert not missing, missing
    assert {"spectral_mup/py.typed", "spectral_mup/conf/data/shakespeare.zip", "spectral_mup/conf/rule/spectral.yaml"} <= names
    assert "spectral_mup/sweeps/mini/width.yaml" in names
    assert not [name for name in names if "results/" in name or name.endswith((".pth", "LOG.md")) or name.startswith("tests")]
    assert wheel.stat().st_size < 4_000_000


def test_it_is_imported_from_the_wheel(venv: Path, tmp_path: Path):
    code = (
        "import spectral_mup; from spectral_mup import data; "
        "print(spectral_mup.__file__); print(spectral_mup.__version__); print(data.fingerprint('shakespeare', None, None))"
    )
    where, version, fingerprint = run(venv, tmp_path, "python", "-c", code).splitlines()
    assert Path(where).is_relative_to(site_packages(venv)) and not Path(where).is_relative_to(ROOT)
    assert version == __version__ and fingerprint == data.fingerprint("shakespeare", None, None)


def test_the_public_functions_need_no_checkout(venv: Path, tmp_path: Path):
    before = contents(site_packages(venv) / "spectral_mup")
    shown = run(venv, tmp_path, "python", "-c", snippet("### Your own model"))
    assert "0.weight" in shown and "3.bias" in shown
    names = sorted(path.stem for path in (ROOT / "conf/optimizer").glob("*.yaml") if path.stem not in ("other", "lion"))
    code = (
        "from torch import nn; from spectral_mup import scale\n"
        "def build(width): return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.Linear(width, 256))\n"
        f"for name in {names}: print(name, len(scale(build(64), build(32), optimizer=name)))"
    )
    assert run(venv, tmp_path, "python", "-c", code).splitlines() == [f"{name} 5" for name in names]
    assert not list(tmp_path.iterdir()) and contents(site_packages(venv) / "spectral_mup") == before


def test_the_command_says_its_version(venv: Path, tmp_path: Path):
    assert __version__ in run(venv, tmp_path, "spectral-mup", "--version")


def test_a_project_of_ones_own_runs_as_it_is_written(venv: Path, tmp_path: Path):
    package = site_packages(venv) / "spectral_mup"
    before = contents(package)
    run(venv, tmp_path, "spectral-mup", "init", "demo")
    demo = tmp_path / "demo"
    listed = run(venv, demo, "spectral-mup", "launch", "--help")
    assert all(name in listed for name in ("my_rule", "my_optimizer", "my_model", "mine"))
    assert "blocks.*.mlp.up.weight" in run(venv, demo, "spectral-mup", "launch", "sweep=mine", "action=explain")
    quickly = ["sweep=mine", "train.steps=20", "cluster.workers=1"]
    run(venv, demo, "spectral-mup", "launch", *quickly)
    run(venv, demo, "spectral-mup", "analyze", *quickly)
    verdicts = json.loads((demo / "results/mine/verdicts.json").read_text())["verdicts"]
    assert {v["rule"] for v in verdicts} == {"spectral", "my_rule", "standard"}
    results = [json.loads(path.read_text()) for path in (demo / "runs").glob("*/result.json")]
    assert len(results) == 28 and any(result["status"] == "done" for result in results)
    assert list((demo / "results/mine").glob("lr_transfer.*"))
    assert contents(package) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
