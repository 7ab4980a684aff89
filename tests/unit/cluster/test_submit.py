"""What a launch does while sbatch gives no answer. Nothing is submitted, and no time passes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm import submit


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
