"""A team of processes on SLURM: which run it trains next, and what each of them records. Nothing is trained."""

import itertools
import signal
from types import SimpleNamespace

import pytest
from support.runs import TINY, composed, first_point

from spectral_mup.cluster.slurm import array_task
from spectral_mup.cluster.slurm.pack import StopSignals
from spectral_mup.cluster.worker import Worker
from spectral_mup.runs.run_folder import RunFolder


@pytest.fixture
def stopping(monkeypatch) -> StopSignals:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return StopSignals()


def test_a_team_that_waits_for_another_s_run_hears_slurm_s_warning(tmp_path, monkeypatch, stopping):
    """Which ends the task soon after, whether or not it has asked to be queued again."""
    run = first_point(composed(*TINY))
    owner = RunFolder(tmp_path, run.run_id)
    owner.write_config(run.to_json())
    owner.claim()
    worker = Worker(composed(*TINY), None, SimpleNamespace(type="cpu"), None)
    pack = SimpleNamespace(todo=lambda: [run], folder=lambda run: RunFolder(tmp_path, run.run_id), on_event=lambda event: None)
    waits = itertools.count(1)

    def sleep(seconds: float) -> None:
        if (wait := next(waits)) == 3:
            stopping.signals.append(signal.SIGUSR2)
        assert wait < 5, "it was warned"

    monkeypatch.setattr(array_task.time, "sleep", sleep)
    assert array_task._claim_next(pack, worker, stopping) is None and next(waits) == 4
