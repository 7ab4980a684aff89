"""Sweeps on the test cluster: how they are launched, waited for and compared with an unbroken local one."""

from __future__ import annotations

import json
import time
from pathlib import Path

from conftest import TINY
from launches import PATIENCE, Launch, contents
from slurm_cluster import SlurmCluster

ON_SLURM = ["cluster=slurm", "cluster.gpus=0", "cluster.cpus=2", "cluster.memory=2G", "cluster.time=10", "yes=true"]
FIXED = [*TINY, "lr.adaptive=false"]


class Site:
    """A user's folder `tmp` and the cluster that launches from it go to."""

    def __init__(self, tmp: Path, cluster: SlurmCluster) -> None:
        self.tmp, self.cluster = tmp, cluster
        self.runs, self.jobs = tmp / "runs", tmp / "jobs"

    def start(self, overrides: list[str], *, script: str = "launch.py", env: dict[str, str] | None = None, **more) -> Launch:
        """A command with cluster=slurm, still at work."""
        client = self.cluster.env()
        wanted = {k: client[k] for k in ("SLURM_CONF", "PATH")}
        return Launch(self.tmp, [*ON_SLURM, *overrides], script=script, env=wanted | (env or {}), **more)

    def call(self, overrides: list[str], **more) -> Launch:
        """The same, once it has ended; `code` is its exit code."""
        launch = self.start(overrides, **more)
        launch.code = launch.wait()
        return launch

    def states(self, overrides: list[str]) -> dict[str, int]:
        """Counts by state, as action=status prints them."""
        status = self.call([*overrides, "action=status"])
        assert status.code == 0, status.err
        counts = status.out.splitlines()[0].partition("points: ")[2].partition(";")[0]
        return {name: int(n) for n, name in (part.split() for part in counts.split(", "))}

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
