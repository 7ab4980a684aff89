"""Whether the process that claimed a run still runs. Imports no torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from spectral_mup.cluster.slurm_commands import ArrayTaskId, NoAnswer, squeue
from spectral_mup.util.processes import is_alive


def is_owner_running(owner: Mapping[str, Any], current: ArrayTaskId | None) -> bool:
    """Whether the writer of this owner.json still runs, as seen from a process of the array task `current`.

    An earlier start of the current task counts as dead: its process may linger for a few seconds, but writes nothing once the
    run has a new claim. On this host the process table decides, elsewhere SLURM's queue; never a clock, and a queue that does
    not answer means "still running".
    """
    job = owner.get("slurm")
    if job and current and job["job"] == current.job and job["restart"] < current.restart:
        return False
    if not job or owner["host"] == socket.gethostname():
        return is_alive(owner)
    try:
        task = squeue().get(job["job"])
    except NoAnswer:
        return True
    return task is not None and task.live and not task.waiting and task.restarts <= job["restart"]
