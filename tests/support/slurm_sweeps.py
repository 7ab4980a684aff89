"""Sweeps on the test cluster: how they are launched, waited for and compared with an unbroken local one."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from spectral_mup.cli import console
from spectral_mup.cli.context import SCRIPTS
from spectral_mup.cluster.slurm.run_states import Report, reconcile
from spectral_mup.config.compose import load_config
from spectral_mup.runs.sweep import Sweep, open_sweep, result_reader
from spectral_mup.search.plan import make_plan
from support.launches import PATIENCE, Launch, contents, environment
from support.runs import TINY
from support.slurm_cluster import SlurmCluster

ON_SLURM = ["cluster=slurm", "cluster.gpus=0", "cluster.cpus=2", "cluster.memory=2G", "cluster.time=10", "yes=true"]
HELD = "+cluster.extra={hold: true}"  # until it is released
FIXED = [*TINY, "lr.adaptive=false"]


@functools.cache
def _sweep(overrides: tuple[str, ...]) -> Sweep:
    return open_sweep(load_config([*ON_SLURM, *overrides]))


@dataclass(frozen=True)
class Ended:
    """What a command in this process came to, by the names that a Launch has."""

    code: int
    out: str
    err: str


class Site:
    """A user's folder `tmp` and the cluster that launches from it go to."""

    def __init__(self, tmp: Path, cluster: SlurmCluster) -> None:
        self.tmp, self.cluster = tmp, cluster
        self.runs, self.jobs = tmp / "runs", tmp / "jobs"

    def start(self, overrides: list[str], *, script: str = "launch.py", env: dict[str, str] | None = None, **more) -> Launch:
        """A command with cluster=slurm, still running."""
        return Launch(self.tmp, [*ON_SLURM, *overrides], script=script, env=self.client() | (env or {}), **more)

    def client(self) -> dict[str, str]:
        """Environment in which SLURM's commands find the cluster."""
        env = self.cluster.env()
        return {k: env[k] for k in ("SLURM_CONF", "PATH")}

    def call(self, overrides: list[str], **more) -> Launch | Ended:
        """The same, once it has ended. Where nothing of the process is given (env, script) it is called in this one, in the
        folder and the environment that the process would have: a start of Python costs more than most commands."""
        if more:
            launch = self.start(overrides, **more)
            launch.wait()
            return launch
        paths = [f"paths.runs={self.runs}", f"paths.results={self.tmp / 'results'}"]
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            contextlib.chdir(self.tmp),
            mock.patch.dict(os.environ, environment(self.tmp, **self.client()), clear=True),
            mock.patch.object(sys, "path", [*sys.path]),
        ):
            code = console.main(["launch", *ON_SLURM, *overrides, *paths], SCRIPTS)
        return Ended(code, out.getvalue(), err.getvalue())

    def report(self, overrides: list[str]) -> Report:
        """What action=status goes by, in this process, where a look costs no start of Python."""
        with mock.patch.dict(os.environ, self.client()):
            return reconcile(self.runs, self.jobs, make_plan(_sweep(tuple(overrides)), result_reader(self.runs)).runs)

    def states(self, overrides: list[str]) -> dict[str, int]:
        """Counts by state."""
        return self.report(overrides).counts()

    def until(self, overrides: list[str], what: str, condition, seconds: float = PATIENCE) -> dict[str, int]:
        """The first states for which `condition` holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition(states := self.states(overrides)):
                return states
            time.sleep(0.5)
        raise AssertionError(f"waited {seconds} s in vain for {what}: {states}\n{self.log()}")

    def until_idle(self, seconds: float = PATIENCE) -> None:
        """Wait until no job is left."""
        end = time.monotonic() + seconds
        while self.cluster.run("squeue", "--noheader").strip():
            assert time.monotonic() < end, f"jobs are left after {seconds} s:\n{self.cluster.run('squeue')}\n{self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        """All that tasks have printed."""
        return "\n".join(f"--- {p}\n{p.read_text(errors='replace')}" for p in sorted(self.jobs.glob("*/log/*.out")))

    def contents(self) -> dict[str, list[bytes]]:
        return contents(self.runs)

    def attempts(self) -> dict[str, list[dict]]:
        """Owners of all attempts, by run, the first attempt first."""
        found = {}
        for run in sorted(self.runs.iterdir()):
            numbers = sorted(int(p.name) for p in run.glob("attempts/*") if p.name.isdigit())
            found[run.name] = [json.loads((run / "attempts" / str(n) / "owner.json").read_text()) for n in numbers]
        return found

    def submitted(self) -> list[dict]:
        """What lies in the jobs folder, oldest first."""
        return [json.loads((p / "submission.json").read_text()) for p in self.numbered()]

    def numbered(self) -> list[Path]:
        return sorted((p for p in self.jobs.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def before(site: Site, command: str, body: str) -> dict[str, str]:
    """Environment in which a bash script stands before a SLURM command, called `$real` in it; `$log` is a file of its own."""
    folder = site.tmp / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / command
    path.write_text(f"#!/bin/bash\nreal={shutil.which(command)}\nlog={folder}/{command}.log\n{body}")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{site.cluster.env()['PATH']}"}


def fate(text: str, cause: str) -> tuple[int, str]:
    """Of a cause in the output of action=why: how many runs have it, and whether each resumes, is left to the next launch, or
    is not retried."""
    found = re.search(rf"^{cause} \((\d+) \w+, ([^)]*)\)", text, re.M)
    assert found, text
    return int(found[1]), "not" if found[2].startswith("not ") else "launch" if "launch" in found[2] else "resumes"
