"""Who holds a run, and whether that process lives: for claims, states, submissions and tasks. Imports no torch."""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.cluster.slurm_commands import ArrayTask, JobStart, NoAnswer, squeue
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.processes import lives_here

SILENT_SECONDS = 300.0  # ten heartbeats, one of which a network disk may show minutes late

Ask = Callable[[str], ArrayTask | None]


def ask_slurm(job: str) -> ArrayTask | None:
    """Return what the queue has of a job or array task, whoever owns it. Raises NoAnswer."""
    return squeue([job]).get(job)


def lives(
    owner: Mapping[str, Any],
    silence: Callable[[], float | None],
    me: JobStart | None = None,
    ask: Ask = ask_slurm,
    patience: float = SILENT_SECONDS,
) -> bool | None:
    """Return whether the writer of an owner.json lives, as seen from a process of the job `me`; None: unknown, so it may.

        written by                      then SLURM says             then its heartbeat is   lives
        ------------------------------  --------------------------  ----------------------  -------
        an earlier start of my job                                                          no
        a process that I see                                                                yes
        a process that I see has ended                                                      no
        another process of my job                                   young                   yes
        another process of my job                                   silent                  no
        another job                     it runs                                             yes
        another job                     it waits to start again                             no
        another job                     it was started again                                no
        another job                     it has ended                                        no
        another job                     no such job                 young                   yes
        another job                     no such job                 silent                  no
        another job                     nothing                     young                   yes
        another job                     nothing                     silent                  unknown
        a process that I cannot see                                 young                   yes
        a process that I cannot see                                 silent                  no
        a process that I cannot see                                 unreadable              unknown

    An earlier start may linger for seconds, but writes nothing once the run has a new claim. A heartbeat is silent when
    `silence`, in seconds, is above `patience`.
    """
    start = owner.get("slurm") or {}
    mine = me is not None and start.get("job") == me.job
    if me is not None and mine and start["restart"] < me.restart:
        return False
    seen, answered = lives_here(owner), True
    if seen is not None:
        return seen
    if start and not mine:
        try:
            task = ask(start["job"])
        except NoAnswer:
            task, answered = None, False
        if task is not None:
            return task.live and not task.waiting and task.restarts <= start["restart"]
    silent_for = silence()
    if silent_for is not None and silent_for <= patience:
        return True
    return False if answered and silent_for is not None else None


def silence(beat: Path) -> float | None:
    """Return the seconds since this file was written; None if that cannot be found out.

    Measured by the clock of its disk, as the hosts' may be far apart.
    """
    trial = beat.with_name(f".{secrets.token_hex(8)}")
    try:
        trial.touch()
        return trial.stat().st_mtime - beat.stat().st_mtime
    except OSError:
        return None
    finally:
        with suppress(OSError):
            trial.unlink()


def heartbeat_of(folder: RunFolder) -> Path:
    """Return the file whose time shows when the latest attempt at a run was last alive."""
    attempt = folder.path / "attempts" / str(max(folder.attempts(), default=0))
    beat = attempt / "heartbeat.json"
    return beat if os.path.exists(beat) else attempt / "owner.json"


def may_hold(folder: RunFolder, owner: Mapping[str, Any], me: JobStart | None = None, ask: Ask = ask_slurm) -> bool:
    """Return whether this owner of a run's latest attempt may still be training it."""
    return lives(owner, lambda: silence(heartbeat_of(folder)), me, ask) is not False
