"""Whether whoever claimed a run is still at work. Imports no torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from spectral_mup.cluster.slurm.commands import ArrayTaskId, NoAnswer, squeue
from spectral_mup.util.processes import is_alive


def lives(owner: Mapping[str, Any], me: ArrayTaskId | None) -> bool:
    """Whether the writer of this owner.json still works, as seen from a process that runs in the element `me`.

    An earlier start of my own element is dead: its process may linger for a few seconds, but writes nothing once the run is
    claimed anew. On this host the process table tells, else SLURM's queue. No clock decides, and no answer is not "gone".
    """
    job = owner.get("slurm")
    if job and me and job["job"] == me.job and job["restart"] < me.restart:
        return False
    if not job or owner["host"] == socket.gethostname():
        return is_alive(owner)
    try:
        element = squeue().get(job["job"])
    except NoAnswer:
        return True
    return element is not None and element.live and not element.waiting and element.restarts <= job["restart"]
