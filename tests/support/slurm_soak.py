"""A sweep of tiny runs on the test cluster, and the faults that can be in it: of tasks, daemons, the disk and SLURM's answers.

The disk is made slow and full in the tasks and commands themselves, which needs no root: while the file `full` lies in the
sweep's folder, every fsync below it cuts off the end of what was written and raises ENOSPC; while `slow` does, each write of
metrics takes as long as lets the sweep last. Each result that is put in place is noted in results.log.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.processes import lives_here, process_start
from support.launches import Launch, kill, parent
from support.slurm_cluster import SlurmCluster
from support.slurm_sweeps import Site, before

SWEEP = [
    "sweep.name=soak", "data=pydoc", "rule=[spectral]", "lr.adaptive=false", "sweep.lr=[-6]", "sweep.width=[8,16]",
    "sweep.base_width=8", "sweep.depth=[1]", "sweep.base_depth=1", "model.head_size=8", "model.context=16",
    "train.batch_size=2", "train.steps=8", "train.warmup=2", "train.eval_sequences=4", "train.precision=float32",
    "train.compile=false", "probe.steps=[2]", "probe.sequences=1",
]  # fmt: skip
SITE = [
    "cluster.workers=2", "cluster.pack_minutes=0.5", "cluster.signal_seconds=10", "cluster.log_every=2",
    "cluster.checkpoint_seconds=0",
]  # fmt: skip
GREETING = "[ -e {flag} ] && {{ echo 'Welcome | to | the cluster'; echo 2026; echo 'Down on Sunday' >&2; }}\n"
HOOK = """
import errno, os, time
folder = {folder!r}
fsync, replace = os.fsync, os.replace

def slow_or_full(fd):
    path = os.readlink(f"/proc/self/fd/{{fd}}")
    if path.startswith(folder) and os.path.exists(folder + "/full"):
        os.truncate(fd, max(0, os.fstat(fd).st_size - 9))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if path.endswith("/metrics.jsonl") and os.path.exists(folder + "/slow"):
        time.sleep({pause!r})
    fsync(fd)

def counted(source, target, **more):
    replace(source, target, **more)
    if str(target).endswith("/result.json"):
        with open(folder + "/results.log", "a") as log:
            log.write(str(target) + "\\n")

os.fsync, os.replace = slow_or_full, counted
"""
Steps = Iterator[tuple[str, float]]  # what was done, and the seconds until it goes on; what says nothing is not logged


class Soak:
    """The sweep in `folder`, the faults that are in it now, and what happened."""

    def __init__(self, folder: Path, cluster: SlurmCluster, runs: int, seed: int, minutes: float) -> None:
        self.site, self.cluster, self.rng = Site(folder, cluster), cluster, random.Random(seed)
        self.sweep = [*SWEEP, f"sweep.seed={list(range(runs // 2))}".replace(" ", "")]
        self.began = time.monotonic()
        self.minutes, self.runs = minutes, runs
        self.command: Launch | None = None  # of the user's, and how many seconds the last one took
        self.pace = 0.0
        self.down: set[str] = set()  # daemons that a fault has now
        self.meant: set[str] = set()  # jobs that are to be suspended, or to preempt ours
        self.counts: Counter[str] = Counter()  # of faults and of the user's commands
        self.wrong: list[str] = []
        (folder / "hook").mkdir(parents=True)
        (folder / "slow").touch()
        (folder / "results.log").touch()
        hook = HOOK.format(folder=str(folder), pause=45 * minutes / runs)  # 2 tasks × 2 workers, a quarter for the faults
        (folder / "hook" / "sitecustomize.py").write_text(hook)
        greeting = GREETING.format(flag=folder / "greet")
        python = f"{folder / 'hook'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        (folder / "site.sh").write_text(f"{greeting}export PYTHONPATH={python}\n")
        for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo"):
            self.env = before(self.site, name, greeting + 'exec "$real" "$@"') | {"PYTHONPATH": python}

    def log(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {what}", flush=True)

    def slurm(self, *command: str) -> str | None:
        """What a client prints, None while the controller is down or refuses."""
        if "slurmctld" in self.down:
            return None
        try:
            return self.cluster.run(*command, timeout=20)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.log(f"{' '.join(command)}: {str(error).splitlines()[0]}")
            return None

    def pick(self, things: list | None) -> list:
        """One of them, if there is any."""
        return [self.rng.choice(things)] if things else []

    def jobs(self, state: str, partition: str = "main") -> list[str] | None:
        """Ids of the jobs and tasks in this state, None without an answer."""
        said = self.slurm("squeue", "--noheader", f"--states={state}", f"--partition={partition}", "--format=%i")
        return None if said is None else said.split()

    def workers(self) -> list[int]:
        """Ids of the processes that have a run."""
        folders = [RunFolder(self.site.runs, path.name) for path in sorted(self.site.runs.glob("*"))]
        owners = [folder.owner() for folder in folders if folder.result() is None]
        return [owner["pid"] for owner in owners if owner and lives_here(owner)]

    def start(self, action: str) -> Launch:
        """A command of the user's."""
        preamble = f"cluster.preamble={self.site.tmp / 'site.sh'}"
        self.command = self.site.start([*self.sweep, *SITE, preamble, f"action={action}"], env=self.env)
        return self.command


# --- faults: each does harm, waits, and repairs it; without anything to harm it ends at once --------------------------------


def killed_process(soak: Soak, of_worker: Callable[[int], int | None]) -> Steps:
    for pid in filter(None, map(of_worker, soak.pick(soak.workers()))):
        kill(pid)
        yield f"process {pid}", 0


def stopped_worker(soak: Soak) -> Steps:
    for pid in soak.pick(soak.workers()):
        os.kill(pid, signal.SIGSTOP)
        start = process_start(pid)
        yield f"process {pid}", soak.rng.uniform(2, 20)
        if start and process_start(pid) == start:
            os.kill(pid, signal.SIGCONT)


def killed_command(soak: Soak) -> Steps:
    if soak.command and soak.command.process.poll() is None:
        soak.command.process.kill()
        yield "kill -9 of the user's command", 0


def requeue(soak: Soak) -> Steps:
    for job in soak.pick(soak.jobs("RUNNING")):
        soak.slurm("scontrol", "requeue", job)
        yield f"task {job}", 0


def scancel(soak: Soak) -> Steps:
    for job in soak.pick(soak.jobs("RUNNING")):
        soak.slurm("scancel", job)
        yield f"task {job}", 0


def suspension(soak: Soak) -> Steps:
    for job in soak.pick(soak.jobs("RUNNING")):
        soak.slurm("scontrol", "suspend", job)
        soak.meant.add(job)
        yield f"task {job}", soak.rng.uniform(2, 20)
        soak.meant.discard(job)


def preemption(soak: Soak) -> Steps:
    node = soak.rng.choice(soak.cluster.nodes)
    options = f"--parsable --partition=high --exclusive --nodelist={node} --output=/dev/null"
    if job := soak.slurm("sbatch", *options.split(), "--wrap=sleep 600"):
        soak.meant.add(job.strip())
        yield f"on {node}", soak.rng.uniform(2, 15)
        soak.meant.discard(job.strip())


def daemon_of(soak: Soak, name: str) -> list[str]:
    """The daemon of this name, or of a node, that no fault has as yet; marked as down."""
    daemons = [f"slurmd.{node}" for node in soak.cluster.nodes] if name == "slurmd" else [name]
    found = soak.pick([daemon for daemon in daemons if daemon not in soak.down])
    soak.down.update(found)
    return found


def killed_daemon(soak: Soak, name: str) -> Steps:
    for daemon in daemon_of(soak, name):
        soak.cluster.kill_daemon(daemon)
        yield daemon, soak.rng.uniform(0.5, 12)
        while daemon == "slurmctld" and "slurmdbd" in soak.down:  # without it, it does not start
            yield "", 1
        soak.cluster.start_daemon(daemon)
        soak.down.remove(daemon)


def stopped_daemon(soak: Soak, name: str) -> Steps:
    for daemon in daemon_of(soak, name):
        soak.cluster.signal_daemon(daemon, signal.SIGSTOP)
        yield daemon, soak.rng.uniform(2, 12)
        soak.cluster.signal_daemon(daemon, signal.SIGCONT)
        soak.down.remove(daemon)


def lost_node(soak: Soak) -> Steps:
    for daemon in daemon_of(soak, "slurmd"):
        soak.cluster.kill_node(daemon.removeprefix("slurmd."))
        yield daemon.removeprefix("slurmd."), soak.rng.uniform(1, 30)  # noticed after 10
        soak.cluster.start_daemon(daemon)
        soak.down.remove(daemon)


def flag(soak: Soak, name: str) -> Steps:
    path = soak.site.tmp / name
    if not path.exists():
        path.touch()
        yield "begins", soak.rng.uniform(3, 15)
        path.unlink()


FAULTS: dict[str, Callable[[Soak], Steps]] = {
    "worker killed": partial(killed_process, of_worker=int),
    "worker stopped": stopped_worker,
    "task killed": partial(killed_process, of_worker=parent),
    "task requeued": requeue,
    "task cancelled": scancel,
    "task suspended": suspension,
    "task preempted": preemption,
    "node lost": lost_node,
    "command killed": killed_command,
    "disk full": partial(flag, name="full"),
    "commands greet": partial(flag, name="greet"),
    "slurmctld killed": partial(killed_daemon, name="slurmctld"),
    "slurmctld stopped": partial(stopped_daemon, name="slurmctld"),
    "slurmd killed": partial(killed_daemon, name="slurmd"),
    "slurmd stopped": partial(stopped_daemon, name="slurmd"),
    "slurmdbd killed": partial(killed_daemon, name="slurmdbd"),
    "slurmdbd stopped": partial(stopped_daemon, name="slurmdbd"),
}
