"""What a site offers, as far as this machine shows, with the fix where something is missing. Imports no torch."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.snapshot import check_size, code_files, code_now, find_intact, find_preamble
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError, Unanswered
from spectral_mup.util.files import check_writable
from spectral_mup.util.gpus import visible_gpus
from spectral_mup.util.system import user_name

SKEW_SECONDS = 30.0  # clocks further apart falsify what heartbeats and time limits show
GOOD, KNOW, LOOK, WRONG = "✓", "·", "!", "✗"
LEGEND = "✓ ok   · info   ! warning   ✗ error"


@dataclass(frozen=True)
class Finding:
    mark: str
    subject: str
    message: str


def doctor(config: Config) -> list[Finding]:
    """Check commands, controller, its clock, partitions, accounting, limits, preemption, what jobs get, disk, GPU, W&B."""
    folders = [_folder(key, Path(getattr(config.paths, key))) for key in ("runs", "jobs")]
    jobs = [*_commands(config), *_controller(config), *_accounting(config), *given_to_jobs(config)]
    return [*jobs, *folders, *_gpu(), _wandb(config.wandb.mode)]


def _needed(config: Config) -> str:
    """Return the mark of a missing thing that only SLURM needs."""
    return WRONG if config.cluster.scheduler == "slurm" else KNOW


def _commands(config: Config) -> Iterator[Finding]:
    missing = "not on the PATH: launch from a login node, or use cluster=local"
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
        path = shutil.which(name, path=slurm.environment()["PATH"])
        yield Finding(GOOD if path else _needed(config), name, path or missing)


def _accounting(config: Config) -> Iterator[Finding]:
    try:
        slurm.sacct([slurm.JOB_PREFIX], time.time() - 60)
        yield Finding(GOOD, "accounting", "sacct answers")
    except slurm.NoAnswer as error:
        mark = LOOK if config.cluster.scheduler == "slurm" else KNOW
        yield Finding(mark, "accounting", f"{error}; the causes of jobs that the queue has forgotten will be unknown")


def _controller(config: Config) -> Iterator[Finding]:
    try:
        settings = slurm.settings()
    except slurm.NoAnswer as error:
        yield Finding(_needed(config), "controller", f"no answer: {error}")
        return
    yield Finding(GOOD, "controller", f"SLURM {settings.get('SLURM_VERSION', '?')} answers")
    yield from check_settings(settings, config)


def given_to_jobs(config: Config) -> Iterator[Finding]:
    """Yield whose the jobs are, who pays, and with what code, modules and site's lines they run."""
    if not isinstance(config.cluster, SlurmConfig):
        return
    login, user = os.environ.get("LOGNAME"), user_name()
    if login not in (None, user):
        yield Finding(KNOW, "user", f"LOGNAME={login}, but this is {user}, whose jobs are ours")
    said = slurm.from_shell(config.cluster.model_dump())
    for name in sorted(name for name in os.environ if name.startswith("SBATCH_")):
        key = name.removeprefix("SBATCH_").lower()
        used = key in said or key == "reservation" and "extra" in said
        heard = (
            f"{os.environ[name]}: jobs are submitted with it"
            if used
            else "set in this shell, but not passed on: give it in cluster"
        )
        yield Finding(KNOW if used else LOOK, name, heard)
    try:
        check_size(code_files())
        code, files = code_now()
        yield _copies(
            Path(config.paths.jobs), code, f"{sum(path.stat().st_size for path in files.values()) / 1e6:.1f} MB of code"
        )
    except ConfigError as error:
        yield Finding(WRONG, "snapshot", str(error))
    yield from _modules(Path.cwd())
    if config.cluster.preamble:
        yield _preamble(config.cluster.preamble)


def _copies(jobs_dir: Path, code: str, size: str) -> Finding:
    """Say whether the next job can use an earlier copy of the code."""
    if (jobs_dir / "code" / code).is_dir() and not find_intact(jobs_dir, code):
        return Finding(LOOK, "snapshot", f"{size}; {jobs_dir}/code/{code} was changed or is not ours: a new copy will be taken")
    return Finding(GOOD, "snapshot", size)


def _modules(here: Path) -> Iterator[Finding]:
    """Warn if everybody may write to the folder of the launch, or if it has modules named as Python's own."""
    if here.stat().st_mode & 0o002:
        yield Finding(LOOK, "launch folder", f"everybody may write to {here}: jobs are given only what is yours in it")
    if hidden := sorted(path.name for path in here.glob("*.py") if path.stem in sys.stdlib_module_names):
        yield Finding(LOOK, "modules", f"{', '.join(hidden)}: named as modules of Python, which jobs import instead; rename")


def _preamble(name: str) -> Finding:
    """Say whether bash can read the site's lines."""
    try:
        done = subprocess.run(["bash", "-n", str(find_preamble(name))], capture_output=True, text=True)
    except ConfigError as error:
        return Finding(WRONG, "preamble", str(error).partition(": ")[2])
    return Finding(WRONG if done.returncode else GOOD, "preamble", " ".join(done.stderr.split()) or f"bash can read {name}")


def check_settings(settings: dict[str, str], config: Config) -> Iterator[Finding]:
    """Yield what the controller's configuration means for a sweep."""
    skew = (slurm.clock(settings[slurm.NOW]) or time.time()) - time.time()
    if abs(skew) > SKEW_SECONDS:
        yield Finding(LOOK, "clock", f"the controller's is {skew:+.0f} s from ours: states may look outdated")
    if "jobs" in settings.get("PrivateData", ""):
        yield Finding(KNOW, "PrivateData", "others' jobs are hidden: a run that one of them has is told by its heartbeat alone")
    if (size := settings.get("MaxArraySize", "?")) == "0":
        yield Finding(_needed(config), "MaxArraySize", f"0: {slurm.NO_ARRAYS}")
    else:
        yield Finding(KNOW, "MaxArraySize", f"{size}: longer sweeps become several arrays")
    if "SLURM_VERSION" in settings and settings.get("JobRequeue") == "0":
        yield Finding(KNOW, "JobRequeue", "0: the site does not requeue by default; our scripts set --requeue")
    mode, about = settings.get("PreemptMode", "OFF"), ""
    if "CANCEL" in mode:
        about = ": SLURM does not requeue; a task that is warned requeues itself, and the next launch submits the rest"
    elif mode != "OFF" and "PreemptType" in settings:
        about = f", by {settings['PreemptType']}"
    yield Finding(KNOW, "PreemptMode", mode + about)
    if mode != "OFF" and "preempt_send_user_signal" not in settings.get("SlurmctldParameters", ""):
        message = "no preempt_send_user_signal: a preemption comes without warning, so a run resumes from its last checkpoint"
        yield Finding(LOOK, "preemption signal", f"{message} (cluster.checkpoint_seconds)")
    wait = re.match(r"\d+", settings.get("KillWait", ""))
    if wait and int(wait[0]) < 10:
        yield Finding(LOOK, "KillWait", f"{settings['KillWait']}: without GraceTime a step and a checkpoint must fit in")
    if isinstance(config.cluster, SlurmConfig):
        yield from _partitions(config.cluster.partition)
    if settings.get("AccountingStorageEnforce", "none") != "none":
        yield from limits()


def _partitions(name: str | None) -> Iterator[Finding]:
    """Yield the partition of this name, all without one."""
    option = ["--partition", name] if name else []
    done = slurm.call("sinfo", "--noheader", *option, "--format=%P|%l|%D|%c|%m|%G|%a")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 6]
    if done.returncode or not rows:
        yield Finding(WRONG, "partition", f"{name or 'none'}: {' '.join(done.stderr.split()) or 'no such partition'}")
        return
    fields = slurm.partitions()
    for partition, limit, nodes, cpus, memory, gres, up in rows:
        message = f"{up}, limit {limit}, {nodes} nodes of {cpus} cores, {memory} MB, {gres}"
        more = fields.get(partition.rstrip("*"), {})
        if more.get("PreemptMode", "OFF") != "OFF":
            message += f", preempted by {more['PreemptMode']} with {more.get('GraceTime', '0')} s of grace"
        yield Finding(GOOD if up == "up" else LOOK, f"partition {partition}", message)


def limits() -> Iterator[Finding]:
    """Yield this user's accounts; none where the site does not show them."""
    with suppress(slurm.NoAnswer):
        for row in slurm.associations():
            where = f" in partition {row['Partition']}" if row["Partition"] else ""
            most = {"submitted": row["MaxSubmit"], "running": row["MaxJobs"]}
            message = "; ".join(f"at most {n} jobs {what}" for what, n in most.items() if n) or "no limit on jobs"
            yield Finding(KNOW, f"account {row['Account']}", f"{message}{where}; qos {row['QOS'] or 'none'}")


def _folder(key: str, path: Path) -> Finding:
    """Say whether files can be written and renamed in a folder, and whether other nodes may see its disk."""
    try:
        existing = check_writable(path.absolute())
    except OSError as error:
        return Finding(WRONG, f"paths.{key}", f"{path.absolute()}: {error.strerror}")
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(existing)], capture_output=True, text=True).stdout.strip()
    free = shutil.disk_usage(existing).free / 1e9
    local = kind in ("ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs")
    shared = "a disk of this machine: the nodes must see the same folder" if local else "a network disk, or unknown"
    return Finding(LOOK if local else GOOD, f"paths.{key}", f"{path.absolute()} ({kind}: {shared}), {free:.0f} GB free")


def _gpu() -> list[Finding]:
    try:
        found = [Finding(GOOD, "GPU", f"{gpu.name}, {gpu.free / 1e9:.0f} GB free") for gpu in visible_gpus()]
    except Unanswered as error:
        return [Finding(LOOK, "GPU", str(error))]
    return found or [Finding(KNOW, "GPU", "none on this machine (expected on a login node)")]


def _wandb(mode: str) -> Finding:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    key = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
    if mode == "disabled":
        return Finding(KNOW, "W&B", "wandb.mode=disabled; action=wandb_push sends finished runs later")
    if mode == "online" and not key:
        return Finding(LOOK, "W&B", "no key in WANDB_API_KEY or ~/.netrc: run `wandb login` on this machine")
    return Finding(GOOD, "W&B", f"wandb.mode={mode}" + (", key found" if key else ""))
