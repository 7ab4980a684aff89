"""What a site offers, as far as one can see from here, with what to do where something is missing. Imports no torch."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.config.schema import Config, SlurmConfig

SKEW_SECONDS = 30.0  # clocks further apart make heartbeats and time limits look other than they are
GOOD, KNOW, LOOK, WRONG = "✓", "·", "!", "✗"


@dataclass(frozen=True)
class Finding:
    mark: str
    what: str
    said: str


def doctor(config: Config) -> list[Finding]:
    """Commands, controller, its clock, partitions, accounting, limits, preemption, disk, GPU, W&B."""
    needed = config.cluster.scheduler == "slurm"
    found = _commands(needed)
    try:
        settings = slurm.settings()
        found += _controller(settings, config)
    except slurm.NoAnswer as error:
        found.append(Finding(WRONG if needed else KNOW, "controller", f"no answer: {error}"))
    if shutil.which("sacct", path=slurm.environment()["PATH"]):
        try:
            slurm.sacct([slurm.NAME], time.time() - 60)
            found.append(Finding(GOOD, "accounting", "sacct answers"))
        except slurm.NoAnswer as error:
            found.append(Finding(LOOK, "accounting", f"{error}; causes of jobs that the queue forgot will be unknown"))
    for key in ("runs", "jobs"):
        found.append(_folder(key, Path(getattr(config.paths, key))))
    found += _gpu()
    found.append(_wandb(config.wandb.mode))
    return found


def _commands(needed: bool) -> list[Finding]:
    missing = Finding(WRONG if needed else KNOW, "", "not on the PATH: launch from a login node, or use cluster=local")
    found = []
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun", "sacct"):
        path = shutil.which(name, path=slurm.environment()["PATH"])
        if path:
            found.append(Finding(GOOD, name, path))
        elif name == "sacct":
            found.append(Finding(LOOK if needed else KNOW, name, "not on the PATH: causes of forgotten jobs will be unknown"))
        else:
            found.append(Finding(missing.mark, name, missing.said))
    return found


def _controller(settings: dict[str, str], config: Config) -> list[Finding]:
    found = [Finding(GOOD, "controller", f"SLURM {settings.get('SLURM_VERSION', '?')} answers")]
    theirs = slurm.clock(settings[slurm.NOW])
    if theirs is not None and abs(theirs - time.time()) > SKEW_SECONDS:
        found.append(
            Finding(LOOK, "clock", f"the controller's is {theirs - time.time():+.0f} s from ours: states may look old")
        )
    size = settings.get("MaxArraySize", "?")
    found.append(Finding(KNOW, "MaxArraySize", f"{size}: longer sweeps become several arrays"))
    if "SLURM_VERSION" in settings and settings.get("JobRequeue") == "0":
        found.append(
            Finding(KNOW, "JobRequeue", "0: the site queues nothing again by itself; our scripts ask for it with --requeue")
        )
    mode = settings.get("PreemptMode", "OFF")
    found.append(Finding(KNOW, "PreemptMode", mode + _preemption(mode, settings)))
    if mode != "OFF" and "preempt_send_user_signal" not in settings.get("SlurmctldParameters", ""):
        said = "no preempt_send_user_signal: a preemption comes without warning, so a run goes on from its last checkpoint"
        found.append(Finding(LOOK, "preemption signal", f"{said} (cluster.checkpoint_seconds)"))
    wait = re.match(r"\d+", settings.get("KillWait", ""))
    if wait and int(wait[0]) < 10:
        found.append(
            Finding(LOOK, "KillWait", f"{settings['KillWait']}: without GraceTime a step and a checkpoint must fit in")
        )
    found += _partition(config)
    if settings.get("AccountingStorageEnforce", "none") != "none":
        found += _limits()
    return found


def _preemption(mode: str, settings: dict[str, str]) -> str:
    if "CANCEL" in mode:
        return ": SLURM queues nothing again by itself; a task that is warned asks for it, and the next launch submits the rest"
    return f", by {settings['PreemptType']}" if mode != "OFF" and "PreemptType" in settings else ""


def _partition(config: Config) -> list[Finding]:
    c = config.cluster
    if not isinstance(c, SlurmConfig):
        return []
    name = ["--partition", c.partition] if c.partition else []
    done = slurm.call("sinfo", "--noheader", *name, "--format=%P|%l|%D|%c|%m|%G|%a")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 6]
    if done.returncode or not rows:
        return [Finding(WRONG, "partition", f"{c.partition or 'none'}: {' '.join(done.stderr.split()) or 'no such partition'}")]
    about = slurm.partitions()
    found = []
    for partition, limit, nodes, cpus, memory, gres, up in rows:
        offer = f"{up}, limit {limit}, {nodes} nodes of {cpus} cores, {memory} MB, {gres}"
        more = about.get(partition.rstrip("*"), {})
        if more.get("PreemptMode", "OFF") != "OFF":
            offer += f", preempted by {more['PreemptMode']} with {more.get('GraceTime', '0')} s of grace"
        found.append(Finding(GOOD if up == "up" else LOOK, f"partition {partition}", offer))
    return found


def _limits() -> list[Finding]:
    """This user's accounts; none where the site does not tell."""
    try:
        rows = slurm.limits()
    except slurm.NoAnswer:
        return []
    found = []
    for row in rows:
        where = f" in partition {row['Partition']}" if row["Partition"] else ""
        most = {"submitted": row["MaxSubmit"], "at work": row["MaxJobs"]}
        said = "; ".join(f"at most {n} jobs {what}" for what, n in most.items() if n) or "no limit on jobs"
        found.append(Finding(KNOW, f"account {row['Account']}", f"{said}{where}; qos {row['QOS'] or 'none'}"))
    return found


def _folder(key: str, path: Path) -> Finding:
    """Whether it can be written, renamed in, and is on a disk that other nodes may see."""
    there = next(p for p in [path.absolute(), *path.absolute().parents] if p.is_dir())
    probe = there / f".doctor.{secrets.token_hex(4)}"
    try:
        probe.mkdir()
        probe.rename(probe.with_suffix(".renamed"))
        probe.with_suffix(".renamed").rmdir()
    except OSError as error:
        return Finding(WRONG, f"paths.{key}", f"{there}: {error.strerror}")
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(there)], capture_output=True, text=True).stdout.strip()
    free = shutil.disk_usage(there).free / 1e9
    local = kind in ("ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs")
    shared = "a disk of this machine: the nodes must see the same folder" if local else "a network disk, or unknown"
    return Finding(LOOK if local else GOOD, f"paths.{key}", f"{path.absolute()} ({kind}: {shared}), {free:.0f} GB free")


def _gpu() -> list[Finding]:
    if not shutil.which("nvidia-smi"):
        return [Finding(KNOW, "GPU", "none here, which on a login node is as it should be")]
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split("\n")
    except subprocess.TimeoutExpired:
        return [Finding(LOOK, "GPU", "nvidia-smi gives no answer")]
    return [Finding(GOOD, "GPU", line) for line in said if line.strip()]


def _wandb(mode: str) -> Finding:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    key = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
    if mode == "disabled":
        return Finding(KNOW, "W&B", "wandb.mode=disabled; action=wandb_push sends finished runs later")
    if mode == "online" and not key:
        return Finding(LOOK, "W&B", "no key in WANDB_API_KEY or ~/.netrc: run `wandb login` on this machine")
    return Finding(GOOD, "W&B", f"wandb.mode={mode}" + (", a key is there" if key else ""))
