"""Types, choices and bounds of `cluster`: where runs are trained, and for SLURM what sbatch is given."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from spectral_mup.util.fields import AtLeastOne, AtLeastZero, Int, NotNegative, Part, Positive

OURS = {  # sbatch's options that we set, and the key of `cluster` that decides each, if one does
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "exclude": "exclude",
    "time": "time", "nodes": "nodes", "mem": "memory", "nice": "nice", "gpus-per-node": "gpus", "gpus": "gpus",
    "cpus-per-task": "cpus", "ntasks": "cpus", "ntasks-per-node": "cpus", "signal": "signal_seconds",
    "array": "array_parallelism", "output": "", "error": "", "job-name": "", "open-mode": "", "requeue": "", "no-requeue": "",
    "chdir": "", "wrap": "", "parsable": "", "test-only": "", "wait": "",
}  # fmt: skip


def _minutes(value: Any) -> Any:
    """Convert to minutes, rounded up, from 'M', 'M:S', 'H:M:S', 'D-H', 'D-H:M' or 'D-H:M:S'."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value.strip())
    if found is None:
        raise ValueError("must be minutes, or as SLURM writes it: minutes:seconds, hours:minutes:seconds, days-hours:minutes")
    days, *parts = [None if part is None else int(part) for part in found.groups()]
    given = [part for part in parts if part is not None]
    if days is None and len(given) < 3:
        given = [0, *given]  # no hours
    hours, minutes, seconds = [*given, 0, 0][:3]
    return 1440 * (days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)


def _text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError('is a number, not a name; quote it, as in "0123"')
    return value


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        option = name.strip("-").replace("_", "-")
        ours = next((own for own in OURS if own == option or len(option) > 1 and own.startswith(option)), None)
        if ours is not None:
            instead = f"give cluster.{OURS[ours]}" if OURS[ours] else "it is ours"
            raise ValueError(f"{name}: may not be set here, {instead}")
        if option == "export" and "=" in str(value):
            raise ValueError(
                f"{name}: gives variables a value, which everybody can read in the queue; set them in cluster.preamble"
            )
    return options


Minutes = Annotated[Int, BeforeValidator(_minutes), Field(ge=1)]
Text = Annotated[str, BeforeValidator(_text)]
Options = Annotated[dict[str, Any], AfterValidator(_check_options)]


def _check_per_gpu(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("must be auto, or a number from 1 on")
    return value


class ClusterConfig(Part):
    """The keys that every scheduler has."""

    scheduler: Literal["local", "slurm"]
    workers: AtLeastOne | None
    per_gpu: Annotated[int | str, BeforeValidator(_check_per_gpu)]
    threads: AtLeastOne
    device: Literal["auto", "cpu", "cuda"]
    log_every: AtLeastOne
    checkpoint_seconds: NotNegative


class SlurmConfig(ClusterConfig):
    partition: Text | None
    account: Text | None
    qos: Text | None
    nodes: AtLeastOne
    gpus: AtLeastZero
    cpus: AtLeastOne
    memory: str | None
    time: Minutes
    signal_seconds: AtLeastOne
    constraint: Text | None
    exclude: Text | None
    nice: Int | None
    array_parallelism: AtLeastOne | None
    pack_minutes: Positive
    preamble: str | None
    extra: Options
    retries: AtLeastZero


SCHEDULERS: dict[str, type[ClusterConfig]] = {"local": ClusterConfig, "slurm": SlurmConfig}
