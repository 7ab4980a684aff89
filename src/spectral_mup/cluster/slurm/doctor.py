"""What a site offers, as far as this machine shows, with the fix where something is missing. Imports no torch."""

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

SKEW_SECONDS = 30.0  # clocks further apart falsify what heartbeats and time limits show
GOOD, KNOW, LOOK, WRONG = "✓", "·", "!", "✗"
LEGEND = "✓ ok   · info   ! warning   ✗ error"


@dataclass(frozen=True)
class Finding:
    mark: str
    subject: str
    message: str


def doctor(config: Config) -> list[Finding]:
    """Commands, controller, its clock, partitions, accounting, limits, preemption, disk, GPU, W&B."""
    needed = config.cluster.name == "slurm"
    findings = _commands(needed)
    try:
        findings += _controller(slurm.settings(), config)
    except slurm.NoAnswer as error:
        findings.append(Finding(WRONG if needed else KNOW, "controller", f"no answer: {error}"))
    if shutil.which("sacct", path=slurm.environment()["PATH"]):
        try:
            slurm.sacct([slurm.NAME], time.time() - 60)
            findings.append(Finding(GOOD, "accounting", "sacct answers"))
        except slurm.NoAnswer as error:
            message = f"{error}; the causes of jobs that the queue has forgotten will be unknown"
            findings.append(Finding(LOOK, "accounting", message))
    findings += [_folder(key, Path(getattr(config.paths, key))) for key in ("runs", "jobs")]
    return [*findings, *_gpu(), _wandb(config.wandb.mode)]


def _commands(needed: bool) -> list[Finding]:
    findings = []
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun", "sacct"):
        path = shutil.which(name, path=slurm.environment()["PATH"])
        if path:
            findings.append(Finding(GOOD, name, path))
        elif name == "sacct":
            message = "not on the PATH: the causes of forgotten jobs will be unknown"
            findings.append(Finding(LOOK if needed else KNOW, name, message))
        else:
            message = "not on the PATH: launch from a login node, or use cluster=local"
            findings.append(Finding(WRONG if needed else KNOW, name, message))
    return findings


def _controller(settings: dict[str, str], config: Config) -> list[Finding]:
    findings = [Finding(GOOD, "controller", f"SLURM {settings.get('SLURM_VERSION', '?')} answers")]
    clock = slurm.clock(settings[slurm.NOW])
    if clock is not None and abs(clock - time.time()) > SKEW_SECONDS:
        message = f"the controller's is {clock - time.time():+.0f} s from ours: states may look outdated"
        findings.append(Finding(LOOK, "clock", message))
    size = settings.get("MaxArraySize", "?")
    findings.append(Finding(KNOW, "MaxArraySize", f"{size}: longer sweeps become several arrays"))
    if "SLURM_VERSION" in settings and settings.get("JobRequeue") == "0":
        findings.append(Finding(KNOW, "JobRequeue", "0: the site does not requeue by default; our scripts set --requeue"))
    findings += _preemption(settings)
    findings += _partitions(config)
    return findings + (_limits() if settings.get("AccountingStorageEnforce", "none") != "none" else [])


def _preemption(settings: dict[str, str]) -> list[Finding]:
    mode, about = settings.get("PreemptMode", "OFF"), ""
    if "CANCEL" in mode:
        about = ": SLURM does not requeue; a task that is warned requeues itself, and the next launch submits the rest"
    elif mode != "OFF" and "PreemptType" in settings:
        about = f", by {settings['PreemptType']}"
    findings = [Finding(KNOW, "PreemptMode", mode + about)]
    if mode != "OFF" and "preempt_send_user_signal" not in settings.get("SlurmctldParameters", ""):
        message = "no preempt_send_user_signal: a preemption comes without warning, so a run resumes from its last checkpoint"
        findings.append(Finding(LOOK, "preemption signal", f"{message} (cluster.checkpoint_seconds)"))
    wait = re.match(r"\d+", settings.get("KillWait", ""))
    if wait and int(wait[0]) < 10:
        message = f"{settings['KillWait']}: without GraceTime a step and a checkpoint must fit in"
        findings.append(Finding(LOOK, "KillWait", message))
    return findings


def _partitions(config: Config) -> list[Finding]:
    c = config.cluster
    if not isinstance(c, SlurmConfig):
        return []
    name = ["--partition", c.partition] if c.partition else []
    done = slurm.call("sinfo", "--noheader", *name, "--format=%P|%l|%D|%c|%m|%G|%a")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 6]
    if done.returncode or not rows:
        return [Finding(WRONG, "partition", f"{c.partition or 'none'}: {' '.join(done.stderr.split()) or 'no such partition'}")]
    fields = slurm.partitions()
    findings = []
    for partition, limit, nodes, cpus, memory, gres, up in rows:
        message = f"{up}, limit {limit}, {nodes} nodes of {cpus} cores, {memory} MB, {gres}"
        more = fields.get(partition.rstrip("*"), {})
        if more.get("PreemptMode", "OFF") != "OFF":
            message += f", preempted by {more['PreemptMode']} with {more.get('GraceTime', '0')} s of grace"
        findings.append(Finding(GOOD if up == "up" else LOOK, f"partition {partition}", message))
    return findings


def _limits() -> list[Finding]:
    """This user's accounts; none where the site does not show them."""
    try:
        rows = slurm.limits()
    except slurm.NoAnswer:
        return []
    findings = []
    for row in rows:
        where = f" in partition {row['Partition']}" if row["Partition"] else ""
        limits = {"submitted": row["MaxSubmit"], "running": row["MaxJobs"]}
        message = "; ".join(f"at most {n} jobs {what}" for what, n in limits.items() if n) or "no limit on jobs"
        findings.append(Finding(KNOW, f"account {row['Account']}", f"{message}{where}; qos {row['QOS'] or 'none'}"))
    return findings


def _folder(key: str, path: Path) -> Finding:
    """Whether it can be written, renamed in, and is on a disk that other nodes may see."""
    existing = next(p for p in [path.absolute(), *path.absolute().parents] if p.is_dir())
    probe = existing / f".doctor.{secrets.token_hex(4)}"
    try:
        probe.mkdir()
        probe.rename(probe.with_suffix(".renamed"))
        probe.with_suffix(".renamed").rmdir()
    except OSError as error:
        return Finding(WRONG, f"paths.{key}", f"{existing}: {error.strerror}")
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(existing)], capture_output=True, text=True).stdout.strip()
    free = shutil.disk_usage(existing).free / 1e9
    local = kind in ("ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs")
    shared = "a disk of this machine: the nodes must see the same folder" if local else "a network disk, or unknown"
    return Finding(LOOK if local else GOOD, f"paths.{key}", f"{path.absolute()} ({kind}: {shared}), {free:.0f} GB free")


def _gpu() -> list[Finding]:
    if not shutil.which("nvidia-smi"):
        return [Finding(KNOW, "GPU", "none on this machine (expected on a login node)")]
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except subprocess.TimeoutExpired:
        return [Finding(LOOK, "GPU", "nvidia-smi does not answer")]
    return [Finding(GOOD, "GPU", line) for line in lines if line.strip()]


def _wandb(mode: str) -> Finding:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    key = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
    if mode == "disabled":
        return Finding(KNOW, "W&B", "wandb.mode=disabled; action=wandb_push sends finished runs later")
    if mode == "online" and not key:
        return Finding(LOOK, "W&B", "no key in WANDB_API_KEY or ~/.netrc: run `wandb login` on this machine")
    return Finding(GOOD, "W&B", f"wandb.mode={mode}" + (", key found" if key else ""))
