"""Why a run has not ended, in plain words, and whether to begin it again by itself. A table; imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spectral_mup.cluster.slurm.commands import ArrayTask


@dataclass(frozen=True)
class Cause:
    """`again`: begin it again without being asked, up to cluster.retries times."""

    name: str
    again: bool
    advice: str


PREEMPTED = Cause("preempted", True, "its place went to a job with a higher priority; it goes on from its checkpoint")
NODE = Cause("node failure", True, "its node was lost; if it is one node again and again, give cluster.exclude")
LAUNCH = Cause("launch failure", True, "the task could not start; look whether the node sees the log folder and Python")
KILLED = Cause("killed", True, "its process was ended from outside; it goes on from its checkpoint")
DISK = Cause("disk", True, "the shared disk answered with an error")
PEER = Cause("peer lost", True, "one of the processes that train it together was lost; the log of the others tells which")
NO_RESULT = Cause("no result", True, "the task ended as if all were well, but there is no result")
LOST = Cause("lost", True, "neither the queue nor the accounting knows its job, and it is silent")
TIME = Cause("time limit", True, "raise cluster.time, or lower cluster.checkpoint_seconds")
STUCK = Cause(
    "no progress",
    False,
    "a step and a checkpoint must fit into a start: raise cluster.time or lower cluster.checkpoint_seconds",
)
HOST_MEMORY = Cause("out of memory", False, "raise cluster.memory, or lower cluster.workers or train.batch_size / accumulate")
DEVICE_MEMORY = Cause(
    "GPU out of memory", False, "raise train.accumulate, train.devices with train.shard=true, or lower cluster.workers"
)
EXCEPTION = Cause("exception", False, "mend the cause; action=retry begins it again")
CANCELLED = Cause("cancelled", False, "launch again, or action=retry, to have it after all")
HELD = Cause("held back", False, "the sweep's first runs all failed alike; mend the cause, then action=retry")

CAUSES = {
    c.name: c for c in (PREEMPTED, NODE, LAUNCH, KILLED, DISK, PEER, NO_RESULT, LOST, TIME, STUCK, HOST_MEMORY, DEVICE_MEMORY,
                        EXCEPTION, CANCELLED, HELD)
}  # fmt: skip

BY_STATE = {
    "NODE_FAIL": NODE, "BOOT_FAIL": NODE, "PREEMPTED": PREEMPTED, "TIMEOUT": TIME, "DEADLINE": TIME, "CANCELLED": CANCELLED,
    "REVOKED": CANCELLED, "COMPLETED": NO_RESULT,
}  # fmt: skip

OUT_OF_MEMORY = re.compile(
    r"oom[-_ ]?kill|Out Of Memory|exceeded (step |job )?memory limit|being killed\. *Exceeded|OOM Killed", re.I
)
FULL_DEVICE = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
LOST_PEER = re.compile(r"closed by peer|Connection reset|DistBackendError|DistNetworkError|peer (process|rank)|ncclRemoteError"
                       r"|Broken pipe.*gloo|gloo.*(timed out|Timed out)|wait timeout")  # fmt: skip


def exception_line(traceback: str) -> str:
    """The line of a traceback that says what was wrong: the exception that was raised last, the first line of its message."""
    lines = [line for line in traceback.rpartition("Traceback (most recent call last):")[2].splitlines() if line.strip()]
    return next((line for line in lines if not line[0].isspace()), lines[-1] if lines else "")


def classify_traceback(traceback: str) -> Cause:
    """Of a run that raised: told by the exception's line in its traceback, and by torch's words for a lost peer."""
    last = exception_line(traceback)
    if FULL_DEVICE.search(last):
        return DEVICE_MEMORY
    if (
        last.startswith("MemoryError")
        or re.match(r"WorkerDied: .*exit code -9", last)
        or "can't allocate memory" in last
        or "not enough memory" in last
    ):
        return HOST_MEMORY
    if re.match(r"OSError: \[Errno (5|116)\]", last):  # EIO, ESTALE
        return DISK
    if LOST_PEER.search(traceback):
        return PEER
    return EXCEPTION


def classify_task(element: ArrayTask, log: str) -> Cause:
    """Of an ended array element whose run has neither result nor error; `log` is the end of what it printed."""
    if element.state.startswith("OUT_OF_ME") or (element.state != "COMPLETED" and OUT_OF_MEMORY.search(log)):
        return HOST_MEMORY
    if element.state in BY_STATE:
        return BY_STATE[element.state]
    if element.signal == 53 or element.reason == "JobLaunchFailure" and not log:  # SLURM's word for a log it could not open
        return LAUNCH
    if element.signal or element.exit_code > 128:
        return KILLED
    return EXCEPTION if "Traceback" in log else LAUNCH
