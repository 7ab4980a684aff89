"""The folder of a run: all that is known about it.

    runs/<run_id>/
        config.json        the RunConfig; its hash is the folder's name
        attempts/<n>/      an attempt to train it, made by one atomic rename; the highest n owns the run. owner.json says
                           who it is; also its heartbeat.json and, once another attempt follows, its error.txt
        provenance.json    code, packages, machine of the last attempt
        status.json        step, loss and speed while it runs
        timing.json        seconds, steps and peak GPU memory of the attempt that ended it
        timing.jsonl       tokens/s, memory and MFU (of known GPUs), one line per write of metrics
        metrics.jsonl      one line per step: loss, lr of the base; every tenth also grad_norm, before clipping; some val_loss
        norms.jsonl        one line per probed step and module or tensor
        ckpt/              the last two checkpoints
        weights.pt         the final state_dict, with train.keep=last; for a model of transformers the folder model/ instead
        error.txt          traceback of the last failure
        wandb.json         the last step that was pushed to Weights & Biases, and where
        result.json        written LAST; its presence alone proves that the run has ended

Each file has one writer, and every file but the .jsonl ones is replaced atomically. To look over many runs, use `result`,
`owner` and `error`, which raise nothing: a run whose record cannot be read has no result, and `error` says why. Such a run
cannot be claimed until the damaged file is moved aside. Imports no torch.
"""

import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError
from spectral_mup.runs.records import RECORDS
from spectral_mup.runs.run_config import hash_of
from spectral_mup.util.files import json_bytes, numbered, read_json, read_rows, remove_temporaries, rename_to_free, write_atomic
from spectral_mup.util.processes import is_alive, this_process

CHECKPOINT = re.compile(r"[0-9]{9}\.pt")
WEIGHTS, MODEL = "weights.pt", "model"
PREPARED = "new."  # prefix of an attempt's folder until it is claimed


class ClaimedError(RuntimeError):
    """Another process owns this run."""


class RunFolder:
    """The files of one run; creating the object touches none of them."""

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs_dir / run_id
        self.nonce: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    def checkpoint_files(self) -> list[Path]:
        """List the checkpoints, oldest first; other files beside them are ignored."""
        return sorted(path for path in self.checkpoints.glob("*.pt") if CHECKPOINT.fullmatch(path.name))

    def newest_checkpoint(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        return max((int(path.stem) for path in self.checkpoint_files()), default=0)

    def has_weights(self) -> bool:
        """Return whether the final weights were kept."""
        return (self.path / WEIGHTS).exists() or (self.path / MODEL).exists()

    # --- config ---------------------------------------------------------------------------------------------------

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the config once. Raises RecordError on another one or damage, ClaimedError if the run was just claimed."""
        if damage := self.damage():
            raise damage
        if not self.check_config():
            try:
                self.write("config.json", config)
            except FileNotFoundError:  # swept up, half written, by whoever has claimed the run
                raise self._claim_lost() from None

    def check_config(self, expected: dict[str, Any] | None = None) -> bool:
        """Return whether there is a config. Raises RecordError unless it is as `expected` or hashes to the folder's name."""
        config = self.read("config.json")
        if config not in (None, expected) and not self._has_hash_of(config):
            raise RecordError(
                f"{self.path}/config.json does not hash to the folder's name, so it was edited after the run began; "
                "restore it, or move the folder away to train the run again"
            )
        return config is not None

    def _has_hash_of(self, config: Any) -> bool:
        try:
            return hash_of(config) == self.run_id
        except (ValueError, RecursionError):  # numbers or nesting that no config has
            return False

    # --- claims ---------------------------------------------------------------------------------------------------

    def owner(self) -> dict[str, Any] | None:
        """Return who made the latest attempt; None without one, or if it cannot be read."""
        with suppress(RecordError, OSError):
            return self._owner()

    def _owner(self) -> dict[str, Any] | None:
        latest = self._latest_attempt()
        return self.read(f"attempts/{latest.name}/owner.json") if latest else None

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts so far, ascending."""
        return numbered(self.path / "attempts")

    def _latest_attempt(self) -> Path | None:
        numbers = self.attempts()
        return self.path / "attempts" / str(numbers[-1]) if numbers else None

    def claim(self, is_running: Callable[[Mapping[str, Any]], bool] = is_alive, slurm: Mapping[str, Any] | None = None) -> None:
        """Take the run for this process.

        A claim is the rename of a prepared folder to the next attempt's number: the claim never exists without its owner,
        and of two processes that try, one gets ENOTEMPTY. A claimed attempt is never deleted, so no race can lose a claim.

        `is_running` says whether the writer of an owner.json still runs; `slurm` is the array task of this process, if any.
        Raises ClaimedError while a running process has the run, RecordError or OSError if its result or owner cannot be read,
        or its folder belongs to another user.
        """
        if damage := self.damage():
            raise damage
        before = self._latest_attempt()
        self._check_free(is_running)
        nonce = secrets.token_hex(8)
        prepared = self.path / "attempts" / f"{PREPARED}{nonce}"
        owner = this_process() | {"nonce": nonce, "time": time.time()} | ({"slurm": dict(slurm)} if slurm else {})
        try:
            write_atomic(prepared / "owner.json", json_bytes(owner))
            self._check_owner(prepared)
            free = rename_to_free(prepared, prepared.with_name(str(int(before.name) + 1 if before else 1)))
        except FileNotFoundError:
            free = False  # a faster process has claimed the run and swept this up
        except (OSError, RecordError):
            shutil.rmtree(prepared, ignore_errors=True)
            raise
        if not free:
            raise self._claim_lost()
        self.nonce = nonce
        self._archive_error(before)
        self._sweep_up()

    def _check_free(self, is_running: Callable[[Mapping[str, Any]], bool]) -> None:
        """Raise ClaimedError while a running process has the run."""
        owner = self.owner()
        if owner is None or not is_running(owner):
            return
        by = f"process {owner['pid']} on {owner['host']}"
        if owner.get("slurm"):
            by = f"SLURM job {owner['slurm']['job']} on {owner['host']}"
            by += f"; if that has ended and no SLURM answers here, move {self.path}/attempts away"
        elif owner["host"] != socket.gethostname():
            by += "; if that has ended, the run is free minutes after its last heartbeat"
        raise ClaimedError(f"{self.run_id} is claimed by {by}")

    def _claim_lost(self) -> ClaimedError:
        return ClaimedError(f"{self.run_id} was claimed by another process just now")

    def _check_owner(self, made: Path) -> None:
        """Raise RecordError if a folder of the run has another owner than `made`, just made there: disks may map users."""
        for folder in (self.path, made.parent, self.checkpoints):
            if folder.exists() and folder.stat().st_uid != made.stat().st_uid:
                whose = f"belongs to another user (uid {folder.stat().st_uid}), who alone may go on with it"
                raise RecordError(f"{folder}: {whose}; give a folder of your own, as in paths.runs=my_runs")

    def _sweep_up(self) -> None:
        """Remove what killed processes left unfinished; once this one has claimed the run, no other writes here."""
        attempts = self.path / "attempts"
        for folder in (self.path, self.checkpoints, *(attempts / str(n) for n in self.attempts())):
            remove_temporaries(folder)
        for prepared in attempts.glob(f"{PREPARED}*"):
            shutil.rmtree(prepared, ignore_errors=True)

    def check_claim(self) -> None:
        """Raise ClaimedError if this process has lost the run to one that took it for dead: it must write no more (fencing)."""
        try:
            owner = self._owner()
        except RecordError as error:
            raise ClaimedError(f"nobody can tell who has {self.run_id}: {error}") from None
        if owner is None or owner["nonce"] != self.nonce:
            raise ClaimedError(f"{self.run_id} was taken over by another process")

    def write_heartbeat(self) -> None:
        """Record that the owner is alive. Raises ClaimedError if another process has the run by now."""
        self.check_claim()
        self.write(f"attempts/{self.attempts()[-1]}/heartbeat.json", {"time": time.time()})

    # --- metrics --------------------------------------------------------------------------------------------------

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl or norms.jsonl, whole lines in one write. Non-finite numbers become null."""
        self.check_claim()
        text = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        with (self.path / name).open("a") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())  # a later checkpoint must never be ahead of the rows on disk

    def truncate_after(self, name: str, last_step: int) -> None:
        """Drop the rows after `last_step`, and a last line that was cut off: a resumed run writes them again."""
        path = self.path / name
        if path.exists():
            rows = [row for row in read_rows(path) if row["step"] <= last_step]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def append_timing(self, row: Mapping[str, Any]) -> None:
        """Append a row to timing.jsonl; nothing depends on it, so it is not synced to disk and a failure is ignored."""
        with suppress(OSError), (self.path / "timing.jsonl").open("a") as f:
            f.write(json.dumps(_finite(dict(row))) + "\n")

    def truncate_timing(self, last_step: int) -> None:
        """Drop the rows of timing.jsonl after `last_step`; all of them if they cannot be read."""
        with suppress(OSError):
            try:
                self.truncate_after("timing.jsonl", last_step)
            except RecordError:
                (self.path / "timing.jsonl").unlink()

    # --- status and result ----------------------------------------------------------------------------------------

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the .json files, atomically."""
        write_atomic(self.path / name, json_bytes(value))

    def read(self, name: str) -> dict[str, Any] | None:
        """Read one of the .json files; None if there is none. Raises RecordError if it is not as records.py requires."""
        kind, fix = Path(name).name, "restore it, or move the folder away"
        if kind in ("result.json", "owner.json"):
            fix = "action=retry moves it aside"
        return read_json(self.path / name, RECORDS[kind], fix)

    def peek(self, name: str) -> dict[str, Any] | None:
        """Read one of the .json files; None also if it cannot be read."""
        with suppress(RecordError, OSError):
            return self.read(name)

    def _decisive_files(self) -> list[str]:
        """List the files that say whether the run has ended, and who owns it."""
        latest = self._latest_attempt()
        return ["result.json", *([f"attempts/{latest.name}/owner.json"] if latest else [])]

    def damage(self) -> RecordError | OSError | None:
        """Return why nobody may write here: result or owner cannot be read, or a folder is a link; None if all is well."""
        try:
            self.path.lstat()
        except FileNotFoundError:  # as of most runs of a new sweep, which then cost one call to a network disk
            return None
        except OSError:
            pass  # reading its files says why
        try:
            for folder in (self.path, self.path / "attempts", self.checkpoints):
                if folder.is_symlink():
                    return RecordError(f"{folder}: a link, through which nothing is written; put the folder itself there")
            for name in self._decisive_files():
                self.read(name)
        except (RecordError, OSError) as error:
            return error

    def write_status(self, value: Mapping[str, Any]) -> None:
        """Write status.json, which is for people alone, so that a failure to write is ignored."""
        with suppress(OSError):
            self.write("status.json", _finite(dict(value)))

    def status(self) -> dict[str, Any] | None:
        return self.peek("status.json")

    def write_error(self, text: str, is_running: Callable[[Mapping[str, Any]], bool] = is_alive) -> None:
        """Write the traceback of a failure.

        Raises ClaimedError if another process has the run, which then has not failed: this one lost it, or failed before it
        had it while its owner still runs (see `claim`).
        """
        if self.nonce is not None:
            self.check_claim()
        else:
            self._check_free(is_running)
        write_atomic(self.path / "error.txt", text.encode())

    def error(self) -> str | None:
        """Return the traceback with which the latest attempt failed, or what `damage` finds; None without either."""
        if damage := self.damage():
            return f"{type(damage).__name__}: {damage}"
        with suppress(OSError):
            return (self.path / "error.txt").read_text(errors="replace")

    def archive_error(self) -> None:
        """Move the last failure to its attempt's folder and rename damaged records, so that the run counts as not yet trained.

        What cannot be moved stays: then this run fails again, and says why.
        """
        with suppress(OSError):
            self._archive_error(self._latest_attempt())
            for name in self._decisive_files():
                try:
                    self.read(name)
                except RecordError:
                    os.replace(self.path / name, self.path / f"{name}.damaged")

    def _archive_error(self, attempt: Path | None) -> None:
        with suppress(FileNotFoundError):
            if attempt:
                os.replace(self.path / "error.txt", attempt / "error.txt")
            else:
                (self.path / "error.txt").unlink()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, after a last check that this process still owns the run."""
        self.check_claim()
        self.write("result.json", _finite(dict(result)))

    def result(self) -> dict[str, Any] | None:
        return self.peek("result.json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
