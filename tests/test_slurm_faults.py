"""What goes wrong on a cluster, done to a real SLURM: every Point still ends once, with the bytes of an unbroken sweep, or what
status and why say of it is true."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_point
from launches import contents, kill, leftovers, read, until
from slurm_sweeps import ON_SLURM, Site

from spectral_mup import data
from spectral_mup.cluster.reconcile import State, reconcile
from spectral_mup.config import load_config
from spectral_mup.process import process_start
from spectral_mup.record import RunFolder
from spectral_mup.sweep import open_sweep

LONG = [
    *TINY, "rule=[spectral]", "lr.adaptive=false", "train.steps=600", "probe.steps=[1,300]", "cluster.log_every=5",
    "cluster.checkpoint_seconds=0.1", "sweep.name=long",
]  # fmt: skip
PAIR = [*LONG, "sweep.width=[32]", "sweep.lr=[-8,-6]"]  # two Points in one task
SHAPES = [*LONG, "sweep.width=[32,64]", "sweep.lr=[-6]"]  # a task each


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """After each test no process of its commands is left; the fixtures of the cluster see to its jobs."""
    yield
    assert not (left := leftovers(tmp_path)), f"processes were left: {left}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """contents() of PAIR and SHAPES, trained in this very process without a break."""
    runs = tmp_path_factory.mktemp("unbroken") / "runs"
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    points = {p.run_id: p for name in (PAIR, SHAPES) for p in open_sweep(load_config(name)).plan(lambda p: None).todo}
    for point in points.values():
        run_point(point, runs, corpus)
    return contents(runs)


class Faulty(Site):
    """A Site whose states are looked up in this process, and whose jobs can be harmed."""

    def __init__(self, tmp: Path, cluster, overrides: list[str]) -> None:
        super().__init__(tmp, cluster)
        self.overrides = overrides
        paths = [f"paths.runs={self.runs}", f"paths.jobs={self.jobs}"]
        self._points = open_sweep(load_config([*ON_SLURM, *overrides, *paths])).plan(lambda p: None).points

    def launch(self, *more: str, code: int = 0):
        launch = self.call([*self.overrides, *more])
        assert launch.code == code, launch.out + launch.err
        return launch

    def now(self) -> list[State]:
        """States of the Points in the sweep's order."""
        return list(reconcile(self.runs, self.jobs, self._points).states.values())

    def wait(self, what: str, condition) -> list[State]:
        """The first states of which `condition` holds."""
        found = []

        def met() -> bool:
            found[:] = self.now()
            time.sleep(0.1)
            return condition(found)

        try:
            until(met, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{[(s.name, s.cause, s.detail) for s in found]}\n{self.log()}") from None
        return found

    def hurry(self, job: str) -> None:
        """A job that was queued again need not wait out its credential."""
        self.cluster.until("hurry", lambda: self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now") == "", 20)

    def ends_like(self, unbroken: dict[str, list[bytes]]) -> None:
        """Wait until all Points have results and no job is left; the bytes must be those of the unbroken sweep."""
        self.wait("the end", lambda states: all(s.name == "done" for s in states))
        self.until_idle()
        assert self.contents() == {p.run_id: unbroken[p.run_id] for p in sorted(self._points, key=lambda p: p.run_id)}

    def processes(self, *words: str) -> list[int]:
        """Processes of Python in this Site's jobs with these arguments."""
        mark = str(self.jobs).encode()

        def matches(pid: int) -> bool:
            arguments = read(f"/proc/{pid}/cmdline").split(b"\0")
            if b"python" not in arguments[0] or not all(any(w.encode() in a for a in arguments) for w in words):
                return False
            return mark in read(f"/proc/{pid}/environ") and process_start(pid) is not None

        return [pid for pid in self.cluster.job_pids() if matches(pid)]

    def tasks(self) -> list[int]:
        return self.processes("-m", "spectral_mup.cluster.task")

    def workers(self) -> list[int]:
        return self.processes("spawn_main")

    def hold_mid_run(self) -> dict[str, int]:
        """Stop (SIGSTOP) each worker as soon as its run has a new checkpoint; pids by run. SLURM's warnings wake them."""
        before = {p.run_id: newest_checkpoint(self.runs / p.run_id) for p in self._points}
        held: dict[str, int] = {}

        def all_held() -> bool:
            for run_id in before.keys() - held.keys():
                folder = RunFolder(self.runs, run_id)
                if newest_checkpoint(folder.path) > before[run_id] and process_start(pid := folder.owner()["pid"]):
                    os.kill(pid, signal.SIGSTOP)
                    held[run_id] = pid
            assert not list(self.runs.glob("*/result.json")), "too late: raise train.steps"
            return held.keys() == before.keys()

        try:
            until(all_held, "a checkpoint of every run")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return held

    def go_on(self, pids) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def occupy(self, *options: str) -> str:
        """Give nodes to a job of the partition `high`, which preempts ours; its id."""
        return self.cluster.run(
            "sbatch", "--parsable", "--partition=high", "--exclusive", *options, "--output=/dev/null", "--wrap=sleep 600"
        ).strip()

    def free(self, job: str) -> None:
        self.cluster.run("scancel", job)

    def starts(self) -> list[list[int]]:
        """SLURM's count of restarts at each attempt, by run in the sweep's order."""
        owners = self.attempts()
        return [[o["slurm"]["restart"] for o in owners[p.run_id]] for p in self._points]


def newest_checkpoint(folder: Path) -> int:
    return max((int(p.stem) for p in folder.glob("ckpt/*.pt") if p.stem.isdigit()), default=0)


@pytest.fixture
def site(tmp_path, slurm, monkeypatch):
    """Function of overrides to a Faulty on the shared cluster."""
    return maker(tmp_path, slurm, monkeypatch)


@pytest.fixture
def site_with(tmp_path, slurm_with, monkeypatch):
    """Function of a cluster's settings to such a function."""
    return lambda **settings: maker(tmp_path, slurm_with(**settings), monkeypatch)


def maker(tmp_path, cluster, monkeypatch):
    client = cluster.env()
    for name in [k for k in os.environ if k.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", client["SLURM_CONF"])
    monkeypatch.setenv("PATH", client["PATH"])
    return lambda overrides: Faulty(tmp_path, cluster, overrides)


# --- preemption -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_preempted_element_starts_again_and_resumes(site, unbroken):
    """Two elements, a node each, without grace; the limit of 5 minutes is as near as a warning for it would be."""
    here = site([*SHAPES, "cluster.workers=1", "cluster.cpus=5", "cluster.time=5"])
    here.launch()
    here.wait("both", lambda states: [s.name for s in states] == ["running"] * 2)
    held = here.hold_mid_run()
    states = here.now()
    victim = next(i for i, s in enumerate(states) if "127.0.0.2" in s.detail)
    other = 1 - victim
    saved = newest_checkpoint(here.runs / states[victim].point.run_id)
    high = here.occupy("--nodelist=127.0.0.2")
    states = here.wait("the preemption", lambda states: states[victim].name == "preempted")
    assert (states[victim].cause.name, states[other].name) == ("preempted", "running")
    said = here.launch("action=status").out
    assert "1 running, 1 preempted" in said, said
    assert "preempted (1 points, it goes on by itself): its place went to a job" in here.launch("action=why").out
    here.go_on([held[states[other].point.run_id]])
    here.free(high)
    here.hurry(states[victim].job)
    resumed = newest_checkpoint(here.runs / states[victim].point.run_id)
    here.ends_like(unbroken)
    assert resumed >= saved
    assert here.starts()[victim] == [0, 1] and here.starts()[other] == [0] and len(here.numbered()) == 1


@pytest.mark.slow
def test_a_graced_preemption_of_a_short_job_is_no_time_limit(site_with, unbroken):
    """With GraceTime the task is warned, saves, queues itself again and is not warned of a limit of 5 minutes."""
    here = site_with(grace=15)([*PAIR, "cluster.time=5"])
    here.launch()
    here.hold_mid_run()
    high = here.occupy("--nodes=2")
    states = here.wait("the preemption", lambda states: [s.name for s in states] == ["preempted"] * 2)
    assert {s.cause.name for s in states} == {"preempted"} and "stopped (preempted), all is saved; queued again" in here.log()
    assert "time limit" not in here.launch("action=why").out
    here.free(high)
    here.hurry(states[0].job)
    here.ends_like(unbroken)
    assert here.starts() == [[0, 1]] * 2 and len(here.numbered()) == 1


# --- processes that are killed ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_task_is_queued_again_a_bounded_number_of_times(site, unbroken):
    """kill -9 of the task, twice with one retry; launched again, of a worker, which is replaced inside the task."""
    here = site([*PAIR, "cluster.retries=1"])
    here.launch()
    job = here.wait("the job", lambda states: states[0].job)[0].job
    for kills, what in ((1, "queued again"), (2, "the end of the job")):
        workers = here.hold_mid_run()
        (task,) = here.tasks()
        kill(task)
        here.go_on(p for p in workers.values() if process_start(p))
        if kills == 1:
            states = here.wait(what, lambda states: {s.name for s in states} == {"queued"} and states[0].cause)
            assert {s.cause.name for s in states} == {"killed"}
            here.hurry(job)
    states = here.wait(what, lambda states: {s.name for s in states} == {"failed"})
    assert {(s.cause.name, s.detail) for s in states} == {("killed", f"job {job}, 2 times")}
    assert "killed (2 points, launch begins it again): its process was ended from outside" in here.launch("action=why").out
    here.until_idle()
    assert "killed (exit code 137), 2 points left: queued again, time 1 of 1" in here.log()
    assert "killed 2 times (exit code 137): not queued again" in here.log()
    here.launch()
    held = here.hold_mid_run()
    first, *_, last = held.values()
    kill(first)
    here.go_on([last])
    here.ends_like(unbroken)
    assert here.log().count("its worker died (exit code -9), it goes to another") == 1
    assert sorted(map(len, here.starts())) == [3, 4] and len(here.numbered()) == 2
