"""The results of a sweep's runs, each read once: from its folder, or from a cache while the folder is unchanged."""

import math
import os
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_cache, write_cache
from spectral_mup.util.log import log

FILES = ("config.json", "result.json", "norms.jsonl")  # of a run folder, on which its analysis depends
FileState = list[int] | None


class Results:
    """Results of the runs under a folder; `cache` is a file with those that earlier processes read, which only saves time."""

    def __init__(self, runs: Path, cache: Path | None = None) -> None:
        self.runs, self.cache = runs, cache
        self._cached: dict[str, Any] = (read_cache(cache) if cache else None) or {}
        self._known: dict[str, tuple[list[FileState], dict[str, Any]]] = {}
        self._checked: set[str] = set()
        self._refused: set[str] = set()

    def of(self, run: RunConfig) -> dict[str, Any] | None:
        """Return the content of result.json, None until there is one.

        None also for a run whose folder cannot be read or contradicts itself, which is logged once. Raises RecordError or
        OSError if no run can be read.
        """
        run_id = run.run_id
        if run_id not in self._known:
            # taken before the files are read, so that no change is missed; only for a cache, being slow on a network disk
            state = [file_state(f"{self.runs}/{run_id}/{name}") for name in FILES] if self.cache else []
            before, result = self._cached.get(run_id, (None, None))
            if before != state:
                result = self._read(run)
            if not result:
                return None
            self._known[run_id] = state, result
        return self._known[run_id][1]

    def _read(self, run: RunConfig) -> dict[str, Any] | None:
        folder = RunFolder(self.runs, run.run_id)
        try:
            if run.run_id not in self._checked:
                folder.check_config(run.to_json())
                self._checked.add(run.run_id)
            return folder.read("result.json")
        except (RecordError, OSError) as error:
            if not (self.runs.is_dir() and os.access(self.runs, os.X_OK)):
                raise  # it is not only this run that cannot be read
            if run.run_id not in self._refused:
                log.warning("%s; until then the run counts as missing", error, extra={"run": run.run_id})
            self._refused.add(run.run_id)
            return None

    def loss(self, run: RunConfig) -> float | None:
        """Return the loss of a run, inf if it diverged, None if it has not ended."""
        result = self.of(run)
        if result is None:
            return None
        return result["val_loss"] if result["status"] == "done" else math.inf

    def seconds(self, run: RunConfig) -> float:
        """Return the seconds for which a run was trained, 0 if it has not ended or they are not known.

        Of a resumed run only the last attempt was timed: its steps before that count as much each.
        """
        result = self.of(run)
        timing = RunFolder(self.runs, run.run_id).peek("timing.json") if result else None
        return timing["seconds"] / timing["steps"] * result["steps"] if result and timing and timing["steps"] > 0 else 0.0

    def states(self) -> dict[str, list[FileState]]:
        """Return the file states of FILES of every run found to have ended, by id; without a cache they are empty lists."""
        return {run_id: state for run_id, (state, _) in self._known.items()}

    def save(self) -> None:
        """Write what is known to the cache, if it has changed."""
        known = {run_id: [*entry] for run_id, entry in self._known.items()}
        if self.cache and known != self._cached:
            write_cache(self.cache, known)


def file_state(path: Path | str) -> FileState:
    """Return what changes whenever a file does: its size, times of change and inode; None without a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
