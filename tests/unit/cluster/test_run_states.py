"""What is said of runs and jobs, by canned answers of SLURM: every state and cause, and who has a run."""

import errno
import json
import os
import runpy
import shutil
import subprocess
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.cli import RESULT
from support.launches import snapshot
from support.runs import TINY, composed
from support.slurm_sweeps import ON_SLURM, fate

from spectral_mup.cli.actions.states import status as print_status
from spectral_mup.cli.actions.states import why as print_why
from spectral_mup.cli.context import Context
from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster import slurm_commands as commands
from spectral_mup.cluster.liveness import SILENT_SECONDS, heartbeat_of, may_hold
from spectral_mup.cluster.slurm import run_states
from spectral_mup.cluster.slurm.run_states import DECISIONS, State, reconcile, signature
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import Submission, prepare, take
from spectral_mup.cluster.slurm_commands import JobStart
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan
from spectral_mup.training.checkpoint import save_checkpoint
from spectral_mup.training.trainer import Trainer
from spectral_mup.util.processes import this_process

ONE = [*TINY, "rule=[spectral]", "lr.adaptive=false", "sweep.width=[32]", "sweep.lr=[-6]", "sweep.name=long"]

# --- causes ---------------------------------------------------------------------------------------------------


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
    "cuSOLVER": (raised("RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling it"), "GPU out of memory"),
    "cuBLAS does not start": (
        raised("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"),
        "GPU out of memory",
    ),
    "Triton": (raised("RuntimeError: Triton Error [CUDA]: out of memory"), "GPU out of memory"),
    "torch on the host": (traceback_of(lambda: torch.empty(2**62, dtype=torch.uint8)), "out of memory"),
    "Python": (traceback_of(lambda: bytearray(2**62)), "out of memory"),
    "workers killed": ("WorkerDied: its worker died 3 times, last with exit code -9\n", "out of memory"),
    "a worker's segfault": ("WorkerDied: its worker died 3 times, last with exit code -11\n", "exception"),
    "EIO": (traceback_of(os_error(errno.EIO)), "disk"),
    "ESTALE": (traceback_of(os_error(errno.ESTALE)), "disk"),
    "ENOSPC": (traceback_of(os_error(errno.ENOSPC)), "disk full"),
    "quota": (traceback_of(os_error(errno.EDQUOT)), "disk full"),
    "full, as torch says it": (
        raised("RuntimeError: [enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"),
        "disk full",
    ),
    "ETIMEDOUT": (traceback_of(os_error(errno.ETIMEDOUT)), "disk"),
    "EAGAIN": (traceback_of(os_error(errno.EAGAIN)), "disk"),
    "EREMOTEIO": (traceback_of(os_error(errno.EREMOTEIO)), "disk"),
    "ENOMEM": (traceback_of(os_error(errno.ENOMEM)), "out of memory"),
    "EISDIR": (traceback_of(os_error(errno.EISDIR)), "exception"),
    "EACCES": (traceback_of(os_error(errno.EACCES)), "exception"),
    "ECC": (raised("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\nCompile with"), "GPU error"),
    "off the bus": (raised("RuntimeError: NVML: GPU has fallen off the bus"), "GPU error"),
    "no device": (raised("RuntimeError: No CUDA GPUs: CUDA error: no CUDA-capable device is detected"), "GPU error"),
    "an illegal address": (raised("RuntimeError: CUDA error: an illegal memory access was encountered"), "exception"),
    "peer": (raised(f"RuntimeError: {PEER_CLOSED}"), "peer lost"),
    "of two": (traceback_of(chained), "exception"),
    "a name only": (raised("ValueError: not enough CUDA here"), "exception"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_told_apart(name):
    text, expected = ERRORS[name]
    assert causes.classify_traceback(text).name == expected


def test_the_table_is_made_where_not_every_error_has_a_number(monkeypatch):
    """macOS has no EREMOTEIO."""
    monkeypatch.delattr(errno, "EREMOTEIO")
    made = runpy.run_path(str(causes.__file__))
    for name in ("EIO", "ENOSPC", "EISDIR"):
        text, expected = ERRORS[name]
        assert made["classify_traceback"](text).name == expected


def test_an_error_is_named_by_its_exception_and_two_alike_by_what_they_share():
    assert causes.exception_line(ERRORS["device, later"][0]) == "torch.AcceleratorError: CUDA error: out of memory"
    assert causes.exception_line(ERRORS["of two"][0]) == "ValueError: of the second"
    one, two = (
        raised(f"IsADirectoryError: [Errno 21] Is a directory: '/runs/{run}/.norms.jsonl.{pid}.{nonce}'")
        for run, pid, nonce in (("f9987ace1b39a8d6", 4820, "f17a075e"), ("abcdefabcdefabcd", 17, "abcdefab"))
    )
    assert signature(one) == signature(two) != signature(one.replace("norms", "metrics"))


class Told:
    """A submission of one task with one run, and what squeue and sacct would print of it."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        self.runs, self.jobs = tmp_path / "runs", tmp_path / "jobs"
        config = composed(*ON_SLURM, *ONE)
        self.config = config = config.model_copy(
            update={"paths": config.paths.model_copy(update={"runs": str(self.runs), "jobs": str(self.jobs)})}
        )
        self.planned = make_plan(open_sweep(config), lambda p: None).runs
        prepared = prepare(self.jobs, snapshot_config(config), [self.planned], "", "code")
        self.submission = take(prepared, 1, lambda s: "")
        self.submission.record_job("7")
        self.folder = RunFolder(self.runs, self.planned[0].run_id)
        self.queue: str | None = ""
        self.others: str | None = ""  # what squeue says when it is asked by job id
        self.ended: str | None = ""
        monkeypatch.setattr(commands, "call", self.call)

    def call(self, *command: str, **_) -> subprocess.CompletedProcess[str]:
        queue = self.others if any(word.startswith("--jobs") for word in command) else self.queue
        said = {"squeue": queue, "sacct": self.ended}[command[0]]
        if said is None:
            return subprocess.CompletedProcess(command, 1, "", "Unable to contact slurm controller (connect failure)")
        return subprocess.CompletedProcess(command, 0, said.replace("NAME", self.submission.name), "")

    def edit(self, **values) -> None:
        """Change the submission's record."""
        path = self.submission.path / "submission.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def age(self, seconds: float) -> None:
        """Make the submission this much older."""
        self.edit(created=time.time() - seconds)

    def slurm(self, queue: str) -> None:
        self.queue = queue

    def write_task(self, **values) -> None:
        self.submission.write_task(0, **values)

    def print(self, text: str) -> None:
        (self.submission.log_folder / "7_0_0_log.out").write_text(text)

    def own(self, restart: int = 0, **changed) -> None:
        """Claim the run for a start of the task, and edit what the claim says."""
        self.folder.claim(lambda owner: False, {"job": "7_0", "restart": restart})
        path = self.folder.path / "attempts" / str(self.folder.attempts()[-1]) / "owner.json"
        owner = json.loads(path.read_text()) | changed
        path.write_text(json.dumps({key: value for key, value in owner.items() if value is not None}))

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


LIVE, WAITS_AGAIN = "7_0|NAME|RUNNING|None|0|0|n1|", "7_0|NAME|PENDING|BeginTime|0|1||"
ENDED = "7_0|NAME|FAILED|NonZeroExitCode|256|0|n1|"
GONE = {"launcher": this_process() | {"pid": 1}}  # which began at another time
ELSEWHERE = {"host": "n1", "slurm": None}


def unrecorded(told: Told, **record) -> None:
    """Of this submission nobody knows a job."""
    (told.submission.path / "job.json").unlink()
    told.edit(**record)


SITUATIONS = {  # of each row of DECISIONS what leads to it, and the state
    "held, never submitted": (lambda t: (shutil.rmtree(t.jobs), t.folder.claim()), "running"),
    "cancelled in a live task": (lambda t: (t.slurm(LIVE), t.submission.cancel([t.folder.run_id])), "cancelled"),
    "failed for good in a live task": (lambda t: (t.slurm(LIVE), t.folder.write_error(ERRORS["EISDIR"][0])), "failed"),
    "waits for its first start": (lambda t: t.slurm(WAITS_AGAIN), "queued"),
    "waits after a preemption": (lambda t: (t.slurm(WAITS_AGAIN), t.own(), t.write_task(cause="preempted")), "preempted"),
    "waits for a known cause": (lambda t: (t.slurm(WAITS_AGAIN), t.own(), t.write_task(cause="disk")), "queued"),
    "waits for an unknown cause": (lambda t: (t.slurm(WAITS_AGAIN), t.own()), "queued"),
    "runs in its task": (lambda t: (t.slurm(LIVE), t.own()), "running"),
    "not yet started by its task": (lambda t: t.slurm(LIVE), "queued"),
    "failed": (lambda t: (t.slurm(ENDED), t.folder.write_error(ERRORS["EIO"][0])), "failed"),
    "held outside its tasks": (lambda t: (t.slurm(ENDED), t.own(**ELSEWHERE)), "running"),
    "never submitted": (lambda t: shutil.rmtree(t.jobs), "planned"),
    "cancelled": (lambda t: (t.slurm(ENDED), t.submission.cancel([t.folder.run_id])), "cancelled"),
    "refused": (lambda t: t.submission.record_refusal("QOSMaxSubmitJobPerUserLimit"), "planned"),
    "being submitted": (unrecorded, "queued"),
    "launcher died": (lambda t: unrecorded(t, **GONE), "planned"),
    "has a heartbeat": (lambda t: (t.own(host="n1"), t.age(1000)), "running"),
    "not yet seen": (lambda t: None, "queued"),
    "lost": (lambda t: t.age(1000), "lost"),
    "cancelled outside": (lambda t: t.slurm("7_0|NAME|CANCELLED|None|0|0|n1|"), "cancelled"),
    "paused": (lambda t: (t.slurm(ENDED), t.write_task(state="ended", cause="paused")), "paused"),
    "no progress": (lambda t: (t.slurm(ENDED), t.write_task(state="ended", cause=STUCK)), "failed"),
    "killed too often": (lambda t: (t.slurm(ENDED), t.write_task(state="killed", cause="killed", kills=6)), "failed"),
    "ended": (lambda t: t.slurm(ENDED), "failed"),
}


@pytest.mark.parametrize("name", [decision.name for decision in DECISIONS])
def test_each_row_of_the_table_decides_some_situation(told, monkeypatch, name):
    prepare_situation, expected = SITUATIONS[name]
    decided = []
    monkeypatch.setattr(run_states, "decide", lambda e, real=run_states.decide: decided.append(real(e)) or decided[-1])
    prepare_situation(told)
    state = told.state()
    assert ([d.name for d in decided], state.name) == ([name], expected)


def test_what_slurm_holds_is_told_with_the_command_that_lets_it_start(told, capsys):
    """As it does with tasks whose launch failed on their node: they wait for ever, and look like others that wait."""
    for reason in ("launch failed requeued held", "JobHeldUser", "JobHoldMaxRequeue", "Priority"):
        told.queue = f"7_0|NAME|PENDING|{reason}|0|0||"
        assert print_status(Context(told.config, [])) == 0
        said = capsys.readouterr().out
        advice = f"Held in the queue ({reason}); to let them start: scontrol release 7\n"
        assert ": 1 queued" in said and (advice in said) == ("release" in said) == (reason != "Priority"), said


def test_what_was_preempted_for_good_is_told_with_the_command_that_submits_it(told, capsys):
    """As where PreemptMode=CANCEL; a task that waits to resume needs no command."""
    for queue, advised in (("7_0|NAME|PREEMPTED|None|0|0|n1|", True), ("7_0|NAME|PENDING|BeginTime|0|1||", False)):
        told.queue, told.ended = queue, "7_0|NAME|PREEMPTED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned"
        told.own()
        assert print_status(Context(told.config, [])) == 0
        said = capsys.readouterr().out
        assert ": 1 preempted" in said and ("To submit what is missing" in said) == advised, said


WAITS = {  # of a task that waits after it had started the run: what sacct prints, what the task recorded
    "preempted, unwarned": ("7_0|NAME|PREEMPTED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {}, "preempted", "preempted"),
    "node": ("7_0|NAME|NODE_FAIL|1:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {"cause": None}, "queued", "node failure"),
    "limit": ("7_0|NAME|REQUEUED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {"cause": "time limit"}, "queued", "time limit"),
    "by hand": ("7_0|NAME|REQUEUED|0:0|n1\n7_0|NAME|PENDING|0:0|None assigned", {}, "queued", None),
    "accounting down": (None, {}, "queued", None),
}


@pytest.mark.parametrize("name", WAITS)
def test_why_a_task_waits_again_is_told_or_not_known(told, name):
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


def test_what_ended_in_a_running_task_is_not_said_to_resume(told, capsys):
    """Its other runs are trained; this one is not, unless its cause passes."""
    told.queue = "7_0|NAME|RUNNING|None|0|0|n1|"

    def why(cause: str) -> tuple[int, str]:
        assert print_why(Context(told.config, [])) == 0
        return fate(capsys.readouterr().out, cause)

    told.folder.write_error(ERRORS["EISDIR"][0])
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
    for name, again in (
        ("EIO", True),
        ("ESTALE", True),
        ("peer", True),
        ("device", False),
        ("ENOSPC", True),
        ("ECC", True),
        ("EISDIR", False),
    ):
        told.folder.write_error(ERRORS[name][0])
        state = told.state()
        assert state.should_resubmit(retries=1) == again and not replace(state, tries=2).should_resubmit(retries=1)
    told.queue = "7_0|NAME|RUNNING|None|0|0|n1|"
    told.folder.write_error(ERRORS["EIO"][0])
    assert not told.state().should_resubmit(retries=1), "its job is at work on it"


def test_another_user_s_job_is_live_as_long_as_slurm_says_so(told, monkeypatch):
    """Two users on one folder of runs and one of jobs; also where a disk shows everybody's files as nobody's."""
    monkeypatch.setattr(Submission, "user", 4711)
    told.age(1000)
    told.others = LIVE
    assert told.state().live and not told.state().should_resubmit(retries=5)
    told.own(host="n1")
    assert told.state().name == "running"
    told.others = ENDED
    assert not told.state().live and told.state().name == "failed"
    told.queue, told.others = LIVE, ""
    assert told.state().live, "mine after all"


def test_a_run_of_a_launch_on_another_node_is_running_only_while_that_lives(told):
    """cluster=local in one's own batch job or shell there, and what a launch from here would do."""
    shutil.rmtree(told.jobs)
    told.own(host="n1", slurm={"job": "12", "restart": 0})
    for said, expected in (("12|bash|RUNNING|None|0|0|n1|", "running"), ("12|bash|TIMEOUT|None|0|0|n1|", "planned")):
        told.others = said
        assert told.state().name == expected
    told.others = ""
    assert told.state().name == "running", "its heartbeat is young"
    past = time.time() - SILENT_SECONDS - 60
    os.utime(heartbeat_of(told.folder), (past, past))
    assert told.state().name == "planned"
    told.others = None
    assert told.state().name == "running", "no answer is not its end"
    told.own(**ELSEWHERE)
    assert told.state().name == "running"
    os.utime(heartbeat_of(told.folder), (past, past))
    assert told.state().name == "planned"


def test_a_writer_that_was_fenced_off_changes_nothing(told):
    """The task starts again while its old process lives on: whatever that does afterwards, no byte of the run changes."""
    told.own()
    old, new = told.folder, RunFolder(told.runs, told.folder.run_id)
    old.append("metrics.jsonl", [{"step": 1, "loss": 2.0}])
    old.write_heartbeat()
    (old.path / "attempts" / "new.0123456789abcdef").mkdir()  # of a process that was killed while it claimed
    new.claim(lambda owner: may_hold(new, owner, JobStart("7_0", 1)), {"job": "7_0", "restart": 1})
    new.append("metrics.jsonl", [{"step": 2, "loss": 1.0}])

    def save():
        save_checkpoint(old, Trainer(torch.nn.Linear(1, 1), [], lambda step: [], lambda *_: torch.zeros(())), {})

    before = snapshot(new.path)
    for write in (
        lambda: old.append("metrics.jsonl", [{"step": 2, "loss": 9.0}]),
        lambda: old.finish(RESULT),
        lambda: old.write_error("Traceback"),
        old.write_heartbeat,
        save,
    ):
        with pytest.raises(ClaimedError, match="taken over"):
            write()
    assert snapshot(new.path) == before
    new.finish(RESULT)
    new.write_error("mine")
    assert new.result() == RESULT and new.error() == "mine"
