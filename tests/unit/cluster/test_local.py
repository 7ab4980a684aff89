"""Which run is trained next on this machine. Nothing is trained, and no time passes but that of a clock of the tests."""

import itertools
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from support.cli import planned
from support.runs import TINY, composed

from spectral_mup.cluster import local
from spectral_mup.cluster.local import run_here
from spectral_mup.cluster.progress import Event


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a sleep moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(local.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(local.time, "sleep", lambda seconds: setattr(now, "seconds", now.seconds + seconds))
    return now


def test_a_run_that_another_process_has_keeps_this_one_from_no_other(clock, monkeypatch):
    """In one process, as in a pool of workers: it is tried again once the others are done, and then every two seconds."""
    runs = planned(TINY)
    tried, done = [], set()

    def execute(run, *_):
        tried.append(run)
        if run is runs[0] and clock.seconds < 1005:
            return Event("claimed", run, {"why": "another process has it"})
        done.add(run.run_id)
        return Event("done", run, {})

    worker = SimpleNamespace(execute=execute, tracker=SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(local.Worker, "start", lambda config: worker)
    rounds = itertools.count()

    def stop() -> bool:
        return next(rounds) > 20

    assert run_here(composed(*TINY), lambda: [r for r in runs if r.run_id not in done], lambda event: None, stop) == {}
    assert len(done) == len(runs) and tried == [*runs, *[runs[0]] * 3] and clock.seconds == 1006


def test_after_a_worker_s_death_the_runs_are_listed_anew(monkeypatch):
    """As after every other end of a run: the one that died may be the last of its curve, or be given up."""
    run, ended = planned(TINY)[0], []
    worker = Mock(handles=["pipe"], run=run, begun=True, receive=list, exit_code=-9)
    monkeypatch.setattr(local, "wait", lambda handles, timeout: list(handles))
    pool = local.WorkerPool(composed(*TINY), SimpleNamespace(gpus=[]), ended.append)
    assert not pool.collect()  # the control: nobody has died
    pool._workers = [worker]
    assert pool.collect() and [event.kind for event in ended] == ["died"]
