"""Why a run has no result, whose fault that is, and whether it is submitted again automatically: one table.

Tasks, their batch scripts, action=why, action=retry and the breaker all use it. Imports no torch.
"""

import errno
import re
from dataclasses import dataclass

from spectral_mup.cluster.slurm_commands import ArrayTask

# Errors of a disk; macOS lacks some of them.
DISK_ERRORS = "EIO ESTALE ETIMEDOUT EAGAIN EBUSY ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH EREMOTEIO ENOLCK".split()
NUMBERS = "|".join(str(getattr(errno, name)) for name in DISK_ERRORS if hasattr(errno, name))


@dataclass(frozen=True)
class Cause:
    """Why a run has no result; a cause without `states`, `raised` and `told` is found by what tasks record or how they end.

    Attributes:
        fault: Whose it is: run, node, site or user; a node's are counted, and exclude it.
        retryable: Whether its runs are submitted again automatically, at most cluster.retries times.
        states: States of a job by which SLURM shows it.
        raised: Pattern of the line that names the exception.
        told: Pattern of anything in the traceback.
    """

    name: str
    fault: str
    retryable: bool
    advice: str
    states: tuple[str, ...] = ()
    raised: str = ""
    told: str = ""


CAUSES = {  # by name, in the order in which a traceback is compared with them
    cause.name: cause
    for cause in (
        Cause("preempted", "site", True,
            "preempted by a higher-priority job; resumes from its checkpoint",
            states=("PREEMPTED",)),
        Cause("node failure", "node", True,
            "its node was lost; if the same node keeps failing, add it to cluster.exclude",
            states=("NODE_FAIL", "BOOT_FAIL")),
        Cause("launch failure", "node", True,
            "the task could not begin on its node; one that fails twice while others train is excluded; "
            "if all do, check that they see the log folder, Python and its packages"),
        Cause("killed", "site", True,
            "its process was killed from outside; resumes from its checkpoint"),
        Cause("GPU out of memory", "run", False,
            "raise train.accumulate, train.devices with train.shard=true, or lower cluster.per_gpu",
            raised=r"CUDA out of memory|CUDA error: out of memory|Triton Error \[CUDA\]: out of memory"
            r"|CU(BLAS|SOLVER|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"),
        Cause("out of memory", "run", False,
            "raise cluster.memory, or lower cluster.workers or train.batch_size / accumulate",
            raised=r"^MemoryError|^WorkerDied: .*exit code -9|can't allocate memory|not enough memory|^OSError: \[Errno 12\]"),
        Cause("disk full", "user", True,
            "free space or raise the quota where paths.runs lies; resumes from its checkpoint",
            told=r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|file write failed"),
        Cause("disk", "site", True,
            "the shared disk reported an error",
            raised=rf"^\w*Error: \[Errno ({NUMBERS})\]"),
        Cause("GPU error", "node", True,
            "its GPU reported a fault; tell your site, or add the node to cluster.exclude",
            told=r"(?i)uncorrectable ECC|ECC error|GPU is lost|fallen off the bus|no CUDA-capable device|hardware stack error"
            r"|CUDA error: (initialization error|system not yet initialized|unknown error)|NVLink error"),
        Cause("peer lost", "site", True,
            "one of the processes that train it together was lost; the logs of the others show which",
            told=r"closed by peer|Connection reset|DistBackendError|DistNetworkError|peer (process|rank)|ncclRemoteError"
            r"|Broken pipe.*gloo|gloo.*(timed out|Timed out)|wait timeout"),
        Cause("no result", "site", True,
            "the task exited cleanly but left no result",
            states=("COMPLETED",)),
        Cause("lost", "site", True,
            "neither squeue nor sacct knows the job, and its heartbeat has stopped"),
        Cause("time limit", "user", True,
            "raise cluster.time, or lower cluster.checkpoint_seconds",
            states=("TIMEOUT", "DEADLINE")),
        Cause("no progress", "user", False,
            "each start must fit a step and a checkpoint: raise cluster.time or lower cluster.checkpoint_seconds"),
        Cause("exception", "run", False,
            "fix the cause, then action=retry"),
        Cause("cancelled", "user", False,
            "the next launch, or action=retry, submits it again",
            states=("CANCELLED", "REVOKED")),
        Cause("paused", "run", False,
            "the sweep's first runs all failed in the same way; fix the cause, then action=retry"),
    )
}  # fmt: skip
PREEMPTED, NODE, LAUNCH, KILLED = (CAUSES[name] for name in ("preempted", "node failure", "launch failure", "killed"))
DEVICE_MEMORY, HOST_MEMORY, PEER = (CAUSES[name] for name in ("GPU out of memory", "out of memory", "peer lost"))
LOST, TIME, STUCK = (CAUSES[name] for name in ("lost", "time limit", "no progress"))
EXCEPTION, CANCELLED, PAUSED = (CAUSES[name] for name in ("exception", "cancelled", "paused"))

BY_STATE = {state: cause for cause in CAUSES.values() for state in cause.states}
OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|Out Of Memory|exceeded (step |job )?memory limit|being killed\. *Exceeded", re.I)


def exception_line(traceback: str) -> str:
    """Return the line of a traceback that names the last exception, with the first line of its message."""
    lines = [line for line in traceback.rpartition("Traceback (most recent call last):")[2].splitlines() if line.strip()]
    return next((line for line in lines if not line[0].isspace()), lines[-1] if lines else "")


def classify_traceback(traceback: str) -> Cause:
    """Return the cause of a run that raised: the first of the table whose pattern matches."""
    last = exception_line(traceback)
    for cause in CAUSES.values():
        if cause.raised and re.search(cause.raised, last) or cause.told and re.search(cause.told, traceback):
            return cause
    return EXCEPTION


def classify_task(task: ArrayTask, log: str) -> Cause:
    """Return the cause of an ended array task whose run has neither result nor error; `log` is the end of its output."""
    if task.state.startswith("OUT_OF_ME") or (task.state != "COMPLETED" and OUT_OF_MEMORY.search(log)):
        return HOST_MEMORY
    if task.state in BY_STATE:
        return BY_STATE[task.state]
    if task.signal == 53 or task.reason == "JobLaunchFailure" and not log:  # SLURM's code for a log that it could not open
        return LAUNCH
    if task.signal or task.exit_code > 128:
        return KILLED
    return EXCEPTION if "Traceback" in log else LAUNCH
