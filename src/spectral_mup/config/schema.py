"""Types of the whole config. Defaults live in conf/, not here: every field must be given in YAML, which says what it means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

from omegaconf import MISSING


@dataclass
class ModelConfig:
    family: str = MISSING
    context: int = MISSING
    heads: Optional[int] = MISSING
    head_size: Optional[int] = MISSING
    kv_heads: Optional[int] = MISSING
    kv_ratio: Optional[float] = MISSING
    mlp_ratio: Optional[float] = MISSING
    mlp_hidden: Optional[int] = MISSING
    mlp_multiple: Optional[int] = MISSING
    rope_base: Optional[float] = MISSING
    bias: bool = MISSING
    tied: bool = MISSING
    dropout: float = MISSING
    init_std: dict[str, Optional[float]] = MISSING


@dataclass
class AlgorithmConfig:
    target: str = MISSING
    update_norm: Optional[dict[str, float]] = MISSING
    eps_law: dict[str, float] = MISSING
    eps: Optional[float] = MISSING
    lr: float = MISSING
    lr_shape: dict[str, float] = MISSING
    args: dict[str, Any] = MISSING


@dataclass
class OptimizerConfig:
    name: str = MISSING
    hidden: str = MISSING
    embedding: str = MISSING
    readout: str = MISSING
    vector: str = MISSING
    weight_decay: dict[str, float] = MISSING
    algorithms: dict[str, AlgorithmConfig] = MISSING


@dataclass
class RuleConfig:
    source: str = MISSING
    multipliers: dict[str, dict[str, float]] = MISSING
    scaling: Any = MISSING


@dataclass
class DataConfig:
    source: str = MISSING
    path: Optional[str] = MISSING
    vocab_size: Optional[int] = MISSING


@dataclass
class TrainConfig:
    steps: int = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    warmup: int = MISSING
    schedule: str = MISSING
    final_lr: float = MISSING
    clip: Optional[float] = MISSING
    weight_decay: str = MISSING
    eval_every: int = MISSING
    eval_sequences: int = MISSING
    diverge_factor: float = MISSING
    diverge_patience: int = MISSING
    precision: str = MISSING
    compile: str = MISSING
    devices: int = MISSING
    shard: bool = MISSING


@dataclass
class ProbeConfig:
    steps: list[int] = MISSING
    sequences: int = MISSING


@dataclass
class LrConfig:
    adaptive: bool = MISSING
    resolution: float = MISSING
    budget: int = MISSING


@dataclass
class SweepConfig:
    name: str = MISSING
    width: list[int] = MISSING
    depth: list[int] = MISSING
    base_width: int = MISSING
    base_depth: int = MISSING
    lr: list[float] = MISSING
    seed: list[int] = MISSING


@dataclass
class DeriveConfig:
    width: list[int] = MISSING
    steps: int = MISSING
    seed: list[int] = MISSING
    batch_size: int = MISSING
    update: float = MISSING


@dataclass
class PrepareConfig:
    input: Optional[str] = MISSING
    out: Optional[str] = MISSING
    tokenizer: str = MISSING
    model: Optional[str] = MISSING
    vocab_size: int = MISSING
    field: Optional[str] = MISSING
    shard_tokens: int = MISSING


@dataclass
class ClusterConfig:
    name: str = MISSING
    workers: Optional[int] = MISSING
    threads: int = MISSING
    device: str = MISSING
    log_every: int = MISSING
    checkpoint_seconds: float = MISSING


@dataclass
class SlurmConfig(ClusterConfig):
    partition: Optional[str] = MISSING
    account: Optional[str] = MISSING
    qos: Optional[str] = MISSING
    nodes: int = MISSING
    gpus: int = MISSING
    cpus: int = MISSING
    memory: Optional[str] = MISSING
    time: int = MISSING
    signal_seconds: int = MISSING
    constraint: Optional[str] = MISSING
    exclude: Optional[str] = MISSING
    nice: Optional[int] = MISSING
    array_parallelism: Optional[int] = MISSING
    pack_minutes: float = MISSING
    preamble: Optional[str] = MISSING
    extra: dict[str, Any] = MISSING
    retries: int = MISSING


@dataclass
class WandbConfig:
    mode: str = MISSING
    project: str = MISSING


@dataclass
class PathsConfig:
    runs: str = MISSING
    results: str = MISSING
    jobs: str = MISSING


@dataclass
class Config:
    action: str = MISSING
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    rule: dict[str, RuleConfig] = MISSING
    data: DataConfig = MISSING
    train: TrainConfig = MISSING
    probe: ProbeConfig = MISSING
    lr: LrConfig = MISSING
    sweep: SweepConfig = MISSING
    derive: DeriveConfig = MISSING
    prepare: PrepareConfig = MISSING
    cluster: ClusterConfig = MISSING
    wandb: WandbConfig = MISSING
    paths: PathsConfig = MISSING
    yes: bool = MISSING
    watch: bool = MISSING
    run: Optional[str] = MISSING
    cause: Optional[str] = MISSING


def to_plain(config: Any) -> Any:
    """A part of the config as plain dicts, lists and numbers."""
    return asdict(config)
