"""What goes wrong on a cluster, done to a real SLURM: every run still ends once, with the bytes of an unbroken sweep, or what
status and why say of it is true."""

import contextlib
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.launches import kill, newest_checkpoint, parent, planned, read, trained, until
from support.runs import TINY
from support.slurm_sweeps import HELD, ON_SLURM, Site, fate

from spectral_mup.cli import console as cli
from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster.slurm.run_states import State, reconcile
from spectral_mup.runs.run_folder import RunFolder
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
        """Python processes of this Site's jobs with these arguments: tasks, whose command has its folder, and their workers."""
        mark = str(self.jobs).encode()

        def matches(pid: int) -> bool:
            arguments = read(f"/proc/{pid}/cmdline").split(b"\0")
            if b"python" not in arguments[0] or not all(any(w.encode() in a for a in arguments) for w in words):
                return False
            return any(mark in read(f"/proc/{p}/cmdline") for p in (pid, parent(pid))) and process_start(pid) is not None

        return [pid for pid in self.cluster.job_pids() if matches(pid)]

    def tasks(self) -> list[int]:
        return self.processes("slurm/enter.py", "array_task")

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
def test_only_the_preempted_task_starts_again_and_resumes(site, unbroken):
    """Two tasks, a node each, without grace; the limit of 5 minutes is as near as a warning for it would be."""
    here = site([*SHAPES, "cluster.workers=1", "cluster.cpus=5", "cluster.time=5"])
    here.launch()
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
def test_a_graced_preemption_of_a_short_job_is_not_a_time_limit(site_with, unbroken):
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
    for kills, what in ((1, "queued again"), (2, "the end of the job")):
        workers = here.hold_mid_run()
        job = here.now()[0].job
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
    assert {(s.cause.name, s.detail) for s in states if s.cause} == {("no progress", "6 starts saved no step")}
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
def test_the_loss_of_a_node_sends_its_task_to_another(site, unbroken):
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


@pytest.mark.slow
def test_a_node_without_torch_fails_no_run_and_is_left_out(site, unbroken, tmp_path):
    """A task a run; those that began on the bad node are trained on the other."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    preamble = tmp_path / "site.sh"
    preamble.write_text(f"set -eu\n[ $SLURMD_NODENAME != {NODE} ] || export PYTHONPATH={tmp_path}/bad\n")
    here = site([*EIGHT, f"cluster.preamble={preamble}", "cluster.workers=1", "cluster.pack_minutes=0.0001"])
    here.launch()
    here.ends_like(unbroken)
    said = here.log()
    assert f"excluded: {NODE}, where tasks cannot train" in said and "libcudart" in said
    hosts = [folder.read_text() for folder in here.runs.glob("*/error.txt")]
    assert not hosts and all(len(owners) == 1 for owners in here.attempts().values())


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
