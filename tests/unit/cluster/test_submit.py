"""What a launch does while sbatch gives no answer, and with what earlier ones left. Nothing is submitted, no time passes."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.runs import TINY, composed
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm import submit
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan


def test_after_the_last_try_nothing_is_waited_for(monkeypatch):
    waits: list[float] = []

    def sbatch(script: Path) -> str:
        waits.append(0)
        raise slurm.NoAnswer("timed out")

    monkeypatch.setattr(submit.time, "sleep", lambda seconds: waits.append(seconds) if seconds else None)
    monkeypatch.setattr(slurm, "sbatch", sbatch)
    monkeypatch.setattr(slurm, "squeue", dict)
    with pytest.raises(submit.Incomplete, match="does not answer: timed out; submitted so far: nothing"):
        submit._sbatch(SimpleNamespace(script=Path("submit.sh"), name="spectral_mup-x"), [])
    assert [wait > 0 for wait in waits] == [False, True] * (submit.ATTEMPTS - 1) + [False]


def test_what_killed_launchers_have_left_half_made_is_removed_after_a_day(tmp_path):
    """And nothing else: what a launch prepares just now, and every numbered folder and every copy of the code, however old."""
    names = ["new.0a", "new.0b", "1", "code", "code/new.0c", "code/new.0d", "code/0123456789abcdef"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in names:
        if name not in ("new.0b", "code/new.0d"):
            os.utime(tmp_path / name, (0, time.time() - submit.UNFINISHED_SECONDS - 60))
    config = composed(*TINY, *ON_SLURM, f"paths.runs={tmp_path / 'runs'}", f"paths.jobs={tmp_path}")
    sweep = open_sweep(config)
    assert submit.submit(config, sweep, lambda: make_plan(sweep, lambda run: None), lambda state: False) == []
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert {*names} - left == {"new.0a", "code/new.0c"}
