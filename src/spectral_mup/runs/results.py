"""What the runs of a sweep came to, read once: from their folders, or from a cache of folders that have not changed since."""

import math
import os
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_cache, write_cache
from spectral_mup.util.log import log

FILES = ("config.json", "result.json", "norms.jsonl")  # of a run folder: what its analysis rests on
FileState = list[int] | None


class Results:
    """Results of the runs under a folder. `cache` is a file that holds those of an earlier process; only speed rests on it."""

    def __init__(self, runs: Path, cache: Path | None = None) -> None:
        self.runs, self.cache = runs, cache
        self._cached: dict[str, Any] = (read_cache(cache) if cache else None) or {}
        self._known: dict[str, tuple[list[FileState], dict[str, Any]]] = {}
        self._checked: set[str] = set()
        self._refused: set[str] = set()

    def of(self, run: RunConfig) -> dict[str, Any] | None:
        """Content of result.json; None while there is none, and where the run's folder cannot be read or contradicts itself,
        which is logged once: the other runs go on. Raises RecordError or OSError where none can be read."""
        run_id = run.run_id
        if run_id not in self._known:
            # taken before the files are read; who keeps no cache is spared the calls, which take long on a network disk
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
                raise  # which is not a matter of this run
            if run.run_id not in self._refused:
                log.warning("%s; until then the run counts as missing", error, extra={"run": run.run_id})
            self._refused.add(run.run_id)
            return None

    def loss(self, run: RunConfig) -> float | None:
        """Loss of a run that is done, inf if it diverged, None if it has not ended."""
        result = self.of(run)
        if result is None:
            return None
        return result["val_loss"] if result["status"] == "done" else math.inf

    def seconds(self, run: RunConfig) -> float:
        """Seconds for which a run that has ended was trained; 0 where that is not known."""
        timing = RunFolder(self.runs, run.run_id).peek("timing.json") if self.of(run) else None
        return timing["seconds"] if timing else 0.0

    def states(self) -> dict[str, list[FileState]]:
        """What the FILES of every run that was found to have ended looked like; known with a cache alone."""
        return {run_id: state for run_id, (state, _) in self._known.items()}

    def save(self) -> None:
        """Write what is known to the cache, if it is news."""
        known = {run_id: [*entry] for run_id, entry in self._known.items()}
        if self.cache and known != self._cached:
            write_cache(self.cache, known)


def file_state(path: Path | str) -> FileState:
    """By what a change of a file is seen: its size, its times, and which one it is; None without one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
