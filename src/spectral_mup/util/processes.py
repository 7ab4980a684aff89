"""Whether the process that wrote something still runs. Imports no torch."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot with the boot's id, so that a reused pid is not taken for it."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if after_name[0] == "Z":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{after_name[19]}"
    except OSError:
        pass
    try:  # no /proc: the pid alone must do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def this_process() -> dict[str, Any]:
    """What `is_alive` must know of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this owner.json still runs. On another host nobody can tell: it counts as alive."""
    return owner["host"] != socket.gethostname() or process_start(int(owner["pid"])) == owner["start"]
