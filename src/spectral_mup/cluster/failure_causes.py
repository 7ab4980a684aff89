"""Why a run has no result, and whether to resubmit it without being asked: a table. Imports no torch."""

import re
from dataclasses import dataclass

from spectral_mup.cluster.slurm_commands import ArrayTask


@dataclass(frozen=True)
class Cause:
    """`retryable`: resubmit automatically, at most cluster.retries times."""

    name: str
    retryable: bool
    advice: str


PREEMPTED = Cause("preempted", True, "preempted by a higher-priority job; resumes from its checkpoint")
NODE = Cause("node failure", True, "its node was lost; if the same node keeps failing, add it to cluster.exclude")
LAUNCH = Cause("launch failure", True, "the task could not start; check that the node sees the log folder and Python")
KILLED = Cause("killed", True, "its process was killed from outside; resumes from its checkpoint")
DISK = Cause("disk", True, "the shared disk reported an error")
PEER = Cause("peer lost", True, "one of the processes that train it together was lost; the logs of the others show which")
NO_RESULT = Cause("no result", True, "the task exited cleanly but left no result")
LOST = Cause("lost", True, "neither squeue nor sacct knows the job, and its heartbeat has stopped")
TIME = Cause("time limit", True, "raise cluster.time, or lower cluster.checkpoint_seconds")
STUCK = Cause("no progress", False, "each start must fit a step and a checkpoint: raise cluster.time or lower "
              "cluster.checkpoint_seconds")  # fmt: skip
HOST_MEMORY = Cause("out of memory", False, "raise cluster.memory, or lower cluster.workers or train.batch_size / accumulate")
DEVICE_MEMORY = Cause("GPU out of memory", False, "raise train.accumulate, train.devices with train.shard=true, or lower "
                      "cluster.per_gpu")  # fmt: skip
EXCEPTION = Cause("exception", False, "fix the cause, then action=retry")
CANCELLED = Cause("cancelled", False, "the next launch, or action=retry, submits it again")
PAUSED = Cause("paused", False, "the sweep's first runs all failed in the same way; fix the cause, then action=retry")

CAUSES = {cause.name: cause for cause in list(globals().values()) if isinstance(cause, Cause)}

BY_STATE = {
    "NODE_FAIL": NODE, "BOOT_FAIL": NODE, "PREEMPTED": PREEMPTED, "TIMEOUT": TIME, "DEADLINE": TIME, "CANCELLED": CANCELLED,
    "REVOKED": CANCELLED, "COMPLETED": NO_RESULT,
}  # fmt: skip

BY_EXCEPTION = {  # patterns of the line that names the exception
    r"CUDA out of memory|CUDA error: out of memory|Triton Error \[CUDA\]: out of memory"
    r"|CU(BLAS|SOLVER|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)": DEVICE_MEMORY,
    r"^MemoryError|^WorkerDied: .*exit code -9|can't allocate memory|not enough memory": HOST_MEMORY,
    r"^OSError: \[Errno (5|116)\]": DISK,  # EIO, ESTALE
}
OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|Out Of Memory|exceeded (step |job )?memory limit|being killed\. *Exceeded", re.I)
LOST_PEER = re.compile(r"closed by peer|Connection reset|DistBackendError|DistNetworkError|peer (process|rank)|ncclRemoteError"
                       r"|Broken pipe.*gloo|gloo.*(timed out|Timed out)|wait timeout")  # fmt: skip


def exception_line(traceback: str) -> str:
    """The line of a traceback that names the last exception, with the first line of its message."""
    lines = [line for line in traceback.rpartition("Traceback (most recent call last):")[2].splitlines() if line.strip()]
    return next((line for line in lines if not line[0].isspace()), lines[-1] if lines else "")


def classify_traceback(traceback: str) -> Cause:
    """The cause of a run that raised, from its exception line, and from torch's messages about a lost peer."""
    last = exception_line(traceback)
    found = next((cause for pattern, cause in BY_EXCEPTION.items() if re.search(pattern, last)), None)
    return found or (PEER if LOST_PEER.search(traceback) else EXCEPTION)


def classify_task(task: ArrayTask, log: str) -> Cause:
    """The cause of an ended array task whose run has neither result nor error; `log` is the end of what it printed."""
    if task.state.startswith("OUT_OF_ME") or (task.state != "COMPLETED" and OUT_OF_MEMORY.search(log)):
        return HOST_MEMORY
    if task.state in BY_STATE:
        return BY_STATE[task.state]
    if task.signal == 53 or task.reason == "JobLaunchFailure" and not log:  # SLURM's code for a log that it could not open
        return LAUNCH
    if task.signal or task.exit_code > 128:
        return KILLED
    return EXCEPTION if "Traceback" in log else LAUNCH
