"""The sbatch script of a submission, rendered by submitit. Imports no torch.

submitit renders only. Its own submission moves a pickle into place after sbatch, so a launcher that dies in between loses the
job, and its signal handler saves in the middle of a step; our tasks need no pickle and stop between steps.
"""

import shlex
import sys

from spectral_mup.cluster.slurm.snapshot import find_preamble
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
    count = len(submission.packs)
    preamble = find_preamble(c.preamble).read_text().splitlines() if c.preamble else []
    setup = [line for line in preamble if not line.startswith("#!")] + environment(submission)
    more = {"mem": c.memory, "nice": c.nice, "requeue": True} | c.extra
    if submission.after_job:
        more["dependency"] = ",".join(filter(None, [c.extra.get("dependency"), f"afterany:{submission.after_job}"]))
    same = c.model_dump(include={"partition", "account", "qos", "constraint", "exclude", "time", "nodes"}, exclude_none=True)
    gpus = {"gpus_per_node": c.gpus} if c.gpus else {}
    executor.update_parameters(
        **same, **gpus, cpus_per_task=c.cpus, ntasks_per_node=config.train.devices // c.nodes, job_name=submission.name,
        array_parallelism=submission.max_parallel or count, signal_delay_s=c.signal_seconds, stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"], setup=setup,
        teardown=["code=$?", f"{_python('requeue', submission)} $code", "exit $code"],
        additional_parameters={k: v for k, v in more.items() if v is not None},
    )  # fmt: skip
    executor.parameters["map_count"] = count
    return executor._make_submission_file_text(_python("array_task", submission), "")


def _python(module: str, submission: Submission) -> str:
    """-P, as the working directory is not to hide what the snapshot has of it."""
    return shlex.join([sys.executable, "-P", "-u", "-m", f"spectral_mup.cluster.slurm.{module}", str(submission.path)])


def environment(submission: Submission) -> list[str]:
    """Run the snapshot, with the working directory for what is in neither it nor PYTHONPATH, and let srun have the cores that
    sbatch got (srun 22.05 and later forget them)."""
    code = submission.path.parent / "code" / submission.code
    source = shlex.quote(f"{code}/src:{code}/user")
    return [
        f'export PYTHONPATH={source}"${{PYTHONPATH:+:$PYTHONPATH}}:$PWD"',
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
    ]
