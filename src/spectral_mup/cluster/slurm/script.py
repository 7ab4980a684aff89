"""The sbatch script of a submission, rendered by submitit. Imports no torch.

submitit renders only. Its own submission moves a pickle into place after sbatch, so a launcher that dies in between loses the
job, and its signal handler saves in the middle of a step; our tasks need no pickle and stop between steps.
"""

from __future__ import annotations

import shlex
import sys

from spectral_mup.cluster.slurm.snapshot import find_preamble, snapshot_path
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.config.schema import Config, SlurmConfig
from spectral_mup.errors import ConfigError


def slurm_of(config: Config) -> SlurmConfig:
    """The cluster part of a config for SLURM. Raises ConfigError on cluster=local."""
    if not isinstance(config.cluster, SlurmConfig):
        raise ConfigError(f"cluster={config.cluster.scheduler}: this needs SLURM; give cluster=slurm or your site's file")
    return config.cluster


def render(config: Config, submission: Submission) -> str:
    """Text for sbatch: an array with a task per pack, which runs `spectral_mup.cluster.slurm.array_task` on it."""
    import submitit

    c = slurm_of(config)
    try:
        executor = submitit.SlurmExecutor(folder=submission.logs)
    except RuntimeError:
        raise ConfigError("cluster=slurm: no srun on the PATH; launch from a login node, or use cluster=local") from None
    processes, count = config.train.devices // c.nodes, len(submission.packs)
    options = {
        "partition": c.partition, "account": c.account, "qos": c.qos, "constraint": c.constraint, "exclude": c.exclude,
        "gpus_per_node": c.gpus or None,
    }  # fmt: skip
    more = {"mem": c.memory, "nice": c.nice, "requeue": True} | c.extra
    if submission.after_job:
        more["dependency"] = ",".join(filter(None, [c.extra.get("dependency"), f"afterany:{submission.after_job}"]))
    executor.update_parameters(
        job_name=submission.name,
        time=c.time,
        nodes=c.nodes,
        ntasks_per_node=processes,
        cpus_per_task=c.cpus,
        signal_delay_s=c.signal_seconds,
        array_parallelism=submission.max_parallel or count,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],
        setup=[*preamble(c), *environment(submission)],
        teardown=["code=$?", f"{_python('requeue', submission)} $code", "exit $code"],
        additional_parameters={k: v for k, v in more.items() if v is not None},
        **{k: v for k, v in options.items() if v is not None},
    )
    executor.parameters["map_count"] = count
    return executor._make_submission_file_text(_python("array_task", submission), "")


def _python(module: str, submission: Submission) -> str:
    """-P, as the working directory is not to hide what the snapshot has of it."""
    return shlex.join([sys.executable, "-P", "-u", "-m", f"spectral_mup.cluster.slurm.{module}", str(submission.path)])


def preamble(c: SlurmConfig) -> list[str]:
    """Lines of the site's file. Raises ConfigError if it does not exist."""
    lines = find_preamble(c.preamble).read_text().splitlines() if c.preamble else []
    return [line for line in lines if not line.startswith("#!")]


def environment(submission: Submission) -> list[str]:
    """Run the snapshot, with the working directory for what is in neither it nor PYTHONPATH, and let srun have the cores that
    sbatch got (srun 22.05 and later forget them)."""
    source = shlex.quote(":".join(snapshot_path(submission.path.parent / "code" / submission.code)))
    return [
        f'export PYTHONPATH={source}"${{PYTHONPATH:+:$PYTHONPATH}}:$PWD"',
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
    ]
