"""The submission folder: what one sbatch was given, and what came of it. This module alone knows its paths.

    jobs/<n>/
        submission.json    sweep, packs of run ids, job name, launcher: written before the folder gets its number
        config.json        the whole config, resolved: tasks never compose
        submit.sh          the script that sbatch gets
        job.json           SLURM's job id, or sbatch's refusal
        cancelled.json     run ids that were cancelled
        tasks/<i>.json     element i: its start, how often it was killed, why it stopped
        log/               what tasks print
    jobs/code/<hash>/      the code that they run

A folder is prepared under another name and renamed to the next number, so of two launches that try one gets ENOTEMPTY, looks
again, and submits only what is still left. Nothing is ever deleted. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.config.parse import typed
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import json_bytes, read_json, write_atomic
from spectral_mup.runs.sweep import Sweep
from spectral_mup.util.processes import is_alive, process_start

FOREIGN_SECONDS = 600.0  # a launcher on another host that has recorded no job for so long is believed dead


class Taken(RuntimeError):
    """Another launch took the number; look again at what is left."""


@dataclass(frozen=True, eq=False)  # a folder is itself
class Submission:
    """One array job: element i trains packs[i], a list of runs in plain words; at most `at_once` elements at a time (None:
    all), and none before the job `behind` has ended."""

    path: Path
    sweep: str
    name: str
    packs: list[list[dict[str, Any]]]
    fingerprint: str
    code: str
    created: float
    launcher: Mapping[str, Any]
    at_once: int | None = None
    behind: str | None = None

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def script(self) -> Path:
        return self.path / "submit.sh"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @cached_property
    def job(self) -> str | None:
        """SLURM's id of the array, once it is recorded."""
        return (read_json(self.path / "job.json") or {}).get("id")

    @cached_property
    def refusal(self) -> str | None:
        """What sbatch said when it did not take the script."""
        return (read_json(self.path / "job.json") or {}).get("refused")

    @cached_property
    def cancelled(self) -> set[str]:
        """Run ids that were cancelled here."""
        return set(read_json(self.path / "cancelled.json") or [])

    @property
    def launcher_gone(self) -> bool:
        """Whether nobody is left to record a job for it."""
        if self.launcher["host"] == socket.gethostname():
            return not is_alive(self.launcher)
        return time.time() - self.created > FOREIGN_SECONDS

    def record_job(self, job: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"id": job, "time": time.time()}))
        self.__dict__.pop("job", None)  # was cached as unknown

    def discard(self) -> None:
        """Remove a folder that was prepared and not taken."""
        shutil.rmtree(self.path, ignore_errors=True)

    def record_refusal(self, why: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"refused": why, "time": time.time()}))

    def cancel(self, run_ids: Iterable[str]) -> None:
        """Record that these are not wanted, before SLURM is told."""
        known = set(read_json(self.path / "cancelled.json") or [])
        write_atomic(self.path / "cancelled.json", json_bytes(sorted(known | set(run_ids))))

    def is_cancelled(self, run_id: str) -> bool:
        """As the disk has it now."""
        return run_id in (read_json(self.path / "cancelled.json") or [])

    def task(self, index: int) -> dict[str, Any]:
        """What element `index` last wrote of itself."""
        return read_json(self.path / "tasks" / f"{index}.json") or {}

    def write_task(self, index: int, **values: Any) -> None:
        write_atomic(self.path / "tasks" / f"{index}.json", json_bytes(self.task(index) | values))

    def log(self, index: int) -> list[Path]:
        """What element `index` printed, the batch script's file first."""
        return sorted(self.logs.glob(f"*_{index}_*_log.out"))

    def config(self) -> Config:
        """The config as it was launched."""
        return typed(read_json(self.path / "config.json"))

    @cached_property
    def declared(self) -> dict[str, Any]:
        """What the sweep was when it was launched, without where and how it is run."""
        config = read_json(self.path / "config.json") or {}
        return {key: config.get(key) for key in ("model", "optimizer", "rule", "data", "train", "probe", "lr", "sweep")}

    def points(self, index: int) -> list[RunConfig]:
        """The pack of element `index`. Raises ValueError if this code does not give the runs their recorded ids."""
        sweep, found = Sweep(self.config(), self.fingerprint), []
        for entry in self.packs[index]:
            point = sweep.run(Curve(entry["rule"], entry["width"], entry["depth"]), entry["log2_lr"], entry["seed"])
            if point.run_id != entry["run_id"]:
                raise ValueError(f"{self.path}: the snapshot gives run {entry['run_id']} the id {point.run_id}: it was edited")
            found.append(point)
        return found


def entry_of(point: RunConfig) -> dict[str, Any]:
    """A run in plain words."""
    return asdict(point.curve) | {"log2_lr": point.log2_lr, "seed": point.seed, "run_id": point.run_id}


def submissions(jobs: Path) -> list[Submission]:
    """All of them, oldest first. A folder that is listed may be read late on a network disk; one cut off is left out."""
    found = []
    for number in numbers(jobs):
        data = read_json(jobs / str(number) / "submission.json")
        if data is not None:
            found.append(Submission(path=jobs / str(number), **data))
    return found


def numbers(jobs: Path) -> list[int]:
    return sorted(int(p.name) for p in jobs.iterdir() if p.name.isdigit()) if jobs.is_dir() else []


def prepare(
    jobs: Path,
    config: Mapping[str, Any],
    sweep: str,
    packs: Sequence[Sequence[RunConfig]],
    fingerprint: str,
    code: str,
    at_once: int | None = None,
    behind: str | None = None,
) -> Submission:
    """A folder with everything but its number: nobody's until `take`."""
    nonce = secrets.token_hex(4)
    path = jobs / f"new.{nonce}"
    launcher = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
    name = f"{slurm.NAME}{re.sub(r'[^A-Za-z0-9.-]', '-', sweep)[:40]}-{nonce}"
    entries = [[entry_of(p) for p in pack] for pack in packs]
    made = Submission(path, sweep, name, entries, fingerprint, code, time.time(), launcher, at_once, behind)
    for folder in ("log", "tasks"):
        (path / folder).mkdir(parents=True)
    write_atomic(path / "config.json", json_bytes(config))
    write_atomic(path / "submission.json", json_bytes({k: v for k, v in asdict(made).items() if k != "path"}))
    return made


def take(prepared: Submission, number: int, render: Callable[[Submission], str]) -> Submission:
    """Give it this number and write its script, which names the folder. Raises Taken if another launch was first."""
    path = prepared.path.with_name(str(number))
    try:
        os.rename(prepared.path, path)
    except OSError as error:
        shutil.rmtree(prepared.path, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise Taken(f"{path} was taken by another launch") from None
    taken = replace(prepared, path=path)
    write_atomic(taken.script, render(taken).encode())
    return taken
