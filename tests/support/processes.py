"""Processes that a test starts itself: none is left for the garbage collector to find, in the middle of another test."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reaped(*processes: subprocess.Popen) -> Iterator[None]:
    """However the block is left, the processes have ended then, and were waited for."""
    try:
        yield
    finally:
        for process in processes:
            with process:  # which waits, and closes its pipes
                process.kill()
