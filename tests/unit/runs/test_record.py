"""A run folder after kill -9 at any write: readers see the old or the new, never half, and the next process goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.cli import RESULT

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_rows, write_atomic

STATUS = {"steps": 2, "loss": 1.0, "time": 0.0}


def train(runs: Path, doomed: int) -> None:
    """Write what a run writes; before the write number `doomed`, or after it, the process kills itself."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == doomed:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(real):
        def call(*args):
            count()
            done = real(*args)
            count()
            return done

        return call

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, deadly(getattr(os, name)))
    folder = RunFolder(runs, "r")
    folder.claim()
    for step in (1, 2):
        folder.append("metrics.jsonl", [{"step": step}])
        folder.write_status(STATUS | {"step": step})
        write_atomic(folder.checkpoints / f"{step:09d}.pt", b"x" * 100_000)
    folder.finish(RESULT)


def write(runs: Path, doomed: int) -> int:
    """Exit code of a process that trains so; with 0 it survives. Forked, as a new one would import for seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            train(runs, doomed)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_at_each_write_a_reader_sees_the_old_or_the_new(tmp_path):
    doomed, seen = 0, set()
    while True:
        doomed += 1
        runs = tmp_path / str(doomed)
        code = write(runs, doomed)
        if code == 0:
            break
        assert code == -9
        folder = RunFolder(runs, "r")
        assert all(set(owner) >= {"host", "pid", "nonce"} for owner in [folder.owner()] if owner is not None)
        assert folder.status() in (None, STATUS | {"step": 1}, STATUS | {"step": 2})
        assert folder.result() in (None, RESULT)
        assert all(p.stat().st_size == 100_000 for p in folder.checkpoints.glob("*.pt"))
        metrics = folder.path / "metrics.jsonl"
        rows = [row["step"] for row in read_rows(metrics)] if metrics.exists() else []
        assert (
            rows in ([], [1], [1, 2]) and len(rows) >= folder.newest_checkpoint()
        )  # a checkpoint never knows more than the rows
        seen.add((folder.newest_checkpoint(), folder.result() is not None))
        assert write(runs, 0) == 0 and RunFolder(runs, "r").result() == RESULT  # what was left does not block
        assert not [path for path in runs.rglob("*") if path.name.startswith((".", "new."))], "nobody swept up"
    assert doomed > 15 and seen == {(0, False), (1, False), (2, False), (2, True)}


def test_a_write_in_place_would_be_seen_half_done(tmp_path):
    """The control: the same bytes without a temporary file."""
    path = tmp_path / "result.json"
    code = "import os, sys; f = open(sys.argv[1], 'w'); f.write('{\"status\": '); f.flush(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    try:
        json.loads(path.read_text())
    except ValueError:
        return
    raise AssertionError("a half-written file was read as whole")
