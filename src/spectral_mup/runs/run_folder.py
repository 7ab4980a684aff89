"""The run folder: the truth about one run. Only this module knows its paths.

    runs/<run_id>/
        config.json        the RunConfig; its hash is the folder's name
        attempts/<n>/      who trained it: owner.json, claimed by one atomic rename; the highest n has the run; its
                           heartbeat and, once another attempt follows, its error.txt
        provenance.json    code, packages, machine of the last attempt
        status.json        step and losses while it runs
        timing.json        seconds and steps of the attempt that ended it
        metrics.jsonl      one line per step
        norms.jsonl        one line per probed step and module or tensor
        ckpt/              last checkpoints
        error.txt          traceback of the last failure
        wandb.json         the last step that was pushed to Weights & Biases, and where
        result.json        written LAST; its presence alone proves that the run has ended

Each file has one writer, and every file but the two .jsonl is replaced atomically. Imports no torch.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError
from spectral_mup.runs.run_config import hash_of
from spectral_mup.util.files import json_bytes, read_json, read_rows, write_atomic
from spectral_mup.util.processes import is_alive, process_start


class ClaimedError(RuntimeError):
    """Another process has this run."""


class RunFolder:
    """Paths and writes of one run. Creating the object touches nothing."""

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs_dir / run_id
        self.nonce: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    def newest_checkpoint(self) -> int:
        """Step of the newest checkpoint, 0 if there is none."""
        return max((int(p.stem) for p in self.checkpoints.glob("*.pt") if p.stem.isdigit()), default=0)

    # --- config ---------------------------------------------------------------------------------------------------

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the config once; an existing folder must hold the same one."""
        if not self.check_config():
            write_atomic(self.path / "config.json", json_bytes(config))

    def check_config(self) -> bool:
        """Whether the folder has a config. Raises RecordError if it does not hash to the folder's name."""
        config = read_json(self.path / "config.json")
        if config is None:
            return False
        if hash_of(config) != self.run_id:
            raise RecordError(
                f"{self.path}/config.json does not hash to the folder's name, so it was edited after the run began; "
                "restore it, or move the folder away to train the run again"
            )
        return True

    # --- claims ---------------------------------------------------------------------------------------------------

    def owner(self) -> dict[str, Any] | None:
        """Who made the latest attempt, or None."""
        numbers = self.attempts()
        return read_json(self.path / "attempts" / str(numbers[-1]) / "owner.json") if numbers else None

    def attempts(self) -> list[int]:
        """Numbers of the attempts so far, ascending."""
        folder = self.path / "attempts"
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []

    def claim(self, is_running: Callable[[Mapping[str, Any]], bool] = is_alive, slurm: Mapping[str, Any] | None = None) -> None:
        """Take the run for this process. Raises ClaimedError while a running process has it.

        `is_running` says whether the writer of an owner.json still runs; `slurm` is the array task of this process, if any.

        A claim is the rename of a prepared folder to the next attempt's number: the claim never exists without its owner,
        and of two processes that try, one gets ENOTEMPTY. A claimed attempt is never deleted, so no race can lose a claim.
        """
        numbers = self.attempts()
        owner = self.owner()
        if owner is not None and is_running(owner):
            by = f"process {owner['pid']} on {owner['host']}"
            if owner.get("slurm"):
                by = f"SLURM job {owner['slurm']['job']} on {owner['host']}"
            elif owner["host"] != socket.gethostname():
                by += f"; if that machine is gone, delete {self.path}/attempts"
            raise ClaimedError(f"{self.run_id} is claimed by {by}")
        nonce = secrets.token_hex(8)
        attempts = self.path / "attempts"
        prepared = attempts / f"new.{nonce}"
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid()), "nonce": nonce}
        owner |= {"time": time.time()} | ({"slurm": dict(slurm)} if slurm else {})
        try:
            write_atomic(prepared / "owner.json", json_bytes(owner))
            os.rename(prepared, attempts / str((numbers[-1] if numbers else 0) + 1))
        except OSError as error:
            shutil.rmtree(prepared, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise ClaimedError(f"{self.run_id} was claimed by another process just now") from None
        self.nonce = nonce
        self._archive_error(numbers)

    def check_claim(self) -> None:
        """Fencing: raise ClaimedError if this process lost the run (it was believed dead), so that it writes nothing more."""
        owner = self.owner()
        if owner is None or owner["nonce"] != self.nonce:
            raise ClaimedError(f"{self.run_id} was taken over by another process")

    def write_heartbeat(self) -> None:
        """Record that the owner is alive. Raises ClaimedError if another process has the run by now."""
        self.check_claim()
        write_atomic(self.path / "attempts" / str(self.attempts()[-1]) / "heartbeat.json", json_bytes({"time": time.time()}))

    def last_heartbeat(self) -> float | None:
        """When the latest attempt was last known to be alive, in seconds since the epoch."""
        numbers = self.attempts()
        if not numbers:
            return None
        attempt = self.path / "attempts" / str(numbers[-1])
        return ((read_json(attempt / "heartbeat.json") or read_json(attempt / "owner.json")) or {}).get("time")

    # --- metrics --------------------------------------------------------------------------------------------------

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl or norms.jsonl, whole lines in one write. Non-finite numbers become null."""
        self.check_claim()
        text = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        with (self.path / name).open("a") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())  # a checkpoint that follows must never know more than the rows

    def truncate_after(self, name: str, last_step: int) -> None:
        """Drop the rows after `last_step`, and a last line that was cut off: a resumed run will write them again."""
        path = self.path / name
        if path.exists():
            rows = [row for row in read_rows(path) if row["step"] <= last_step]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    # --- status and result ----------------------------------------------------------------------------------------

    def write_provenance(self, value: Mapping[str, Any]) -> None:
        write_atomic(self.path / "provenance.json", json_bytes(value))

    def write_status(self, value: Mapping[str, Any]) -> None:
        """For people; unlike a result, not worth failing a run for."""
        try:
            write_atomic(self.path / "status.json", json_bytes(_finite(dict(value))))
        except OSError:
            pass

    def status(self) -> dict[str, Any] | None:
        return read_json(self.path / "status.json")

    def write_timing(self, value: Mapping[str, Any]) -> None:
        write_atomic(self.path / "timing.json", json_bytes(value))

    def timing(self) -> dict[str, Any] | None:
        return read_json(self.path / "timing.json")

    def write_pushed(self, value: Mapping[str, Any]) -> None:
        write_atomic(self.path / "wandb.json", json_bytes(value))

    def pushed(self) -> dict[str, Any] | None:
        return read_json(self.path / "wandb.json")

    def write_error(self, text: str) -> None:
        """Write the traceback of a failure. Raises ClaimedError if this process lost the run, whose failure it is not."""
        if self.nonce is not None:
            self.check_claim()
        write_atomic(self.path / "error.txt", text.encode())

    def error(self) -> str | None:
        """Traceback with which the latest attempt failed, or None."""
        try:
            return (self.path / "error.txt").read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def archive_error(self) -> None:
        """Move the last failure to its attempt's folder, so that the run counts as not yet trained."""
        self._archive_error(self.attempts())

    def _archive_error(self, attempts: list[int]) -> None:
        try:
            if attempts:
                os.replace(self.path / "error.txt", self.path / "attempts" / str(attempts[-1]) / "error.txt")
            else:
                (self.path / "error.txt").unlink()
        except FileNotFoundError:
            pass

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, after a last check that the run is still ours."""
        self.check_claim()
        write_atomic(self.path / "result.json", json_bytes(_finite(dict(result))))

    def result(self) -> dict[str, Any] | None:
        return read_json(self.path / "result.json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
