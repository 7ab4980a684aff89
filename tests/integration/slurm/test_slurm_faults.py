"""What goes wrong on a cluster, done to a real SLURM: every run still ends once, with the bytes of an unbroken sweep, or what
status and why say of it is true."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.launches import kill, newest_checkpoint, planned, read, snapshot, trained, until
from support.runs import TINY, composed
from support.slurm_sweeps import HELD, ON_SLURM, Site

from spectral_mup.cli import main as cli
from spectral_mup.cli import status as cli_status
from spectral_mup.cluster.liveness import is_owner_running
from spectral_mup.cluster.slurm import commands
from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.commands import ArrayTaskId
from spectral_mup.cluster.slurm.run_states import State, reconcile, signature
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.training.checkpoint import save_checkpoint
from spectral_mup.training.distributed import ProcessGroup
from spectral_mup.util.processes import process_start

LONG = [
    *TINY, "rule=[spectral]", "lr.adaptive=false", "train.steps=400", "probe.steps=[1,200]", "cluster.log_every=10",
    "cluster.checkpoint_seconds=0.2", "sweep.name=long",
]  # fmt: skip
NODE = "127.0.0.1"  # the first, where a job goes when all are idle
ONE = [*LONG, "sweep.width=[32]", "sweep.lr=[-6]"]
pytestmark = pytest.mark.usefixtures("nothing_left")
PAIR = [*ONE, "sweep.lr=[-8,-6]"]  # two runs in one task
SHAPES = [*LONG, "sweep.width=[32,64]", "sweep.lr=[-6]"]  # a task each
EIGHT = [
    *TINY, "rule=[spectral]", "lr.adaptive=false", "sweep.width=[32]", "sweep.lr=[-8,-6,-5,-4]", "sweep.seed=[0,1]",
    "sweep.name=eight",
]  # fmt: skip
QUICK = [*EIGHT, "sweep.lr=[-6]", "sweep.seed=[0,1,2]", "cluster.workers=1"]  # of twelve steps


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """contents() of all sweeps here, trained in this very process without a break."""
    return trained(tmp_path_factory.mktemp("unbroken") / "runs", ONE, PAIR, SHAPES, EIGHT, QUICK)


class Faulty(Site):
    """A Site whose states are looked up in this process, and whose jobs can be harmed."""

    def __init__(self, tmp: Path, cluster, overrides: list[str]) -> None:
        super().__init__(tmp, cluster)
        self.overrides = overrides
        self.argv = [*ON_SLURM, *overrides, f"paths.runs={self.runs}", f"paths.jobs={self.jobs}"]
        self.planned = planned(self.argv)

    def launch(self, *more: str, code: int = 0):
        launch = self.call([*self.overrides, *more])
        assert launch.code == code, launch.out + launch.err
        return launch

    def says(self, action: str) -> str:
        """What a command prints that only looks; called in this process, before the states change."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            assert cli.guard(lambda: cli.launch([*self.argv, f"action={action}"])) == 0, out.getvalue()
        return out.getvalue()

    def why(self, cause: str) -> tuple[int, str]:
        """What action=why says of a cause."""
        return fate(self.says("why"), cause)

    def now(self) -> list[State]:
        """States of the runs in the sweep's order."""
        return list(reconcile(self.runs, self.jobs, self.planned).states.values())

    def wait(self, what: str, condition) -> list[State]:
        """The first states of which `condition` holds."""
        found = []

        def met() -> bool:
            found[:] = self.now()
            time.sleep(0.25)
            return condition(found)

        try:
            until(met, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{[(s.name, s.cause, s.detail) for s in found]}\n{self.log()}") from None
        return found

    def ends_like(self, unbroken: dict[str, list[bytes]]) -> None:
        """Wait until all runs have results and no job is left; the bytes must be those of the unbroken sweep."""
        self.wait("the end", lambda states: all(s.name == "done" for s in states))
        self.until_idle()
        assert self.contents() == {p.run_id: unbroken[p.run_id] for p in sorted(self.planned, key=lambda p: p.run_id)}

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
        return self.processes("-m", "spectral_mup.cluster.slurm.array_task")

    def workers(self) -> list[int]:
        return self.processes("spawn_main")

    def hold_mid_run(self) -> dict[str, int]:
        """Stop (SIGSTOP) each worker as soon as its run has a new checkpoint; pids by run. SLURM's warnings wake them."""
        before = {p.run_id: newest_checkpoint(self.runs / p.run_id) for p in self.planned}
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
        return [[o["slurm"]["restart"] for o in owners[p.run_id]] for p in self.planned]


def fate(text: str, cause: str) -> tuple[int, str]:
    """Of a cause in the output of action=why: how many runs have it, and whether each resumes, is left to the next launch, or
    is not retried."""
    found = re.search(rf"^{cause} \((\d+) \w+, ([^)]*)\)", text, re.M)
    assert found, text
    return int(found[1]), "not" if found[2].startswith("not ") else "launch" if "launch" in found[2] else "resumes"


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
    saved = newest_checkpoint(here.runs / states[victim].run.run_id)
    high = here.occupy("--nodelist=127.0.0.2")
    states = here.wait("the preemption", lambda states: states[victim].name == "preempted")
    assert (states[victim].cause.name, states[other].name) == ("preempted", "running")
    said = here.says("status")
    assert "1 running, 1 preempted" in said, said
    assert here.why("preempted") == (1, "resumes")
    here.go_on([held[states[other].run.run_id]])
    here.free(high)
    resumed = newest_checkpoint(here.runs / states[victim].run.run_id)
    here.ends_like(unbroken)
    assert resumed >= saved
    assert here.starts()[victim] == [0, 1] and here.starts()[other] == [0] and len(here.numbered()) == 1


@pytest.mark.slow
def test_a_graced_preemption_of_a_short_job_is_no_time_limit(site_with, unbroken):
    """With GraceTime the task is warned, saves, queues itself again and is not warned of a limit of 5 minutes."""
    here = site_with(grace=15)([*ONE, "cluster.time=5"])
    here.launch()
    here.hold_mid_run()
    high = here.occupy("--nodes=2")
    states = here.wait("the preemption", lambda states: [s.name for s in states] == ["preempted"])
    assert {s.cause.name for s in states} == {"preempted"} and "stopped (preempted), all is saved; queued again" in here.log()
    assert "time limit" not in here.says("why")
    here.free(high)
    here.ends_like(unbroken)
    assert here.starts() == [[0, 1]] and len(here.numbered()) == 1


@pytest.mark.slow
def test_where_preemption_cancels_the_task_queues_itself_again(site_with, unbroken):
    """PreemptMode=CANCEL without grace: SLURM queues nothing again, but grants it to who asks before the end."""
    here = site_with(preempt="CANCEL")(ONE)
    here.launch()
    here.hold_mid_run()
    high = here.occupy("--nodes=2")
    here.wait("the preemption", lambda states: states[0].name == "preempted" and states[0].live)
    here.free(high)
    here.ends_like(unbroken)
    assert here.starts() == [[0, 1]] and len(here.numbered()) == 1


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
    states = here.wait(what, lambda states: {s.name for s in states} == {"failed"})
    assert {(s.cause.name, s.detail) for s in states} == {("killed", f"job {job}, 2 times")}
    assert here.why("killed") == (2, "launch")
    here.until_idle()
    assert "killed (exit code 137), 2 runs left: queued again, time 1 of 1" in here.log()
    assert "killed 2 times (exit code 137): not queued again" in here.log()
    here.launch()
    held = here.hold_mid_run()
    first, *_, last = held.values()
    kill(first)
    here.go_on([last])
    here.ends_like(unbroken)
    assert here.log().count("its worker died (exit code -9)") == 1
    assert sorted(map(len, here.starts())) == [3, 4] and len(here.numbered()) == 2


# --- time limits ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_time_limit_of_a_minute_is_gone_past(site, unbroken):
    """SLURM warns by itself, 15 to 45 s after the start; all is saved, queued again and done."""
    here = site([*ONE, "cluster.time=1", "cluster.signal_seconds=15"])
    here.launch()
    held = here.hold_mid_run()
    (task,) = here.tasks()
    pipes = len(os.listdir(f"/proc/{task}/fd"))
    until(lambda: len(os.listdir(f"/proc/{task}/fd")) < pipes, "SLURM's warning, at which the task closes its pipes")
    here.go_on(held.values())
    states = here.wait("the queue", lambda states: {s.name for s in states} == {"queued"} and all(s.cause for s in states))
    assert {s.cause.name for s in states} == {"time limit"}
    here.ends_like(unbroken)
    assert all(starts[:2] == [0, 1] for starts in here.starts()) and len(here.numbered()) == 1  # more on a busy machine


@pytest.mark.slow
def test_a_time_limit_without_progress_ends_after_two_starts(site, unbroken):
    """Workers are stopped before their first step; the warning comes by hand, the limit of a minute being near."""
    here = site([*ONE, "cluster.time=1", "cluster.signal_seconds=2", "cluster.workers=1"])
    here.launch()
    job = here.now()[0].job
    for start in (1, 2):
        (worker,) = until(here.workers, "a worker")
        os.kill(worker, signal.SIGSTOP)
        here.cluster.run("scancel", "--signal=USR2", job)
        if start == 1:
            here.wait("the queue", lambda _: here.cluster.run("squeue", "--noheader", "--states=PENDING").strip())
    states = here.wait("the end", lambda states: {s.name for s in states} == {"failed"})
    assert {(s.cause.name, s.detail) for s in states} == {("no progress", "2 starts of 1 min saved no step")}
    here.until_idle()
    assert here.log().count("queued again") == 1
    said = here.launch().out
    assert "1 failed" in said and "action=retry" in said and len(here.numbered()) == 1
    assert causes.STUCK.advice in here.says("why")
    here.launch("action=retry", "cluster.time=10")
    here.ends_like(unbroken)


@pytest.mark.slow
def test_starts_that_save_nothing_are_bounded_whatever_ends_them(site, unbroken):
    """Preemptions and lost nodes may come for ever. After six such starts five retries end it, six train."""
    here = site(QUICK)

    def start_for_the_seventh_time(*more: str) -> list[State]:
        here.launch(HELD, *more)
        folder = here.numbered()[-1]
        (folder / "tasks/0.json").write_text(json.dumps({"progress": 0, "starts_without_progress": 6}))
        here.cluster.run("scontrol", "release", json.loads((folder / "job.json").read_text())["id"])
        return here.wait("the end", lambda states: {s.name for s in states} <= {"failed", "done"})

    states = start_for_the_seventh_time("cluster.retries=5")
    assert {(s.cause.name, s.detail) for s in states if s.cause} == {(STUCK, "6 starts saved no step")}
    here.until_idle()
    assert "3 failed" in here.launch().out and len(here.numbered()) == 1
    start_for_the_seventh_time("cluster.retries=6", "action=retry")
    here.ends_like(unbroken)


# --- jobs that end, or vanish, without a result -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_without_a_result_is_told_from_a_lost_one(site_with, unbroken, tmp_path):
    """SLURM says COMPLETED, then forgets it while the accounting is down. Launched again, it is submitted."""
    preamble = tmp_path / "site.sh"
    preamble.write_text("exit 0\n")
    here = site_with(min_job_age=5)([*QUICK, f"cluster.preamble={preamble}"])
    here.launch()
    states = here.wait("the end of the job", lambda states: {s.name for s in states} == {"failed"})
    assert {(s.cause.name, s.detail) for s in states} == {("no result", f"job {states[0].job} completed on {NODE}")}
    assert here.why("no result") == (3, "launch")
    here.cluster.stop_slurmdbd()
    submission = here.numbered()[0] / "submission.json"
    record = json.loads(submission.read_text())
    submission.write_text(json.dumps(record | {"created": record["created"] - 600}))
    states = here.wait("SLURM to forget the job", lambda states: {s.name for s in states} == {"lost"})
    assert not here.cluster.run("squeue", "--noheader", "--states=all").strip()
    said = here.says("status")
    assert "3 lost" in said and "note: sacct does not answer" in said
    assert here.why("lost") == (3, "launch")
    preamble.write_text("")
    assert "Submitted job" in here.launch().out
    here.ends_like(unbroken)
    assert len(here.numbered()) == 2 and here.starts() == [[0]] * 3


@pytest.mark.slow
def test_a_log_folder_that_is_gone_is_a_launch_failure(site, unbroken):
    """SLURM cannot open the log (exit code 0:53) and writes nothing. Launched again, it runs."""
    here = site(QUICK)
    high = here.occupy("--nodes=2")
    here.launch()
    shutil.rmtree(here.numbered()[0] / "log")
    here.free(high)
    states = here.wait("the end of the job", lambda states: {s.name for s in states} == {"failed"})
    assert {s.cause.name for s in states} == {"launch failure"}
    said = here.says("why")
    assert fate(said, "launch failure") == (3, "launch") and f"{here.numbered()[0]}/log/: " in said
    here.launch()
    here.ends_like(unbroken)
    assert here.starts() == [[0]] * 3


@pytest.mark.slow
def test_the_loss_of_a_node_sends_its_element_to_another(site, unbroken):
    here = site([*SHAPES, "cluster.cpus=5"])
    here.launch()
    held = here.hold_mid_run()
    states = here.now()
    victim = next(i for i, s in enumerate(states) if "127.0.0.2" in s.detail)
    here.cluster.kill_node("127.0.0.2")
    states = here.wait("the queue", lambda states: states[victim].name == "queued" and states[victim].cause)
    assert states[victim].cause.name == "node failure" and causes.NODE.advice in here.says("why")
    here.go_on([held[states[1 - victim].run.run_id]])  # and leave its node to the other
    here.ends_like(unbroken)
    assert here.starts()[victim] == [0, 1] and here.starts()[1 - victim] == [0] and len(here.numbered()) == 1


# --- runs that fail ---------------------------------------------------------------------------------------------------


def obstacles(here: Faulty, run_ids) -> list[Path]:
    """Folders where these runs must write norms.jsonl: they fail with IsADirectoryError."""
    made = [here.runs / run_id / "norms.jsonl" for run_id in run_ids]
    for folder in made:
        folder.mkdir(parents=True)
    return made


@pytest.mark.slow
def test_five_failures_alike_hold_the_rest_until_retry(site, unbroken):
    here = site([*EIGHT, "cluster.workers=1", "cluster.cpus=1"])
    made = obstacles(here, [p.run_id for p in here.planned])
    here.launch()
    states = here.wait("the end", lambda states: {s.name for s in states} == {"failed", "paused"})
    here.until_idle()
    failed = [s for s in states if s.name == "failed"]
    assert len(failed) in (5, 6) and {s.cause.name for s in failed} == {"exception"}  # two tasks were at work
    assert all(s.detail.startswith("IsADirectoryError: ") for s in failed)
    held = {s.detail for s in states if s.name == "paused"}
    assert len(held) == 1 and "IsADirectoryError" in held.pop()
    again = here.launch(code=3)
    assert again.err.startswith("refused: ") and "eight" in again.err and "(IsADirectoryError" in again.err
    assert len(again.err.splitlines()) == 1 and len(here.numbered()) == 1
    said = here.says("why")
    assert fate(said, "exception")[1] == fate(said, "paused")[1] == "not"
    assert "/error.txt:" in said and "IsADirectoryError: [Errno 21]" in said
    for folder in made:
        folder.rmdir()
    assert "Submitted job" in here.launch("action=retry").out
    here.ends_like(unbroken)
    assert "Nothing to do" in here.launch().out


@pytest.mark.slow
def test_a_run_that_raises_harms_no_other_of_its_pack(site, unbroken):
    here = site(QUICK)
    bad = here.planned[0].run_id
    (obstacle,) = obstacles(here, [bad])
    here.launch()
    here.wait("the end", lambda states: [s.name for s in states] == ["failed", "done", "done"])
    here.until_idle()
    assert f"{bad[:8]}  base width 32 depth 2 lr 2^-6 seed 0, exception, IsADirectoryError" in here.says("status")
    said = here.says("why")
    assert fate(said, "exception") == (1, "not") and f"{bad}/error.txt:" in said
    assert f"failed, see {here.runs}/{bad}/error.txt" in here.says("logs")
    again = here.launch()
    assert "1 failed" in again.out and len(here.numbered()) == 1
    obstacle.rmdir()
    here.launch("action=retry", "cause=exception")
    here.ends_like(unbroken)
    assert {run_id: len(owners) for run_id, owners in here.attempts().items()}[bad] == 2


@pytest.mark.slow
def test_too_little_memory_is_not_tried_again(site, unbroken):
    """A worker that has imported torch takes more than 150 MB; SLURM kills the task and calls it FAILED."""
    here = site([*QUICK, "cluster.memory=150M"])
    here.launch()
    states = here.wait("the end", lambda states: {s.name for s in states} == {"failed"})
    here.until_idle()
    assert {s.cause.name for s in states} == {"out of memory"} and "queued again" not in here.log()
    assert causes.HOST_MEMORY.advice in here.says("why")
    assert "Nothing to submit" in here.launch().out and len(here.numbered()) == 1
    here.launch("action=retry", "cluster.memory=2G")
    here.ends_like(unbroken)


@pytest.mark.slow
def test_an_error_of_the_disk_is_tried_again_by_itself(site, unbroken, tmp_path):
    """Writes of metrics fail with EIO until the disk is mended, which takes no command."""
    broken, hook = tmp_path / "broken", tmp_path / "hook"
    broken.touch()
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(EIO_HOOK.format(broken=str(broken)))
    preamble = tmp_path / "site.sh"
    preamble.write_text(f"export PYTHONPATH={hook}\n")
    here = site([*ONE, f"cluster.preamble={preamble}"])
    here.launch()
    states = here.wait("the queue", lambda states: {s.name for s in states} == {"queued"} and all(s.cause for s in states))
    assert {s.cause.name for s in states} == {"disk"}
    assert here.why("disk") == (1, "resumes")
    broken.unlink()
    here.ends_like(unbroken)
    assert here.starts() == [[0, 1]] and "disk (exit code 75), 1 run left: queued again, time 1 of 5" in here.log()


EIO_HOOK = """
import errno, os
real = os.fsync
def fsync(fd):
    if os.path.exists({broken!r}) and os.readlink(f"/proc/self/fd/{{fd}}").endswith("metrics.jsonl"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return real(fd)
os.fsync = fsync
"""


# --- why: the table ---------------------------------------------------------------------------------------------------


def traceback_of(function) -> str:
    try:
        function()
    except Exception:
        return traceback.format_exc()
    raise AssertionError("it did not raise")


def os_error(number: int):
    def fail():
        raise OSError(number, os.strerror(number), "/shared/runs/x/metrics.jsonl")

    return fail


def chained():
    try:
        raise KeyError("a")
    except KeyError:
        raise ValueError("of the second\nTraceback: is no header") from None


def raised(message: str) -> str:
    """A traceback that ends with this."""
    frame = '  File "/x/src/spectral_mup/train.py", line 210, in backward\n    part.backward()\n'
    return f"Traceback (most recent call last):\n{frame}{message}\n"


OUT_ON_DEVICE = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.31 GiB is free. "
    "Process 4821 has 77.83 GiB memory in use. "
    "Of the allocated memory 75.91 GiB is allocated by PyTorch, and 1.20 GiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF="
    "expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
    "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
ASYNCHRONOUS = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to "
    "enable device-side assertions.\n"
)
PEER_CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:23881\n. This may "
    "indicate a possible application crash on rank 0 or a network set up issue."
)
ERRORS = {
    "device": (raised(f"torch.OutOfMemoryError: {OUT_ON_DEVICE}"), "GPU out of memory"),
    "device, older": (raised(f"RuntimeError: {OUT_ON_DEVICE}"), "GPU out of memory"),
    "device, later": (raised(f"torch.AcceleratorError: {ASYNCHRONOUS}"), "GPU out of memory"),
    "cuBLAS": (
        raised("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "GPU out of memory",
    ),
    "torch on the host": (traceback_of(lambda: torch.empty(2**62, dtype=torch.uint8)), "out of memory"),
    "Python": (traceback_of(lambda: bytearray(2**62)), "out of memory"),
    "workers killed": ("WorkerDied: its worker died 3 times, last with exit code -9\n", "out of memory"),
    "a worker's segfault": ("WorkerDied: its worker died 3 times, last with exit code -11\n", "exception"),
    "EIO": (traceback_of(os_error(errno.EIO)), "disk"),
    "ESTALE": (traceback_of(os_error(errno.ESTALE)), "disk"),
    "ENOSPC": (traceback_of(os_error(errno.ENOSPC)), "exception"),
    "peer": (raised(f"RuntimeError: {PEER_CLOSED}"), "peer lost"),
    "of two": (traceback_of(chained), "exception"),
    "a name only": (raised("ValueError: not enough CUDA here"), "exception"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_told_apart(name):
    text, expected = ERRORS[name]
    assert causes.classify_traceback(text).name == expected


def test_an_error_is_named_by_its_exception_and_two_alike_by_what_they_share():
    assert causes.exception_line(ERRORS["device, later"][0]) == "torch.AcceleratorError: CUDA error: out of memory"
    assert causes.exception_line(ERRORS["of two"][0]) == "ValueError: of the second"
    one, two = (
        raised(f"IsADirectoryError: [Errno 21] Is a directory: '/runs/{run}/.norms.jsonl.{pid}.{nonce}'")
        for run, pid, nonce in (("f9987ace1b39a8d6", 4820, "f17a075e"), ("abcdefabcdefabcd", 17, "abcdefab"))
    )
    assert signature(one) == signature(two) != signature(one.replace("norms", "metrics"))


class Told:
    """A submission of one element with one run, and what squeue and sacct would print of it."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        self.runs, self.jobs = tmp_path / "runs", tmp_path / "jobs"
        config = composed(*ON_SLURM, *ONE)
        self.config = config = replace(config, paths=replace(config.paths, runs=str(self.runs), jobs=str(self.jobs)))
        self.planned = open_sweep(config).plan(lambda p: None).runs
        prepared = prepare(self.jobs, snapshot_config(config), "long", [self.planned], "", "code")
        self.submission = take(prepared, 1, lambda s: "")
        self.submission.record_job("7")
        self.folder = RunFolder(self.runs, self.planned[0].run_id)
        self.queue: str | None = ""
        self.ended: str | None = ""
        monkeypatch.setattr(commands, "call", self.call)

    def call(self, *command: str, **_) -> subprocess.CompletedProcess[str]:
        said = {"squeue": self.queue, "sacct": self.ended}[command[0]]
        if said is None:
            return subprocess.CompletedProcess(command, 1, "", "Unable to contact slurm controller (connect failure)")
        return subprocess.CompletedProcess(command, 0, said.replace("NAME", self.submission.name), "")

    def age(self, seconds: float) -> None:
        """Make the submission so much older."""
        path = self.submission.path / "submission.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"created": time.time() - seconds}))

    def print(self, text: str) -> None:
        (self.submission.logs / "7_0_0_log.out").write_text(text)

    def own(self, restart: int = 0, **changed) -> None:
        """Claim the run for a start of the element, and edit what the claim says."""
        self.folder.claim(lambda owner: False, {"job": "7_0", "restart": restart})
        path = self.folder.path / "attempts" / str(self.folder.attempts()[-1]) / "owner.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def state(self) -> State:
        return reconcile(self.runs, self.jobs, self.planned).states[self.planned[0].run_id]


@pytest.fixture
def told(tmp_path, monkeypatch):
    return Told(tmp_path, monkeypatch)


STUCK = "no progress"
OOM_KILL = "slurmstepd: error: StepId=7.0 exceeded memory limit (412000000 > 157286400), being killed\n"
CGROUP = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
ENDS = {  # what squeue prints, what sacct prints, what the task printed: what became of it, and why
    "preempted": ("7_0|NAME|PREEMPTED|None|0|0|n1|", "", "", "preempted", "preempted"),
    "node": ("", "7_0|NAME|NODE_FAIL|1:0|n1", "", "failed", "node failure"),
    "boot": ("", "7_0|NAME|BOOT_FAIL|1:0|n1", "", "failed", "node failure"),
    "limit": ("7_0|NAME|TIMEOUT|TimeLimit|0|0|n1|", "", "step 3", "failed", "time limit"),
    "cancelled by somebody": ("", "7_0|NAME|CANCELLED by 0|0:15|n1", "", "cancelled", "cancelled"),
    "cancelled while it waited": ("", "7_[0]|NAME|CANCELLED by 1000|0:0|None assigned", "", "cancelled", "cancelled"),
    "nothing": ("7_0|NAME|COMPLETED|None|0|0|n1|", "", "", "failed", "no result"),
    "log": ("7_0|NAME|FAILED|None|53|0|n1|", "", "", "failed", "launch failure"),
    "log, later": ("", "7_0|NAME|FAILED|0:53|n1", "", "failed", "launch failure"),
    "no Python": ("", "7_0|NAME|FAILED|127:0|n1", "python: command not found\n", "failed", "launch failure"),
    "killed": ("7_0|NAME|FAILED|NonZeroExitCode|35072|0|n1|", "", "step 3\n", "failed", "killed"),
    "killed, since SLURM 23.02": ("7_0|NAME|FAILED|NonZeroExitCode|137:0|0|n1|", "", "step 3\n", "failed", "killed"),
    "log, since SLURM 23.02": ("7_0|NAME|FAILED|None|0:53|0|n1|", "", "", "failed", "launch failure"),
    "killed with its script": ("", "7_0|NAME|FAILED|0:9|n1", "step 3\n", "failed", "killed"),
    "memory": ("7_0|NAME|FAILED|NonZeroExitCode|35072|0|n1|", "", OOM_KILL, "failed", "out of memory"),
    "memory, cgroups": ("", "7_0|NAME|OUT_OF_MEMORY|0:125|n1", CGROUP, "failed", "out of memory"),
    "import": ("", "7_0|NAME|FAILED|1:0|n1", raised("ModuleNotFoundError: No module named 'torch'"), "failed", "exception"),
    "forgotten": ("", "", "", "lost", "lost"),
    "forgotten by the controller alone": ("", "7_0|NAME|RUNNING|0:0|n1", "", "lost", "lost"),
    "beside jobs with odd names": ("8|my|job|RUNNING|None|0|0|n1|\n7_0|NAME|TIMEOUT|x|0|0|n1|", "", "", "failed", "time limit"),
    "another job of this number": ("7_0|mine|FAILED|None|53|0|n1|", "7_0|other|TIMEOUT|0:0|n1", "", "lost", "lost"),
    "requeued, then out of time": ("", "7_0|NAME|PREEMPTED|0:0|n1\n7_0|NAME|TIMEOUT|0:0|n2", "", "failed", "time limit"),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_jobs_are_told_apart(told, name):
    told.queue, told.ended, printed, expected, why = ENDS[name]
    if printed:
        told.print(printed)
    told.age(1000)
    state = told.state()
    assert (state.name, state.cause and state.cause.name, state.live) == (expected, why, False)


def test_what_is_not_known_to_have_ended_is_live(told):
    told.ended = "7_0|NAME|FAILED|1:0|n1"
    told.age(1000)
    for state in ("RUNNING", "SUSPENDED", "EXPEDITING", "A_STATE_OF_LATER_VERSIONS"):
        for status in ("0", "0:0", ""):
            told.queue = f"7_0|NAME|{state}|None|{status}|0|n1|"
            assert told.state().live and not told.state().should_resubmit(retries=5)


WAITS = {  # of an element that waits after it had begun the run: what sacct prints, what the task recorded
    "preempted, unwarned": ("7_0|NAME|PREEMPTED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {}, "preempted", "preempted"),
    "node": ("7_0|NAME|NODE_FAIL|1:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {"cause": None}, "queued", "node failure"),
    "limit": ("7_0|NAME|REQUEUED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {"cause": "time limit"}, "queued", "time limit"),
    "by hand": ("7_0|NAME|REQUEUED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {}, "queued", None),
    "accounting down": (None, {}, "queued", None),
}


@pytest.mark.parametrize("name", WAITS)
def test_why_an_element_waits_again_is_told_or_not_known(told, name):
    told.ended, task, expected, why = WAITS[name]
    told.queue = "7_0|NAME|PENDING|BeginTime|0|1||"
    told.own()
    told.submission.write_task(0, **task)
    state = told.state()
    assert (state.name, state.cause and state.cause.name, state.live) == (expected, why, True)


def test_what_the_task_or_its_script_recorded_is_told(told):
    told.queue = "7_0|NAME|FAILED|NonZeroExitCode|256|0|n1|"
    for recorded, expected, why, detail in (
        ({"state": "ended", "cause": STUCK, "detail": "2 starts"}, "failed", STUCK, "2 starts"),
        ({"state": "ended", "cause": "paused", "detail": "ValueError: x"}, "paused", "paused", "ValueError: x"),
        ({"state": "killed", "cause": "killed", "kills": 6}, "failed", "killed", "job 7_0, 6 times"),
    ):  # fmt: skip
        told.submission.write_task(0, **recorded)
        state = told.state()
        assert (state.name, state.cause and state.cause.name, state.detail) == (expected, why, detail)


def test_what_ended_in_a_task_that_is_at_work_is_not_said_to_go_on(told, capsys):
    """Its other runs are trained; this one is not, unless its cause passes."""
    told.queue = "7_0|NAME|RUNNING|None|0|0|n1|"

    def why(cause: str) -> tuple[int, str]:
        sweep = open_sweep(told.config)
        assert cli_status.why(told.config, sweep, sweep.plan(lambda p: None), []) == 0
        return fate(capsys.readouterr().out, cause)

    told.folder.write_error(ERRORS["ENOSPC"][0])
    assert why("exception") == (1, "not")
    told.submission.cancel([told.folder.run_id])
    assert why("cancelled") == (1, "not")
    told.queue = "7_0|NAME|PENDING|BeginTime|0|1||"
    (told.submission.path / "cancelled.json").unlink()
    told.folder.archive_error()
    told.own()
    told.submission.write_task(0, cause="preempted")
    assert why("preempted") == (1, "resumes")


def test_every_cause_is_in_these_tables():
    """`peer lost` and the rest alike: a cause that nothing produces would be advice for nobody."""
    recorded = {STUCK, "paused"}
    shown = {why for _, why in ERRORS.values()} | {end[-1] for end in ENDS.values()} | recorded
    assert shown == set(causes.CAUSES)


def test_a_cause_that_passes_is_tried_again_but_not_for_ever(told):
    told.queue = "7_0|NAME|FAILED|NonZeroExitCode|256|0|n1|"
    for name, again in (("EIO", True), ("ESTALE", True), ("peer", True), ("device", False), ("ENOSPC", False)):
        told.folder.write_error(ERRORS[name][0])
        state = told.state()
        assert state.should_resubmit(retries=1) == again and not replace(state, tries=2).should_resubmit(retries=1)
    told.queue = "7_0|NAME|RUNNING|None|0|0|n1|"
    told.folder.write_error(ERRORS["EIO"][0])
    assert not told.state().should_resubmit(retries=1), "its job is at work on it"


# --- who holds a run --------------------------------------------------------------------------------------------------


def test_no_clock_decides_whether_a_holder_is_owner_running(told):
    """Clocks ten minutes off, of a node or of here, and heartbeats as old: a live run stays its holder's."""
    told.queue = "7_0|NAME|RUNNING|None|0|0|n1|"
    me = ArrayTaskId("8_0", 0)
    for off in (-600.0, 0.0, 600.0):
        told.own(time=time.time() + off, host="n1", pid=1)
        told.folder.write_heartbeat()
        beat = told.folder.path / "attempts" / str(told.folder.attempts()[-1]) / "heartbeat.json"
        beat.write_text(json.dumps({"time": time.time() + off}))
        assert told.state().name == "running"
        with pytest.raises(ClaimedError, match="SLURM job 7_0 on n1"):
            other = RunFolder(told.runs, told.folder.run_id)
            other.claim(lambda owner: is_owner_running(owner, me), {"job": "8_0", "restart": 0})


def test_the_queue_or_the_process_table_decides_whether_a_holder_is_owner_running(told):
    owner = {"slurm": {"job": "7_0", "restart": 1}, "host": "n1", "pid": 1, "start": "x", "time": time.time()}
    here = owner | {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
    other = ArrayTaskId("8_0", 0)
    for said, alive in (
        ("7_0|NAME|RUNNING|None|0|1|n1|", True),
        ("7_0|NAME|COMPLETING|None|0|1|n1|", True),
        ("7_0|NAME|PENDING|BeginTime|0|2||", False),
        ("7_0|NAME|RUNNING|None|0|2|n2|", False),  # started again since
        ("7_0|NAME|FAILED|None|256|1|n1|", False),
        ("", False),
        (None, True),  # no answer is not "gone"
    ):
        told.queue = said
        assert is_owner_running(owner, other) == alive, said
        assert is_owner_running(here, other) and not is_owner_running(here | {"start": "before the boot"}, other)
    assert is_owner_running(here, ArrayTaskId("7_0", 1)) and not is_owner_running(here, ArrayTaskId("7_0", 2)), (
        "my own earlier start may linger, but is fenced off"
    )


def test_a_writer_that_was_fenced_off_changes_nothing(told):
    """The element starts again while its old process lives on: whatever that does afterwards, no byte of the run changes."""
    told.own()
    old, new = told.folder, RunFolder(told.runs, told.folder.run_id)
    old.append("metrics.jsonl", [{"step": 1, "loss": 2.0}])
    old.write_heartbeat()
    (old.path / "attempts" / "new.0123456789abcdef").mkdir()  # of a process that was killed while it claimed
    new.claim(lambda owner: is_owner_running(owner, ArrayTaskId("7_0", 1)), {"job": "7_0", "restart": 1})
    new.append("metrics.jsonl", [{"step": 2, "loss": 1.0}])

    def save():
        save_checkpoint(old, 2, torch.nn.Linear(1, 1), [], {}, ProcessGroup())

    before = snapshot(new.path)
    for write in (
        lambda: old.append("metrics.jsonl", [{"step": 2, "loss": 9.0}]),
        lambda: old.finish({"status": "done"}),
        lambda: old.write_error("Traceback"),
        old.write_heartbeat,
        save,
    ):
        with pytest.raises(ClaimedError, match="taken over"):
            write()
    assert snapshot(new.path) == before
    new.finish({"status": "done"})
    new.write_error("mine")
    assert new.result() == {"status": "done"} and new.error() == "mine"
