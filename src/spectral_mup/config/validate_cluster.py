"""What can be known wrong with the cluster keys before anything is started."""

from __future__ import annotations

from spectral_mup.config.schema import ClusterConfig, SlurmConfig, TrainConfig
from spectral_mup.errors import ConfigError


def check_cluster(c: ClusterConfig, t: TrainConfig) -> None:
    """Who trains a run, and where. Raises ConfigError."""
    if t.devices > 1 and c.name == "local":
        raise ConfigError(f"train.devices={t.devices}: needs cluster=slurm, which starts one process a device")
    if t.batch_size % (t.accumulate * t.devices):
        raise ConfigError(
            f"train.devices={t.devices}: train.batch_size={t.batch_size} is not a multiple of it times "
            f"train.accumulate={t.accumulate}; change one"
        )
    if t.shard and t.devices == 1:
        raise ConfigError("train.shard=true: needs more than one device, as in train.devices=2; or set train.shard=false")
    if isinstance(c, SlurmConfig):
        _check_slurm(c, t)


def _check_slurm(c: SlurmConfig, t: TrainConfig) -> None:
    for key, value, least in (("nodes", c.nodes, 1), ("gpus", c.gpus, 0), ("cpus", c.cpus, 1), ("time", c.time, 1),
                              ("signal_seconds", c.signal_seconds, 1), ("array_parallelism", c.array_parallelism or 1, 1),
                              ("retries", c.retries, 0)):  # fmt: skip
        if value < least:
            raise ConfigError(f"cluster.{key}={value}: must be at least {least}")
    if c.pack_minutes <= 0:
        raise ConfigError(f"cluster.pack_minutes={c.pack_minutes}: must be positive")
    if c.signal_seconds >= 60 * c.time:
        raise ConfigError(
            f"cluster.signal_seconds={c.signal_seconds}: not below cluster.time={c.time} min; the warning comes before"
        )
    if t.devices % c.nodes or (c.nodes > 1 and t.devices == 1):
        raise ConfigError(f"cluster.nodes={c.nodes}: train.devices={t.devices} cannot be divided among them; change one")
    if t.devices > 1 and c.gpus and c.gpus != t.devices // c.nodes:
        raise ConfigError(
            f"cluster.gpus={c.gpus}: train.devices={t.devices} on {c.nodes} nodes need {t.devices // c.nodes} a node; set it so"
        )
