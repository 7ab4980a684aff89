"""The project that `init` writes runs as it is: three rules, an optimizer and a model of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_new_project_is_trained_and_judged(tmp_path):
    def run(*words: str, cwd: Path = tmp_path) -> str:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "spectral_mup", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    run("init", "demo")
    demo = tmp_path / "demo"
    shown = run("launch", "--help", cwd=demo)
    assert all(name in shown for name in ("my_rule", "my_optimizer", "my_model", "mine"))
    assert "blocks.*.mlp.up.weight" in run("launch", "sweep=mine", "action=explain", cwd=demo)
    run("launch", "sweep=mine", cwd=demo)
    run("analyze", "sweep=mine", cwd=demo)
    verdicts = json.loads((demo / "results" / "mine" / "verdicts.json").read_text())["verdicts"]
    assert {v["rule"] for v in verdicts} == {"spectral", "my_rule", "standard"}
    results = [json.loads(path.read_text()) for path in (demo / "runs").glob("*/result.json")]
    assert len(results) == 28 and any(result["status"] == "done" for result in results)
