"""The check of a GPU, on small models and a CPU, runs all of its code."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.launches import environment

from spectral_mup.config.compose import load_config

pytestmark = pytest.mark.slow
CHECK = ROOT / "benchmarks/gpu"


def call(command: list[str], tmp_path: Path, **extra: str) -> subprocess.CompletedProcess:
    env = environment(tmp_path, PYTHON=sys.executable, PYTHONPATH=str(ROOT / "src"), **extra)
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)


def test_what_a_gpu_runs_in_full_can_be_composed(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECK))
    check = importlib.import_module("check")
    sizes = check.Sizes()
    assert len({check.short_run(sizes, o, f).run_id for o in sizes.optimizers for f in ("nanogpt", "llama2")}) == 12
    assert [run.width for run in check.large_runs(sizes)] == [2048, 1024, 512]
    assert {run.train.batch_size * run.model.context for run in check.large_runs(sizes)} == {2**14}
    for optimizer in sizes.ladders:
        sweep = load_config(["sweep=mini/ladder", f"optimizer={optimizer}"]).sweep
        assert sweep.width == [64, 128, 256, 512, 1024]


def test_every_part_runs_and_is_reported(tmp_path):
    out = tmp_path / "out"
    done = call(["bash", str(CHECK / "check.sh"), str(out), "--device", "cpu", "--tiny"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert found.keys() == {"correctness", "throughput", "large", "optimizers", "ladder"}
    assert all(part["finished"] and part["rows"] and "cut" not in part for part in found.values())
    for row in found["correctness"]["rows"]:
        assert row["graph"] == "no graph on cpu" and row["repeat"] == row["resume"] == row["ddp"] == 0 < row["bf16"] < 0.1
    assert {path.name for path in (out / "ladder/muon").iterdir()} >= {"curves.csv", "verdicts.json", "lr_transfer.png"}
    assert not [path for path in out.rglob("*") if path.suffix not in ("", ".json", ".csv", ".png")]

    report = call([sys.executable, str(CHECK / "report.py"), str(out)], tmp_path)
    assert report.returncode == 0 and not report.stderr, report.stderr
    assert all(len(line) <= 80 for line in report.stdout.splitlines())
    for part in found:
        assert f"\n{part}\n" in report.stdout
    assert "no graph on cpu" in report.stdout and "spectral: " in report.stdout and "(aim " in report.stdout


def test_a_part_that_fails_leaves_its_error_and_the_next_one_runs(tmp_path):
    out = tmp_path / "out"
    broken = tmp_path / "conf/optimizer/muon.yaml"  # which comes before the package's own
    broken.parent.mkdir(parents=True)
    broken.write_text("hidden: nonsense\n")
    parts = ["optimizers", "correctness"]
    done = call(["bash", str(CHECK / "check.sh"), str(out), "--device", "cpu", "--tiny", *parts], tmp_path)
    assert done.returncode == 1
    optimizers, correctness = (json.loads((out / f"{part}.json").read_text()) for part in parts)
    assert "optimizer.algorithms" in optimizers["error"] and [row["optimizer"] for row in optimizers["rows"]] == [
        "AdamW",
        "AdamW",
    ]
    assert "error" in correctness and [row["optimizer"] for row in correctness["rows"]] == ["adamw", "adamw"]
    report = call([sys.executable, str(CHECK / "report.py"), str(out)], tmp_path)
    assert "error: spectral_mup.errors.ConfigError: " in report.stdout and "  not run" in report.stdout


def test_missing_packages_are_named_with_what_brings_them(tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    python = bare / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')  # without site-packages
    python.chmod(0o755)
    command = ["bash", str(CHECK / "check.sh"), str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == 2 and "hydra-core" in done.stderr and "-m pip wheel" in done.stderr
    assert not (tmp_path / "out").exists()
