"""The sbatch script of a submission, rendered by submitit. Imports no torch.

submitit renders only. Its own submission moves a pickle into place after sbatch, so a launcher that dies in between loses the
job, and its signal handler saves in the middle of a step; our tasks need no pickle and stop between steps.
"""

import shlex
import sys

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError

ENTRY = "src/spectral_mup/cluster/slurm/enter.py"


def slurm_of(config: Config) -> SlurmConfig:
    """Return the cluster part of a config for SLURM, with what the shell says. Raises ConfigError on cluster=local."""
    if not isinstance(config.cluster, SlurmConfig):
        raise ConfigError(f"cluster={config.cluster.scheduler}: this needs SLURM; give cluster=slurm or your site's file")
    return config.cluster.model_copy(update=slurm.from_shell(config.cluster.model_dump()))


def render(config: Config, submission: Submission) -> str:
    """Return the text for sbatch: an array with one task per pack, which runs array_task.py of the snapshot on it."""
    import submitit

    c = slurm_of(config)
    try:
        executor = submitit.SlurmExecutor(folder=submission.log_folder)
    except RuntimeError:
        raise ConfigError("cluster=slurm: no srun on the PATH; launch from a login node, or use cluster=local") from None
    count = len(submission.packs)
    more = {"mem": c.memory, "nice": c.nice, "requeue": True} | c.extra
    if submission.after_job:
        more["dependency"] = ",".join(filter(None, [c.extra.get("dependency"), f"afterany:{submission.after_job}"]))
    same = c.model_dump(include={"partition", "account", "qos", "constraint", "exclude", "time", "nodes"}, exclude_none=True)
    gpus = {"gpus_per_node": c.gpus} if c.gpus else {}
    executor.update_parameters(
        **same, **gpus, cpus_per_task=c.cpus, ntasks_per_node=config.train.devices // c.nodes, job_name=submission.name,
        array_parallelism=submission.max_parallel or count, signal_delay_s=c.signal_seconds, stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"], setup=_before(submission), teardown=_after(submission),
        additional_parameters={k: v for k, v in more.items() if v is not None},
    )  # fmt: skip
    executor.parameters["map_count"] = count
    return executor._make_submission_file_text(f"{_python('array_task', submission)} || task_code=$?", "")


def _before(submission: Submission) -> list[str]:
    """Return the lines before srun.

    The site's may end the script, as after `set -e`; then the task is queued again elsewhere. srun 22.05 and later
    does not take over sbatch's cores unless SRUN_CPUS_PER_TASK is set.
    """
    at_exit = f'last=$?; [ -n "${{task_code-}}" ] || {_python("requeue", submission)} "$last"'
    site = [f". {shlex.quote(str(submission.preamble))}"] if submission.preamble.exists() else []
    return [f"trap {shlex.quote(at_exit)} EXIT", *site, 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"', "task_code=0"]


def _after(submission: Submission) -> list[str]:
    """Return the lines after srun, whose exit code is in task_code."""
    return [f'{_python("requeue", submission)} "$task_code" || true', 'exit "$task_code"']


def _python(module: str, submission: Submission) -> str:
    """Return a command that runs a module of the snapshot; -P, so that no folder of scripts hides a module of Python's."""
    code = submission.path.parent / "code" / submission.code
    return shlex.join([sys.executable, "-P", "-u", str(code / ENTRY), module, str(submission.path)])
