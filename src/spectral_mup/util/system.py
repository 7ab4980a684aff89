"""What this machine is, as /proc/cpuinfo describes it, who runs this on it, and where the package lies."""

import os
import platform
import pwd
from pathlib import Path


def machine() -> str:
    """Return the processor and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def own_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none


def user_name() -> str:
    """Who this process belongs to, whatever LOGNAME says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container that does not know the user
        return str(os.getuid())


def package_root() -> Path:
    """Return the folder of the package's own conf/ and sweeps/: beside its modules when installed, else the source tree."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]
