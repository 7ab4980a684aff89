"""What processes that train one run together need beyond training: where they meet, and how they end when one of them fails.

The same on one machine (worker.py, with a pipe to each) and on SLURM (array_task.py, started by srun).
"""

import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from spectral_mup.cluster.failure_causes import classify_traceback
from spectral_mup.errors import Unanswered
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.util.log import log

FAILED, TEMPORARY_FAILURE = 1, 75  # exit codes; the second is sysexits' EX_TEMPFAIL


class Unfit(Unanswered):
    """Processes cannot begin on this machine, through no fault of any run; the message says why."""

    exit_code = FAILED


def free_port() -> int:
    """Return a port that nobody listens on; the caller must take it at once."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def abandon(folder: RunFolder, rank: int, error: Exception, tell: Callable[[str], None] = lambda message: None) -> NoReturn:
    """End this process, which handles the error of a run.

    It exits with TEMPORARY_FAILURE where only a peer was lost or another cause passes, else with FAILED, once `tell` has been
    given a message. It exits at once, without a message to peers that may be gone: they notice.
    """
    _write_traceback(folder, rank, error)
    if isinstance(error, ClaimedError) or classify_traceback(traceback.format_exc()).retryable:
        os._exit(TEMPORARY_FAILURE)
    tell(f"{type(error).__name__}: {error}")
    os._exit(FAILED)


def _write_traceback(folder: RunFolder, rank: int, error: Exception) -> None:
    """Write this rank's traceback to error.txt, unless the root cause (anything not retryable) is in it already."""
    text = f"rank {rank} on {socket.gethostname()}:\n{traceback.format_exc()}"
    log.error("%s", text, extra={"run": folder.run_id})
    if isinstance(error, ClaimedError):
        return
    before = folder.error()
    if before is None or classify_traceback(before).retryable:
        with suppress(OSError, ClaimedError):  # a full disk, or another process has the run; the log has the traceback
            folder.write_error(text)
