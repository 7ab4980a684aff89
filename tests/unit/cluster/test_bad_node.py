"""What fails before a run is claimed is the node's failure: no run's, said once, and after two such failures it is left out."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import composed
from support.slurm_sweeps import FIXED, ON_SLURM

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.local import MAX_UNFIT, run_local
from spectral_mup.cluster.progress import Event
from spectral_mup.cluster.slurm import requeue
from spectral_mup.cluster.slurm.pack import FAILED, TEMPORARY_FAILURE, Pack, Unfit, begin, give_back
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import Submission, prepare, take
from spectral_mup.cluster.slurm_commands import JobStart
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan


class Array:
    """An array of two tasks with two runs each, whose commands to SLURM are in `told`."""

    def __init__(self, tmp: Path, monkeypatch) -> None:
        self.tmp, self.patch = tmp, monkeypatch
        config = composed(*ON_SLURM, *FIXED, "rule=[spectral]", "sweep.lr=[-6,-4]", "cluster.exclude=n9")
        paths = config.paths.model_copy(update={"runs": str(tmp / "runs"), "jobs": str(tmp / "jobs")})
        config = config.model_copy(update={"paths": paths})
        runs = make_plan(open_sweep(config), lambda p: None).runs
        submission = prepare(tmp / "jobs", snapshot_config(config), [runs[:2], runs[2:]], "", "code")
        self.submission: Submission = take(submission, 1, lambda s: "")
        self.submission.record_job("7")
        self.told: list[tuple] = []
        self.nodes = ["n1", "n2", "n3"]
        monkeypatch.setattr(slurm, "is_cancelled", lambda task: False)
        monkeypatch.setattr(Submission, "runs", lambda s, index: runs[2 * index : 2 * index + 2])
        monkeypatch.setattr(slurm, "nodes", lambda partition: dict.fromkeys(self.nodes, "idle"))
        for name in ("requeue", "exclude"):
            monkeypatch.setattr(slurm, name, lambda *given, name=name: self.told.append((name, *given)))

    def start(self, index: int, restart: int, node: str) -> tuple[Pack, JobStart]:
        """The beginning of a task on a node."""
        env = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": index, "SLURM_RESTART_COUNT": restart}
        for name, value in (env | {"SLURMD_NODENAME": node}).items():
            self.patch.setenv(name, str(value))
        pack, task = Pack.of_this_task(str(self.submission.path))
        begin(pack, task)
        return pack, task

    def end(self, code: int) -> None:
        """The last line of the batch script."""
        before = signal.getsignal(signal.SIGTERM)
        assert requeue.main(str(self.submission.path), str(code)) == 0
        signal.signal(signal.SIGTERM, before)

    def record(self, index: int) -> dict:
        return json.loads((self.submission.path / "tasks" / f"{index}.json").read_text())


@pytest.fixture
def array(tmp_path, monkeypatch):
    return Array(tmp_path, monkeypatch)


def fail_before_a_claim(array: Array, index: int, restart: int, node: str) -> None:
    pack, task = array.start(index, restart, node)
    code = give_back(pack, task, Unfit("ImportError: libcudart.so.12"))
    assert code == TEMPORARY_FAILURE
    array.end(code)


def fail_by_ecc(array: Array, index: int, restart: int, node: str) -> None:
    pack, _ = array.start(index, restart, node)
    pack.folder(pack.runs[0]).write_error("Traceback (most recent call last):\nE: CUDA error: uncorrectable ECC error\n")
    array.end(TEMPORARY_FAILURE)
    pack.folder(pack.runs[0]).archive_error()


def fail_in_the_preamble(array: Array, index: int, restart: int, node: str) -> None:
    """Before `begin`, so that the record is another start's."""
    array.start(index, restart, node)
    array.patch.setenv("SLURM_RESTART_COUNT", str(restart + 100))
    array.end(1)


@pytest.mark.parametrize(
    "fail, cause",
    [(fail_before_a_claim, "launch failure"), (fail_by_ecc, "GPU error"), (fail_in_the_preamble, "launch failure")],
)
def test_a_node_that_fails_twice_is_excluded(array, fail: Callable, cause):
    fail(array, 0, 0, "n1")
    assert array.told == [("requeue", "7_0")] and array.record(0)["cause"] == cause
    fail(array, 0, 1, "n1")
    assert array.told[1:] == [("requeue", "7_0"), ("exclude", "7_0", ["n9", "n1"]), ("exclude", "7", ["n9", "n1"])]
    fail(array, 0, 2, "n2")
    fail(array, 0, 3, "n2")
    assert array.submission.bad_nodes() == ["n1"], "it may be the code; nobody has trained yet"
    pack, _ = array.start(1, 0, "n3")
    pack.on_event(Event("started", pack.runs[0]))
    assert array.submission.bad_nodes() == ["n1", "n2"]
    assert not [run for run in pack.runs if pack.folder(run).error()], "no run has failed"


def test_of_a_team_the_first_rank_alone_records_that_it_cannot_begin(array, caplog):
    """The others know less: what it writes while they read would be lost, as how many starts have saved nothing."""
    pack, task = array.start(0, 0, "n1")
    before = array.record(0)
    array.patch.setenv("SLURM_PROCID", "1")
    assert give_back(pack, task, Unfit("ImportError: libcudart.so.12")) == TEMPORARY_FAILURE
    assert array.record(0) == before and caplog.messages[-1] == "n1, rank 1: ImportError: libcudart.so.12"
    array.patch.setenv("SLURM_PROCID", "0")
    assert give_back(pack, task, Unfit("ImportError: libcudart.so.12")) == TEMPORARY_FAILURE
    assert array.record(0)["state"] == "unfit" and "2 runs are given back" in caplog.text


def test_the_only_node_is_not_excluded(array):
    array.nodes = ["n1"]
    for restart in range(3):
        fail_before_a_claim(array, 0, restart, "n1")
    assert array.told == [("requeue", "7_0")] * 3


def test_what_a_run_or_a_kill_does_is_held_against_no_node(array):
    pack, _ = array.start(1, 0, "n2")
    pack.on_event(Event("started", pack.runs[0]))
    for restart in range(3):
        array.start(0, restart, "n1")
        array.end(137)
    assert array.told == [("requeue", "7_0")] * 3 and array.record(0)["cause"] == "killed"
    pack, _ = array.start(0, 3, "n1")
    pack.write_task(state="ended")
    array.end(FAILED)
    assert len(array.told) == 3 and array.submission.bad_nodes() == []


def test_a_node_that_is_bad_for_every_task_ends_them_after_the_retries(array):
    for restart in range(6):
        fail_before_a_claim(array, 0, restart, f"n{restart}")
    assert array.told == [("requeue", "7_0")] * 5 and array.record(0)["detail"] == "on n5: ImportError: libcudart.so.12"


@pytest.mark.parametrize(
    "torch, told", [("raise ImportError('libcudart.so.12')", ["unfit"] * MAX_UNFIT), ("import os; os._exit(132)", [])]
)
def test_workers_that_cannot_begin_here_fail_no_run_and_end_the_launch(tiny, tmp_path, monkeypatch, torch, told):
    """torch's import raises, which the worker reports, or ends the process, as on a processor that is too old for it."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "torch.py").write_text(torch)
    monkeypatch.syspath_prepend(str(hook))
    config = tiny("cluster.workers=2", "lr.adaptive=false")
    runs = make_plan(open_sweep(config), lambda p: None).runs
    events = []
    with pytest.raises(Unfit, match="no worker can begin on .*(libcudart|exit code 132)"):
        run_local(config, lambda: runs, events.append)
    assert [e.kind for e in events][:MAX_UNFIT] == told and {e.kind for e in events} <= {"unfit"}
    assert not list((tmp_path / "runs").glob("*/error.txt"))
