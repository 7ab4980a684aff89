"""SLURM's commands, each with a time limit. `NoAnswer` (a controller or database that is down) never means that a job ended."""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_mup.errors import ConfigError, Unanswered
from spectral_mup.util.system import user_name

ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
WAITING = ("PENDING", "CONFIGURING", "EXPEDITING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
SECONDS = 20  # a controller that is down says so after about 9
ACCOUNTING_SECONDS = 10
NO_ANSWER = re.compile("timed out|unable to contact|communication|connection refused|resolve_ctls|unexpected message", re.I)
FROM_SHELL = {key: f"SBATCH_{key.upper()}" for key in ("account", "partition", "qos", "constraint")}
NOW = "now"
NO_ARRAYS = "the site has job arrays switched off; ask it to allow them, or train with cluster=local in a job of your own"
JOB_PREFIX = "spectral_mup-"  # how the names of our jobs begin
OUTER = (
    "SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "PMI_", "PMIX_",
    "SUBMITIT_",
)  # fmt: skip


class NoAnswer(Unanswered):
    """SLURM did not answer; the message is what it printed."""


class Refused(RuntimeError):
    """sbatch rejected a script; the message is what it printed."""


@dataclass(frozen=True)
class ArrayTask:
    """One task of a job array, or a job without one, as SLURM sees it.

    `before` is the state in which its previous start ended, by the accounting.
    """

    job: str
    name: str
    state: str
    reason: str = ""
    exit_code: int = 0
    signal: int = 0
    restarts: int = 0
    node: str = ""
    before: str = ""

    @property
    def live(self) -> bool:
        """Whether the task may still run. States unknown to this version count as live."""
        return self.state not in ENDED

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def from_shell(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the user's shell says of account, partition and the like (SBATCH_ACCOUNT, …) where the config says nothing.

    `sbatch` itself never sees these variables, as it would let them overrule the script.
    """
    said = {key: os.environ[name] for key, name in FROM_SHELL.items() if not cluster[key] and os.environ.get(name)}
    if (reservation := os.environ.get("SBATCH_RESERVATION")) and "reservation" not in cluster["extra"]:
        said["extra"] = cluster["extra"] | {"reservation": reservation}
    return said


def environment() -> dict[str, str]:
    """Return this process's environment without SLURM_* (but SLURM_CONF), PMI_* and the like, which would alter our jobs."""
    variables = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(OUTER)}
    if "/usr/sbin" not in variables.get("PATH", "").split(":"):
        variables["PATH"] = variables.get("PATH", "/usr/bin:/bin") + ":/usr/sbin"
    return variables


def call(*command: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command. Raises NoAnswer if it is not installed or does not end in time."""
    try:
        return subprocess.run(  # the name of a job may be any bytes
            command, env=environment(), capture_output=True, text=True, errors="replace", timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} gave no answer in {seconds:g} s") from None


def _answer(*command: str, seconds: float = SECONDS) -> str:
    done = call(*command, seconds=seconds)
    if done.returncode:
        raise NoAnswer(" ".join((done.stderr or done.stdout).split()) or f"{command[0]} ended with code {done.returncode}")
    return done.stdout


def squeue(jobs: Collection[str] = ()) -> dict[str, ArrayTask]:
    """Return the tasks that the controller remembers, ended ones too, by id ('12_3'). Raises NoAnswer.

    They are this user's, or those of `jobs`, whoever owns them.
    """
    which = f"--jobs={','.join(jobs)}" if jobs else f"--user={os.getuid()}"  # not by LOGNAME, which may say anything
    fields = "JobArrayID:|,Name:|,State:|,Reason:|,exit_code:|,RestartCnt:|,NodeList:|"
    try:
        rows = _answer("squeue", "--noheader", "--array", "--states=all", which, f"--Format={fields}")
    except NoAnswer as error:
        if jobs and "Invalid job id" in str(error):
            return {}
        raise
    tasks = {}
    for job, name, (state, reason, status, restarts, node, _) in _jobs(rows, 6):
        tasks[job] = ArrayTask(job, name, state, reason, *_exit(status), int(restarts or 0), node)
    return tasks


def _jobs(rows: str, fields: int) -> Iterator[tuple[str, str, list[str]]]:
    """Yield id, name (which may have a | in it) and further fields of every line that is about a job.

    Sites let their commands print notices as well.
    """
    for line in rows.splitlines():
        job, *rest = [part.strip() for part in line.split("|")]
        if len(rest) > fields and re.fullmatch(r"\d+(_(\d+|\[[\d,-]+(%\d+)?\]))?", job):
            yield job, "|".join(rest[:-fields]), rest[-fields:]


def _exit(status: str) -> tuple[int, int]:
    """Return exit code and signal, from '1:0' or, of squeue before SLURM 23.02, wait(2)'s number; '' of a job not yet ended."""
    code, colon, signal = status.partition(":")
    return (int(code), int(signal)) if colon else (int(code or 0) >> 8, int(code or 0) & 127)


def sacct(names: Iterable[str], since: float, users: Iterable[int] = ()) -> dict[str, ArrayTask]:
    """Return the last known state of the tasks of jobs with these names, started after `since` (s), by id. Raises NoAnswer.

    They are this user's and those of the users with the ids `users`.
    """
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    rows = _answer(
        "sacct", "--allocations", "--duplicates", "--parsable2", "--noheader", "--format=JobID,JobName,State,ExitCode,NodeList",
        f"--user={','.join(map(str, sorted({os.getuid(), *users})))}", f"--starttime={start}", f"--name={','.join(names)}",
        seconds=ACCOUNTING_SECONDS,
    )  # fmt: skip
    tasks: dict[str, ArrayTask] = {}
    for jobs, name, (state, status, node) in _jobs(rows, 3):
        for job in _expand(jobs):  # one row per start, the first start first
            before = tasks[job].state if job in tasks and tasks[job].name == name else ""
            tasks[job] = ArrayTask(job, name, state.split()[0], "", *_exit(status), 0, node, before)
    return tasks


def _expand(job: str) -> list[str]:
    """Return the tasks of '7_[0-2,5%2]', as sacct writes a waiting array."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if array is None:
        return [job]
    ranges = (part.partition("-") for part in array[2].split(","))
    return [f"{array[1]}_{i}" for first, _, last in ranges for i in range(int(first), int(last or first) + 1)]


def sbatch(script: Path, *options: str) -> str | None:
    """Submit a script to run in the working directory; return the job id, None if what was printed does not show it.

    Raises Refused, and NoAnswer where it is unknown whether the job was accepted. After None or NoAnswer, look for its name.
    """
    done = call("sbatch", "--parsable", f"--chdir={Path.cwd()}", *options, str(script), seconds=120)
    message = " ".join(done.stderr.replace("sbatch: error: ", "").replace("allocation failure: ", "").split())
    if done.returncode == 0:  # 'ID' or 'ID;CLUSTER', maybe among a site's notices
        ids = re.findall(r"^(\d+)(?:;\S*)?\s*$", done.stdout, re.M)
        return ids[0] if len(ids) == 1 else None
    if NO_ANSWER.search(message):
        raise NoAnswer(message)
    raise Refused(message or f"sbatch ended with code {done.returncode}")


def scancel(jobs: list[str]) -> None:
    """End these tasks; those that have ended already are ignored. Raises NoAnswer."""
    if jobs:
        done = call("scancel", *jobs)
        if done.returncode and "Invalid job id" not in done.stderr and "already" not in done.stderr:
            raise NoAnswer(" ".join(done.stderr.split()))


def requeue(job: str) -> None:
    """Put a running task back into the queue; a refusal, as where SLURM has done so already, raises nothing."""
    with suppress(NoAnswer):  # the batch script requeues it when the task has ended
        call("scontrol", "requeue", job, seconds=60)


def exclude(job: str, nodes: Collection[str]) -> None:
    """Keep a task, or those of an array that wait, off these nodes; SLURM refuses that for running ones."""
    with suppress(NoAnswer):  # the next failure tries again
        call("scontrol", "update", f"jobid={job}", f"ExcNodeList={','.join(nodes)}", seconds=60)


@dataclass(frozen=True)
class Node:
    state: str
    cpus: int
    gpus: int

    @property
    def up(self) -> bool:
        """Whether jobs start on it, now or once others have ended; one that the site put to sleep counts: it is woken."""
        return re.fullmatch(r"(idle|mixed|allocated|completing|planned)[^*]?", self.state) is not None


def nodes(partition: str | None) -> dict[str, Node]:
    """Return the nodes of a partition, by default of the default one, by name. Raises NoAnswer."""
    only = ["--partition", partition] if partition else []
    rows = _answer("sinfo", "--noheader", "--Node", "--format=%P|%N|%T|%c|%G", *only)
    found = [line.strip().split("|") for line in rows.splitlines() if line.count("|") == 4]
    gpus = {gres: sum(map(int, re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))) for *_, gres in found}
    return {
        node: Node(state, int(cpus), gpus[gres])
        for name, node, state, cpus, gres in found
        if (partition or name.endswith("*")) and cpus.isdigit()
    }


def settings() -> dict[str, str]:
    """Return the controller's configuration, with its clock under NOW. Raises NoAnswer."""
    text = _answer("scontrol", "show", "config")
    now = re.search(r"^Configuration data as of (\S+)", text, re.M)
    lines = (line.partition("=") for line in text.splitlines())
    return {NOW: now[1] if now else ""} | {key.strip(): value.strip() for key, _, value in lines}


def show_job(job: str) -> dict[str, str]:
    """Return the fields that scontrol shows of a task, by name. Raises NoAnswer."""
    return _fields(_answer("scontrol", "--oneliner", "show", "job", job))


def partitions() -> dict[str, dict[str, str]]:
    """Return the fields of each partition, by its name. Raises NoAnswer."""
    rows = map(_fields, _answer("scontrol", "--oneliner", "show", "partition").splitlines())
    return {fields["PartitionName"]: fields for fields in rows if "PartitionName" in fields}


def _fields(line: str) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in line.split())}


def clock(text: str) -> float | None:
    """Return the seconds since the epoch of SLURM's '2026-01-31T12:00:00'; None for 'None', 'Unknown' and the like."""
    with suppress(ValueError):
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def associations() -> list[dict[str, str]]:
    """Return this user's accounts, their QOS and limits on jobs, as the accounting has them. Raises NoAnswer."""
    fields = "Account,Partition,QOS,MaxJobs,MaxSubmit"
    rows = _answer(
        "sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user_name()}", f"format={fields}",
        seconds=ACCOUNTING_SECONDS,
    )  # fmt: skip
    names, lines = fields.split(","), [row.split("|") for row in rows.splitlines()]
    return [dict(zip(names, line, strict=True)) for line in lines if len(line) == len(names)]


def max_array_size() -> int:
    """Return how many tasks an array may have: MaxArraySize caps the index, which counts from 0.

    Raises ConfigError where the site has job arrays switched off.
    """
    try:
        size = int(settings().get("MaxArraySize", "1001"))
    except NoAnswer:
        return 1001
    if size == 0:
        raise ConfigError(f"MaxArraySize=0: {NO_ARRAYS}")
    return size


@dataclass(frozen=True)
class JobStart:
    """A start of a job ('12') or array task ('12_3')."""

    job: str
    restart: int


def current_job() -> JobStart | None:
    """Return the job or array task that this process belongs to, from its environment; None outside any."""
    job, array, index = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    if array is not None and index is not None:
        job = f"{array}_{index}"
    return None if job is None else JobStart(job, int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def is_cancelled(task: JobStart) -> bool:
    """Return whether scancel is ending this start, so that it must not come back; False without an answer.

    SLURM calls it COMPLETING until its last process has ended, as it does after a preemption (which counts a restart or notes a
    PreemptTime) and after the time limit (which notes no SIGTERM or SIGKILL).
    """
    try:
        job = show_job(task.job)
    except NoAnswer:
        return False
    if was_preempted(job, task):
        return False
    state, signalled = job.get("JobState", ""), job.get("ExitCode", "").endswith((":15", ":9"))
    return state.startswith("CANCELLED") or state == "COMPLETING" and signalled


def was_preempted(job: dict[str, str], task: JobStart) -> bool:
    """Return whether SLURM preempted this start of a task: show_job has a PreemptTime, or counts another start since."""
    return job.get("PreemptTime", "None") not in ("None", "N/A") or int(job.get("Restarts", "0")) > task.restart
