"""How many runs a machine trains at once, and on which GPUs each. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral_mup import data
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError
from spectral_mup.runs.memory import RunMemory
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.gpus import Gpu, visible_gpus
from spectral_mup.util.system import own_cores
from spectral_mup.util.text import pluralize

MOST_PER_GPU = 8  # limit of cluster.per_gpu=auto
USABLE = 0.95  # of a GPU's free memory


@dataclass(frozen=True)
class Placement:
    """`workers` runs at once, each trained by `devices` processes with a GPU each (ids: `gpus`); without GPUs on the cores."""

    workers: int
    why: str
    gpus: Sequence[str] = ()
    devices: int = 1

    def gpus_of(self, index: int) -> list[str]:
        """Return the id of the GPU of each process of worker `index`; '' where it has none."""
        n = self.devices
        return [self.gpus[(index * n + rank) % len(self.gpus)] if self.gpus else "" for rank in range(n)]

    @property
    def per_gpu(self) -> int:
        """Largest number of runs that share a GPU or, without GPUs, the cores."""
        return -(-self.workers // max(1, len(self.gpus) // self.devices))

    def __str__(self) -> str:
        """Return '8 workers on 1 GPU (at most 8 a GPU)'."""
        each = "" if self.devices == 1 else f" of {self.devices} processes"
        where = pluralize(len(self.gpus), "GPU") if self.gpus else "the CPU"
        return f"{pluralize(self.workers, 'worker')}{each} on {where} ({self.why})"


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs to train on, and how much of a GPU's memory runs need."""

    cores: int
    gpus: Sequence[Gpu]
    memory: RunMemory

    @classmethod
    def here(cls, config: Config, cores: int | None = None) -> Machine:
        """Return the cores (unless given) and GPUs that this process may use; no GPUs with cluster.device=cpu."""
        gpus = [] if config.cluster.device == "cpu" else visible_gpus()
        return cls(own_cores() if cores is None else cores, gpus, memory_of(config))

    def place(self, config: Config, runs: Collection[RunConfig], at_most: int | None = None) -> Placement:
        """Return the workers for these runs.

        They are cluster.workers in all, else cluster.per_gpu on each GPU, else as many as fit; never more than `at_most` on
        a GPU. Without GPUs they are cluster.workers, else as many as the cores allow.

        Raises ConfigError if there are no GPUs where cluster.device=cuda, or fewer than train.devices.
        """
        c, devices, count = config.cluster, config.train.devices, len(self.gpus)
        if not count:
            if c.device == "cuda":
                raise ConfigError(
                    "cluster.device=cuda: this machine has no GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows; "
                    "use cluster.device=auto or cpu"
                )
            why = f"cluster.workers={c.workers}" if c.workers else pluralize(self.cores, "core")
            return Placement(c.workers or max(1, self.cores // (c.threads * devices)), why, (), devices)
        if devices > count:
            raise ConfigError(
                f"train.devices={devices}: only {pluralize(count, 'GPU')} here; lower it, or use cluster.device=cpu"
            )
        teams = count // devices
        if devices > 1 and c.per_gpu == "auto":
            each, why = 1, f"train.devices={devices}"
        elif c.per_gpu == "auto":
            each, why = self._fitting(c.threads, runs)
        else:
            each, why = int(c.per_gpu), f"cluster.per_gpu={c.per_gpu}"
        workers = each * teams
        if c.workers:
            workers, why = c.workers, f"cluster.workers={c.workers}"
        if at_most is not None and at_most * teams < workers:
            workers, why = at_most * teams, "more have run out of memory"
        return Placement(workers, why, [gpu.id for gpu in self.gpus], devices)

    def _fitting(self, threads: int, runs: Collection[RunConfig]) -> tuple[int, str]:
        """Return how many of the neediest of the runs a GPU takes, at least 1, and what limits them."""
        need, how = self.memory.largest(runs)
        limits = {
            f"at most {MOST_PER_GPU} a GPU": MOST_PER_GPU,
            pluralize(self.cores, "core"): self.cores // (threads * len(self.gpus)),
            f"{need / 1e9:.1f} GB a run, {how}": int(USABLE * min(gpu.free for gpu in self.gpus) // need),
        }
        why = min(limits, key=lambda name: limits[name])
        return max(1, limits[why]), why


def memory_of(config: Config) -> RunMemory:
    """Return the memory needs of a config's runs, with nothing learned yet."""
    return RunMemory(Path(config.paths.runs), data.vocabulary(*config.data.place))
