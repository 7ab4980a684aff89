"""Whether the process that wrote something still runs. Imports no torch."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNSEEN = "alive"  # start of a process of which no more is shown: there is no /proc, or it hides those of other users


def process_start(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot with the boot's id, so that a reused pid is not taken for it.

    None if it does not run, or is a zombie; UNSEEN if no more is shown of it.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if after_name[0] == "Z":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{after_name[19]}"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return UNSEEN


def this_process() -> dict[str, Any]:
    """Return what `lives_here` must know of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid()), "pids": _namespace()}


def _namespace() -> str | None:
    """Return which processes this one's ids are about: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def lives_here(owner: Mapping[str, Any]) -> bool | None:
    """Return whether the process that wrote this owner.json still runs; None where the process table here cannot show it.

    That is where the process is of another machine, though of the same name, of another boot or container, or hidden.
    """
    me, start = this_process(), str(owner["start"])
    boot = str(me["start"]).partition(":")[0]
    if (owner["host"], start.partition(":")[0], owner.get("pids", me["pids"])) != (me["host"], boot, me["pids"]):
        return None
    now = process_start(int(owner["pid"]))
    return None if now == UNSEEN != start else now == start


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Return whether the writer of an owner.json may still run: where nobody can tell, it does."""
    return lives_here(owner) is not False
