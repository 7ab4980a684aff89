"""What this machine is, as /proc/cpuinfo describes it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """Features of the CPU as Linux lists them; empty elsewhere."""
    return frozenset(next(iter(_cpu_info("flags")), "").split())


def machine() -> str:
    """Processor and number of cores."""
    names = _cpu_info("model name")
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


@functools.cache
def _cpu_info(key: str) -> list[str]:
    """The values of a key, one a core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]
