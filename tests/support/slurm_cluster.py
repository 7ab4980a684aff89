"""A real SLURM on loopback, with accounting, fake GPUs and faults, thrown away after use. Linux; needs no root and no service.

By hand, in a new or empty folder, which `stop` removes; several clusters run side by side:

    eval "$(python tests/support/slurm_cluster.py start /tmp/sl --nodes 2)"
    srun -N2 hostname
    python tests/support/slurm_cluster.py stop /tmp/sl
"""

import argparse
import contextlib
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

APT = (
    "apt-get install -y --no-install-recommends "
    "slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core"
)
PROGRAMS = "munged mariadbd slurmdbd slurmctld slurmd sacctmgr sacct sbatch scancel scontrol sinfo squeue srun".split()
OUTER_JOB = "SLURM_ SLURMD_ SBATCH_ SRUN_ SALLOC_ SCANCEL_ SQUEUE_ SINFO_ SACCT_ SCONTROL_ SUBMITIT_".split()
OUTER_RANKS = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
DEVICES = "null zero full random urandom tty".split()  # character devices every Linux has
LONGEST_ROOT = 90  # bytes; a unix socket's path holds 107

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
# Loopback only.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# A requeued job waits until its credential has expired: 120 s by default, 3 is refused.
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
# No cgroups; memory is counted by polling and enforced by the step's own daemon.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# Nodes are shared, and may claim more CPUs and memory than this machine has.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
SlurmdParameters=config_overrides
GresTypes=gpu
# Jobs come back after the loss of a node and after preemption; a job's --signal is sent at preemption as well.
JobRequeue=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode={preempt}
SlurmctldParameters=preempt_send_user_signal
# Fast enough for tests: submitit ignores SIGTERM, and a throttled array waits for the scheduler's rounds.
KillWait=3
SlurmdTimeout=10
MinJobAge={min_job_age}
MaxArraySize={max_array}
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_continue
# The password towards slurmdbd is a munge socket; AuthInfo does not hold there.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={root}/munge/munge.sock
AccountingStorageTRES=gres/gpu
NodeName={node_set} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs={cpus} RealMemory={mem} Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode={preempt} GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD_CONF = """\
AuthInfo=socket={root}/munge/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser={user}
StoragePass=none
"""


class SlurmCluster:
    """A cluster in the folder `root`, which start() makes or finds empty and stop() removes.

    nodes; cpus, gpus and mem (MB) of each; max_array (MaxArraySize: array indices end below it); grace (s a preempted job has
    after its signal); preempt (PreemptMode: REQUEUE, or CANCEL, after which nothing is queued again); min_job_age (s until
    squeue forgets an ended job); prefix (nodes are prefix1, prefix2, …: torch.distributed needs names that resolve, as
    127.0.0.1 and 127.0.0.2 do)."""

    def __init__(
        self,
        root: str | Path,
        *,
        nodes: int = 2,
        cpus: int = 8,
        gpus: int = 4,
        mem: int = 32000,
        max_array: int = 1001,
        grace: int = 0,
        preempt: str = "REQUEUE",
        min_job_age: int = 300,
        prefix: str = "127.0.0.",
    ):
        self.root = Path(root).absolute()
        if len(os.fsencode(self.root)) > LONGEST_ROOT:
            raise ValueError(f"root: {self.root} is too long for a unix socket, give a folder of at most {LONGEST_ROOT} bytes")
        self.conf = self.root / "slurm.conf"
        self.nodes = [f"{prefix}{i}" for i in range(1, nodes + 1)]
        self.gpus = gpus
        node_set = f"{prefix}[1-{nodes}]"
        self._settings: dict[str, object] = dict(node_set=node_set, cpus=cpus, gpus=gpus, mem=mem)
        self._settings |= dict(max_array=max_array, grace=grace, preempt=preempt, min_job_age=min_job_age)
        self._record = self.root / "pids.json"
        # In memory: every table slurmdbd creates is synced, 3 s on a disk. The name is found again by stop() from elsewhere.
        shm = Path("/dev/shm")
        self.database = shm / f"slurm{str(self.root).replace('/', '-')}" if os.access(shm, os.W_OK) else self.root / "sql"
        self._children: dict[str, subprocess.Popen] = {}

    @staticmethod
    def missing() -> list[str]:
        """Programs of PROGRAMS that are not installed; APT installs them."""
        return [name for name in PROGRAMS if not shutil.which(name, path=_path())]

    def env(self) -> dict[str, str]:
        """Environment of this cluster's clients: the caller's without traces of an outer job."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(tuple(OUTER_JOB)) and k not in OUTER_RANKS}
        return kept | {"SLURM_CONF": str(self.conf), "PATH": _path()}

    def run(self, *command: str, timeout: float = 60) -> str:
        """Standard output of a client. Raises RuntimeError with what it said if it fails."""
        done = subprocess.run(command, env=self.env(), capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def until(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Poll until condition() is true; a RuntimeError in it (a client whose daemon is not up yet) counts as false. Raises
        TimeoutError, or RuntimeError if `what` is one of the daemons and has ended."""
        end, reason = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except RuntimeError as error:
                reason = str(error)
            child = self._children.get(what)
            if child and child.poll() is not None:
                raise RuntimeError(f"{what} ended with {child.returncode}")
            time.sleep(0.05)
        raise TimeoutError(f"no {what} after {seconds} s {reason}")

    # Start and stop

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        """Return with all nodes idle. Raises FileNotFoundError if a program is missing, FileExistsError if root is not
        empty, RuntimeError with the daemons' logs if one does not come up; a failed start leaves nothing."""
        if missing := self.missing():
            raise FileNotFoundError(f"not installed: {', '.join(missing)}; {APT}")
        if self.root.exists() and any(self.root.iterdir()):
            raise FileExistsError(f"root: {self.root} is not empty, give a new folder or stop the cluster in it")
        try:
            self._start()
        except RuntimeError:  # another process may have taken a port between its choice and its use
            self._start()

    def _start(self) -> None:
        try:
            self._write()
            for name in ("munged", "mariadbd", "slurmdbd"):
                self._launch(name)
            # Known to the database before the controller reports its first job.
            self.until("sacctmgr", lambda: self.run("sacctmgr", "-i", "add", "cluster", "test"), 20)
            self._launch("slurmctld")
            for node in self.nodes:
                self.start_node(node)
            self.until("idle nodes", self._idle, 30)
        except BaseException as error:
            logs = self._logs()
            self.stop()
            if isinstance(error, (RuntimeError, TimeoutError)):
                raise RuntimeError(f"{error}\n{logs}") from error
            raise

    def stop(self) -> None:
        """Kill the recorded processes and the jobs, then remove root. Works from another process than the starter's. Raises
        FileNotFoundError if root holds no cluster."""
        if not self._record.exists():
            raise FileNotFoundError(f"root: no cluster was started in {self.root}")
        for name in reversed(self.pids()):
            self._end(name, signal.SIGKILL)
        self._kill_jobs()
        for folder in (self.database, self.root):
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Bring back what a test has stopped and end its jobs. Raises RuntimeError if a process of a job outlives that."""
        for name in self.pids():
            if not self.alive(name):
                self._launch(name)
        self._cancel(60)
        self.until("idle nodes", self._idle, 60)
        try:
            self.until("end of the jobs' processes", lambda: not self.job_pids(), 3)
        except TimeoutError as error:
            left = self._kill_jobs()
            raise RuntimeError(f"processes {left} outlived their jobs") from error

    # Faults

    def stop_slurmdbd(self) -> None:
        self._end("slurmdbd")

    def start_slurmdbd(self) -> None:
        self._launch("slurmdbd")

    def stop_controller(self) -> None:
        """Jobs run on; the controller knows them again after start_controller()."""
        self._end("slurmctld")

    def start_controller(self) -> None:
        self._launch("slurmctld")

    def kill_daemon(self, name: str) -> None:
        """Of pids(), with what it has in memory alone; jobs run on."""
        self._end(name, signal.SIGKILL)

    def start_daemon(self, name: str) -> None:
        self._launch(name)

    def signal_daemon(self, name: str, number: int) -> None:
        """SIGSTOP makes one that takes connections and never answers, SIGCONT lets it go on."""
        os.kill(self.pids()[name][0], number)

    def kill_node(self, node: str) -> None:
        """The node's slurmd, its step daemons and all processes of its jobs, as if it lost power."""
        self._end(f"slurmd.{node}", signal.SIGKILL)
        self._kill_jobs(node)

    def start_node(self, node: str) -> None:
        """The node is idle some 3 s later. A job lost with it is queued again only if the node was seen down before."""
        self._launch(f"slurmd.{node}")

    def job_pids(self, node: str | None = None) -> list[int]:
        """Step daemons and processes of this cluster's jobs (of one node), told from everybody else's by their environment: the
        conf, and the node's name, which slurmd sets for tasks and _launch() sets for slurmd and so for its step daemons."""
        found, parents = set(), {}
        daemons = {pid for pid, _ in self.pids().values()}
        node_name = f"SLURMD_NODENAME={node or ''}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = set((folder / "environ").read_bytes().split(b"\0"))
                parents[int(folder.name)] = int(_stat(folder)[1])
                if (folder / "comm").read_text() == "slurmstepd\n":
                    variables |= self._daemon_variables(folder)
            except OSError:  # ended meanwhile, or somebody else's
                continue
            on_node = node_name in variables if node else any(variable.startswith(node_name) for variable in variables)
            if on_node and f"SLURM_CONF={self.conf}".encode() in variables:
                found.add(int(folder.name))
        found -= daemons
        # A process may have dropped its environment; its parents have not.
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    # Inside

    def _daemon_variables(self, folder: Path) -> set[bytes]:
        """What a step daemon's environment was, from the log that it writes to: since SLURM 23 its title overwrites it."""
        logs = {os.readlink(link) for link in (folder / "fd").iterdir()}
        ours = [node for node in self.nodes if str(self.root / "log" / f"slurmd.{node}.log") in logs]
        return {f"SLURMD_NODENAME={node}".encode() for node in ours} | {f"SLURM_CONF={self.conf}".encode() for _ in ours}

    def _write(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._record.write_text("{}")
        for name in ("munge", "state", "run", "log", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.root / name).mkdir(parents=True)
        (self.root / "munge").chmod(0o755)  # munged refuses one that others may write to
        shutil.rmtree(self.database, ignore_errors=True)  # of an earlier root of this name that was removed without stop()
        self.database.mkdir(mode=0o700)
        controller, self._dbd_port, self._sql_port, *ports = _free_ports(3 + len(self.nodes))
        self._node_ports = dict(zip(self.nodes, ports, strict=True))
        values = self._settings | dict(
            root=self.root,
            host=socket.gethostname().split(".")[0],
            user=_user(),
            controller_port=controller,
            dbd_port=self._dbd_port,
            sql_port=self._sql_port,
            node_ports=f"[{','.join(map(str, ports))}]",
        )
        self.conf.write_text(SLURM_CONF.format(**values))
        (self.root / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in self._gpu_files()))
        (self.root / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
        (self.root / "munge" / "munge.key").write_bytes(secrets.token_bytes(128))
        for secret in ("slurmdbd.conf", "munge/munge.key"):
            (self.root / secret).chmod(0o600)

    def _gpu_files(self) -> list[str]:
        """A character device for each GPU of a node: for others, SLURM sets no CUDA_VISIBLE_DEVICES."""
        made = [self.root / "dev" / f"gpu{i}" for i in range(self.gpus)]
        try:
            for file in made:
                os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # a clone of /dev/null
        except PermissionError:
            if self.gpus > len(DEVICES):
                raise ValueError(f"gpus: at most {len(DEVICES)} without root") from None
            return [f"/dev/{name}" for name in DEVICES[: self.gpus]]
        return [str(file) for file in made]

    def _launch(self, name: str) -> None:
        """Start a daemon, record it, and return when it answers."""
        command, answers = self._daemon(name)
        variables = self.env()
        if name.startswith("slurmd."):
            variables["SLURMD_NODENAME"] = name.removeprefix("slurmd.")  # inherited by its step daemons, for job_pids()
        with open(self.root / "log" / f"{name}.out", "ab") as out:
            child = subprocess.Popen(
                command, env=variables, cwd=self.root, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._children[name] = child
        pids = self.pids() | {name: (child.pid, started_at(child.pid))}
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(pids))
        new.replace(self._record)
        self.until(name, answers, 30)

    def _daemon(self, name: str) -> tuple[list[str], Callable[[], object]]:
        """Its command, and a function that is true as soon as it answers."""
        if name == "munged":
            munge = self.root / "munge"
            (munge / "munge.sock").unlink(missing_ok=True)
            files = {"socket": "sock", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
            options = [f"--{option}={munge}/munge.{suffix}" for option, suffix in files.items()]
            return ["munged", "--foreground", "--force", *options], lambda: _answers(str(munge / "munge.sock"))
        if name == "mariadbd":
            # Without grant tables an empty data folder is enough.
            options = f"--datadir={self.database} --socket={self.root}/run/sql.sock --pid-file={self.root}/run/mariadbd.pid"
            options += f" --user={_user()} --bind-address=127.0.0.1 --port={self._sql_port} --skip-name-resolve"
            options += " --skip-grant-tables --performance-schema=OFF --innodb-log-file-size=8M --skip-innodb-doublewrite"
            options += " --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync"
            return ["mariadbd", "--no-defaults", *options.split()], lambda: _answers(self._sql_port)
        if name == "slurmdbd":
            return ["slurmdbd", "-D"], lambda: _answers(self._dbd_port)
        if name == "slurmctld":
            return ["slurmctld", "-D"], lambda: "UP" in self.run("scontrol", "ping")
        node = name.removeprefix("slurmd.")
        return ["slurmd", "-D", "-N", node], lambda: _answers(self._node_ports[node])

    def _logs(self) -> str:
        logs = sorted(self.root.glob("log/*.out"))
        return "\n".join(f"{log.name}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]) for log in logs)

    def _idle(self) -> bool:
        states = dict(line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines())
        for node, state in states.items():
            if "drain" in state:
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        return list(states.values()) == ["idle"] * len(self.nodes)

    def _cancel(self, seconds: float) -> None:
        """Cancel all jobs and wait for an empty queue."""

        def empty() -> bool:
            queued = self.run("squeue", "-h", "-o", "%t").split()
            if set(queued) - {"CG"}:
                self.run("scancel", f"--user={_user()}")
            return not queued

        self.until("empty queue", empty, seconds)

    def pids(self) -> dict[str, tuple[int, int]]:
        """Process id and start time of each daemon, in the order of their start."""
        return {name: (pid, began) for name, (pid, began) in json.loads(self._record.read_text()).items()}

    def alive(self, name: str) -> bool:
        """Whether the daemon that was recorded runs; one that had ended before it was recorded never does."""
        pid, began = self.pids().get(name, (0, -1))
        return began >= 0 and started_at(pid) == began

    def _end(self, name: str, *signals: int) -> None:
        """Send the signals (TERM, then KILL), 10 s for each."""
        pid, _ = self.pids()[name]
        for number in signals or (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 10
            if self.alive(name):
                with contextlib.suppress(ProcessLookupError):  # ended this moment, and is not our child
                    os.kill(pid, number)
            while self.alive(name) and time.monotonic() < end:
                time.sleep(0.02)
        if child := self._children.pop(name, None):
            child.wait(10)

    def _kill_jobs(self, node: str | None = None) -> list[int]:
        """Kill what job_pids() finds until it finds nothing, for at most 5 s; returns the first finding."""
        first = left = self.job_pids(node)
        end = time.monotonic() + 5
        while left and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            left = self.job_pids(node)
        return first


def _path() -> str:
    """The caller's PATH, and where Debian has the daemons."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _stat(folder: Path) -> list[str]:
    """The fields of /proc/PID/stat behind the program's name: state, parent, …"""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def started_at(pid: int) -> int:
    """Clock tick of the process's start, which tells it from a later one of the same id; -1 if it has ended, zombies too."""
    try:
        fields = _stat(Path(f"/proc/{pid}"))
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def _answers(address: str | int) -> bool:
    """Whether something accepts connections at a unix socket's path or a port of 127.0.0.1."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(0.5)
        return client.connect_ex(address if isinstance(address, str) else ("127.0.0.1", address)) == 0


def _free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 nothing listens on, below those the kernel gives to clients."""
    found = []
    for port in random.SystemRandom().sample(range(10000, 30000), 1000):
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            return found
    raise RuntimeError(f"fewer than {number} free ports between 10000 and 30000")


def main() -> None:
    parser = argparse.ArgumentParser(description="A real SLURM on this machine, thrown away after use.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start one in the new folder DIR and print its variables; it runs until stop")
    start.add_argument("--nodes", type=int, default=2)
    start.add_argument("--max-array", type=int, default=1001, help="array indices end below it")
    start.add_argument("--grace", type=int, default=0, help="seconds a preempted job has after its signal")
    stop = commands.add_parser("stop", help="end the cluster in DIR and its jobs, and remove DIR")
    for command in (start, stop):
        command.add_argument("dir", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "stop":
            return SlurmCluster(options.dir).stop()
        cluster = SlurmCluster(options.dir, nodes=options.nodes, max_array=options.max_array, grace=options.grace)
        cluster.start()
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"export SLURM_CONF={cluster.conf}\nexport PATH=$PATH:/usr/sbin")


def require_slurm() -> None:
    """Skip where SLURM is not installed; fail instead under REQUIRE_SLURM=1, since a green run would prove nothing."""
    import pytest

    if missing := SlurmCluster.missing():
        stop = pytest.fail if os.environ.get("REQUIRE_SLURM") == "1" else pytest.skip
        stop(f"not installed: {', '.join(missing)}; {APT}")


if __name__ == "__main__":
    main()
