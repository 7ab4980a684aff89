"""Whose failure a run has: that of the process, or the team, that holds it. Workers here have no torch."""

import json
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.cli import RESULT
from support.runs import TINY, bury, composed, first_point

from spectral_mup import data
from spectral_mup.cluster import worker as module
from spectral_mup.cluster import worker_process
from spectral_mup.cluster.slurm import array_task
from spectral_mup.cluster.worker import Worker
from spectral_mup.runs.run_folder import ClaimedError, RunFolder


@pytest.fixture
def worker(tmp_path, monkeypatch) -> Worker:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "provenance", lambda *_: {})
    config = composed(*TINY)
    paths = config.paths.model_copy(update={"runs": str(tmp_path)})
    tracker = SimpleNamespace(start=lambda *_: None, log=lambda *_: None, finish=lambda *_: None)
    return Worker(config.model_copy(update={"paths": paths}), None, SimpleNamespace(type="cpu"), tracker)


class Team:
    """A rank of two, and what the first sends it."""

    size = 2

    def __init__(self, rank: int, sent: list) -> None:
        self.rank, self.is_main, self.sent = rank, rank == 0, sent

    def broadcast(self, value):
        if self.is_main:
            self.sent.append(value)
        return self.sent.pop(0) if not self.is_main else value


SINGLE = SimpleNamespace(size=1, rank=0, is_main=True, broadcast=lambda value: value)


def test_who_fails_before_it_has_a_run_says_nothing_of_one_that_another_trains(worker, tmp_path, monkeypatch):
    """As a launch whose text has changed meanwhile: the run would count as failed for good where its owner is preempted."""
    run = first_point(worker.config)
    owner, latecomer = RunFolder(tmp_path, run.run_id), RunFolder(tmp_path, run.run_id)
    owner.write_config(run.to_json())
    owner.claim()
    monkeypatch.setattr(data, "fingerprint", lambda *_: "changed")
    event = worker.begin(run, latecomer)
    assert event.kind == "claimed" and "is claimed by process" in event.payload["why"]
    assert owner.error() is None
    bury(owner)
    assert worker.begin(run, latecomer).kind == "failed"  # the control: nobody has it any more
    assert "the text, or the code of data.target, has changed" in (owner.error() or "")


def test_a_team_loses_its_claim_as_a_whole(worker, tmp_path, monkeypatch):
    """A rank that fails once another process has taken the run over, its own team being believed dead, writes nothing."""
    run, sent = first_point(worker.config), []
    abandoned: list[RunFolder] = []

    def fail(folder, rank, error, tell):
        abandoned.append(folder)
        raise SystemExit

    def train(self, run, folder, should_stop, send, processes):
        raise RuntimeError("x")

    monkeypatch.setattr(module, "abandon", fail)
    monkeypatch.setattr(Worker, "train", train)
    for rank in (0, 1):
        with pytest.raises(SystemExit):
            worker.execute(run, lambda: False, lambda event: None, Team(rank, sent))
    first, second = abandoned
    second.write_error("of the second rank")
    assert first.error() == "of the second rank"
    bury(first)
    RunFolder(tmp_path, run.run_id).claim()
    for folder in abandoned:
        with pytest.raises(ClaimedError, match="taken over"):
            folder.write_error("late")
    assert first.error() is None


def test_a_run_that_cannot_be_begun_is_not_tried_for_ever(worker, tmp_path, monkeypatch):
    """By a task on SLURM, where a cause that passes leaves the run to be done."""
    runs = [first_point(worker.config, log2_lr=lr) for lr in (-6, -4)]
    events: list[str] = []
    pack = SimpleNamespace(
        todo=lambda: runs,
        folder=lambda run: RunFolder(tmp_path, run.run_id),
        on_event=lambda event: events.append(event.kind),
    )
    rests = iter([None, None])
    monkeypatch.setattr(array_task.time, "sleep", lambda seconds: next(rests))
    with monkeypatch.context() as broken:
        broken.setattr(RunFolder, "claim", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert array_task._claim_next(pack, worker, lambda: False) is None and events == ["failed", "failed"]
    claimed = array_task._claim_next(pack, worker, lambda: False)  # the control
    assert claimed is not None and claimed.run_id == runs[0].run_id and events[2:] == ["started"]
    assert json.loads((claimed.path / "attempts/1/owner.json").read_text())["nonce"] == claimed.nonce


def test_a_run_that_is_resumed_says_how_many_steps_it_trained_now(worker, monkeypatch):
    """From which the time of others is told, by its launcher at once and by later ones."""
    run = first_point(worker.config)

    def train_run(run, folder, corpus, *, on_rows, **more):
        on_rows([{"step": step, "loss": 2.0} for step in (9, 10)])
        on_rows([{"step": step, "loss": 2.0} for step in (11, 12)])
        folder.finish(RESULT)
        return RESULT

    monkeypatch.setitem(sys.modules, "spectral_mup.training.run", SimpleNamespace(train_run=train_run))
    event = worker.execute(run, lambda: False, lambda event: None, SINGLE)
    folder = RunFolder(Path(worker.config.paths.runs), run.run_id)
    assert event.kind == "done" and event.payload["steps"] == 12, event.payload
    assert event.payload["trained"] == folder.read("timing.json")["steps"] == 4
    assert worker.execute(run, lambda: False, lambda event: None, SINGLE).payload["trained"] == 0


def test_every_process_of_a_worker_is_known_by_its_name(worker, monkeypatch):
    """A second Ctrl-C kills those of this name, and no other child of the launch."""
    made: list[dict] = []

    def process(**given):
        made.append(given)
        return SimpleNamespace(start=lambda: None)

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)
    monkeypatch.setattr(worker_process.mp, "get_context", lambda method: context)
    monkeypatch.setattr(worker_process.resource_tracker, "ensure_running", lambda: None)
    team = worker_process.WorkerProcess(worker.config, 0, ["0", "1"])
    assert [given["name"] for given in made] == [module.WORKER] * 2
    team.close()
