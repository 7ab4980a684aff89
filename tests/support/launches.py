"""Launches as a user makes them, in processes of their own, and what they leave on disk."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

from spectral_mup import data
from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan
from spectral_mup.util.processes import process_start
from support import ROOT
from support.runs import run_point

FILES = ("result.json", "metrics.jsonl", "norms.jsonl")
PATIENCE = 120  # seconds until a test gives up; never a measure of speed
MARK = "SPECTRAL_MUP_TEST"  # inherited by whatever a launch starts, so that nothing can be left unseen


# --- processes --------------------------------------------------------------------------------------------------------


STARTED: dict[Path, list[subprocess.Popen]] = {}  # by the folder of their test


class Launch:
    """launch.py (or another command) in a session of its own, with its output in files."""

    code: int  # exit code, once it was waited for

    def __init__(self, tmp: Path, overrides: list[str], *, script="launch.py", command=(), env=None, **streams) -> None:
        self.runs = tmp / "runs"
        self.number = len(list(tmp.glob("launch*.out")))
        self._out, self._err = tmp / f"launch{self.number}.out", tmp / f"launch{self.number}.err"
        paths = [f"paths.runs={self.runs}", f"paths.results={tmp / 'results'}"]
        self._began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command, str(ROOT / script), *overrides, *paths],
                env=environment(tmp, **(env or {})), cwd=tmp, start_new_session=True,
                **({"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err} | streams),
            )  # fmt: skip
        STARTED.setdefault(tmp, []).append(self.process)

    def wait(self) -> int:
        self.code = self.process.wait(PATIENCE)
        return self.code

    def seconds(self) -> float:
        """Wait, and return the seconds that it took less those for which others had the cores: as on a machine of its own."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # /proc forgets it with the next line
        took, waited = time.monotonic() - self._began, int(read(f"/proc/{self.process.pid}/schedstat").split()[1]) / 1e9
        self.wait()
        return took - waited

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def workers(self) -> list[int]:
        """Pids of its workers, by /proc: children of the launcher that multiprocessing spawned."""
        return [pid for pid in children(self.process.pid) if b"spawn_main" in read(f"/proc/{pid}/cmdline")]

    def kill(self, *workers: int) -> None:
        """kill -9 of the workers, then of the launcher, which must still be running."""
        assert self.process.poll() is None, "the launch ended before it could be killed"
        for pid in workers:
            kill(pid)
        self.process.kill()
        self.process.wait()


HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"


class OnTerminal(Launch):
    """A Launch whose streams are a terminal of 100 columns, with it as the session that ^C goes to."""

    def __init__(self, tmp: Path, overrides: list[str]) -> None:
        self._screen = b""
        self.master, slave = pty.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
            super().__init__(tmp, overrides, command=["-c", TERMINAL, sys.executable], env={"TERM": "xterm"}, **streams)
        finally:
            os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self.master, 65536):
                self._screen += piece
        except OSError:
            pass  # the last process on it has ended

    @property
    def out(self) -> str:
        return self._screen.decode().replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait(self) -> int:
        code = super().wait()
        self._reader.join(PATIENCE)
        os.close(self.master)
        return code


def environment(tmp: Path, **extra: str) -> dict[str, str]:
    """Like ours, but every home, cache and temporary folder lies under tmp, and no W&B account is known."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    home = tmp / "home"
    home.mkdir(exist_ok=True)
    folders: dict[str, str] = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(home))
    folders["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # fonts are looked for once a machine, for seconds and with a message
    return kept | folders | {"NETRC": str(home / "netrc"), MARK: str(tmp), "WANDB_ERROR_REPORTING": "false"} | extra


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def parent(pid: int) -> int | None:
    """The parent of a process; None where it has ended."""
    after_name = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(after_name[1]) if after_name else None


def children(of: int) -> list[int]:
    return [pid for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()) if parent(pid) == of]


def marked(tmp: Path) -> list[int]:
    """Living processes that a Launch in tmp started, or that these started, whoever is their parent now."""
    mark = f"{MARK}={tmp}".encode()
    pids = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
    return [p for p in pids if mark in read(f"/proc/{p}/environ").split(b"\0") and process_start(p)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


def until(condition: Callable[[], object], what: str):
    """The first true value of a condition, looked at every few milliseconds."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE} s in vain for {what}")


def until_gone(tmp: Path) -> None:
    until(lambda: not marked(tmp), "the end of all processes")


def leftovers(tmp: Path) -> list[int]:
    """Kill, and return, what is still there a minute on; multiprocessing's resource tracker outlives a launcher. All launches
    have been waited for then."""
    end = time.monotonic() + 60
    while (left := marked(tmp)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        kill(pid)
    for process in STARTED.pop(tmp, []):
        process.kill()
        process.wait()
    return left


# --- what lies on disk ------------------------------------------------------------------------------------------------


def contents(runs: Path) -> dict[str, list[bytes]]:
    """The bytes that must not depend on how a sweep came to its end, by run."""
    return {p.name: [(p / name).read_bytes() for name in FILES] for p in sorted(runs.iterdir())}


def trained(runs: Path, *sweeps: list[str]) -> dict[str, list[bytes]]:
    """contents() of the first plans of these sweeps, trained in this very process without a break, each run once."""
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    for run in planned(*sweeps):
        if not (runs / run.run_id).exists():
            run_point(run, runs, corpus)
    known = contents(runs)
    return {run.run_id: known[run.run_id] for run in planned(*sweeps)}


def planned(*sweeps: list[str]) -> list[RunConfig]:
    """The runs of these sweeps while nothing is done, each once."""
    plans = [make_plan(open_sweep(load_config(overrides)), lambda _: None) for overrides in sweeps]
    return list(dict.fromkeys(run for plan in plans for run in plan.runs))


def newest_checkpoint(folder: Path) -> int:
    """Step of a run folder's newest checkpoint, 0 without one."""
    return RunFolder(folder.parent, folder.name).newest_checkpoint()


def ended(runs: Path) -> list[Path]:
    return sorted(p.parent for p in runs.glob("*/result.json"))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time of change and bytes; a folder's own time, which tells of files that came and went, too."""
    paths = [folder, *folder.rglob("*")]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes()) for p in sorted(paths)}


def attempts(folder: Path) -> int:
    """How many attempts were begun before the result was written: each that trained to the end wrote it anew."""
    written = (folder / "result.json").stat().st_mtime_ns
    return sum(p.stat().st_mtime_ns <= written for p in folder.glob("attempts/*/owner.json"))


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
