"""What can be known wrong with a config beyond single values, which schema.py bounds: each mistake is one line.

Nothing in this module imports torch.
"""

from __future__ import annotations

import importlib.util
import re

from spectral_mup.config.schema import (
    ClusterConfig,
    Config,
    DeriveConfig,
    LrConfig,
    OptimizerConfig,
    PrepareConfig,
    RuleConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
)
from spectral_mup.errors import ConfigError
from spectral_mup.models.configs import FamilyConfig
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Rule, UpdateScaling


def check(config: Config) -> None:
    """Everything that can be known wrong before a run. Raises ConfigError, or RuleError where a rule covers no optimizer."""
    c = config
    _check_sweep(c.sweep)
    _check_lrs(c.sweep, c.lr)
    _check_bases(c.sweep)
    _check_train(c.train)
    _check_devices(c.train, c.cluster, c.optimizer)
    if isinstance(c.cluster, SlurmConfig):
        _check_slurm(c.cluster, c.train)
    _check_optimizer(c.optimizer)
    _check_zero_init(c.model, c.optimizer)
    if not c.rule:
        raise ConfigError("rule: none given; choose from rule=[spectral,standard] and the files of conf/rule")
    for name, rule in c.rule.items():
        if c.action != "derive":  # which uses no rule
            _check_rule(name, rule, c.optimizer)
        if c.model.tied:
            _check_tied(name, rule)
    c.model.check_widths(c.sweep.width, "sweep.width")
    _check_derive(c.model, c.derive)
    _check_prepare(c.prepare, c.action)


def _check_sweep(s: SweepConfig) -> None:
    for key, grid in {"width": s.width, "depth": s.depth, "lr": s.lr, "seed": s.seed}.items():
        if not grid:
            raise ConfigError(f"sweep.{key}: the grid is empty; give at least one value, as in 'sweep.{key}=[…]'")
        if len(set(grid)) < len(grid):
            raise ConfigError(f"sweep.{key}={grid}: a value is listed twice; list each once")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", s.name) or ".." in s.name.split("/"):
        raise ConfigError(f"sweep.name={s.name}: must be a relative path of letters, digits, '_', '-', '.' and '/'")


def _check_lrs(s: SweepConfig, lr: LrConfig) -> None:
    for value in s.lr:
        if not float(value * 4).is_integer():
            raise ConfigError(f"sweep.lr: {value} is not a multiple of 1/4; learning rates are log2, as in 'sweep.lr=[-8,-6]'")
    if not float(lr.resolution * 4).is_integer():
        raise ConfigError(f"lr.resolution={lr.resolution}: not a multiple of 1/4, as in lr.resolution=0.5")
    if max(s.lr) > 16 or min(s.lr) < -60:
        raise ConfigError(f"sweep.lr={s.lr}: values are log2 of the learning rate, as in 'sweep.lr=[-9,-7,-5]'")
    if lr.adaptive and lr.budget < len(s.lr):
        raise ConfigError(f"lr.budget={lr.budget}: below the {len(s.lr)} learning rates of sweep.lr; raise it")


def _check_train(t: TrainConfig) -> None:
    if t.batch_size % t.accumulate:
        raise ConfigError(f"train.accumulate={t.accumulate}: train.batch_size={t.batch_size} is not a multiple of it")
    if t.warmup >= t.steps:
        raise ConfigError(f"train.warmup={t.warmup}: not below train.steps={t.steps}; shorten it or train longer")


def _check_devices(t: TrainConfig, c: ClusterConfig, o: OptimizerConfig) -> None:
    """Who trains a run together. Torch's fused SGD does not take sharded parameters."""
    if t.devices > 1 and c.scheduler == "local":
        raise ConfigError(f"train.devices={t.devices}: needs cluster=slurm, which starts one process a device")
    if t.batch_size % (t.accumulate * t.devices):
        raise ConfigError(
            f"train.devices={t.devices}: train.batch_size={t.batch_size} is not a multiple of it times "
            f"train.accumulate={t.accumulate}; change one"
        )
    if t.shard and t.devices == 1:
        raise ConfigError("train.shard=true: needs more than one device, as in train.devices=2; or set train.shard=false")
    for name in {getattr(o, kind) for kind in KINDS} & set(o.algorithms):
        if t.shard and o.algorithms[name].target == "torch.optim.SGD" and o.algorithms[name].args.get("fused"):
            raise ConfigError(f"train.shard=true: not with the fused {name}; set optimizer.algorithms.{name}.args.fused=false")


def _check_slurm(c: SlurmConfig, t: TrainConfig) -> None:
    if c.signal_seconds >= 60 * c.time:
        raise ConfigError(f"cluster.signal_seconds={c.signal_seconds}: must be shorter than cluster.time ({c.time} min)")
    if t.devices % c.nodes or (c.nodes > 1 and t.devices == 1):
        raise ConfigError(f"cluster.nodes={c.nodes}: train.devices={t.devices} cannot be divided among them; change one")
    if t.devices > 1 and c.gpus and c.gpus != t.devices // c.nodes:
        raise ConfigError(
            f"cluster.gpus={c.gpus}: train.devices={t.devices} on {c.nodes} nodes need {t.devices // c.nodes} per node; "
            f"set cluster.gpus={t.devices // c.nodes}"
        )


def _check_optimizer(o: OptimizerConfig) -> None:
    for name, algorithm in o.algorithms.items():
        package = algorithm.target.partition(".")[0]
        if not package or importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"optimizer.algorithms.{name}.target={algorithm.target}: no package '{package}' is installed; install it, "
                "as in pip install lion-pytorch for lion_pytorch"
            )
    for kind in KINDS:
        name = getattr(o, kind)
        if name not in o.algorithms:
            raise ConfigError(f"optimizer.{kind}={name}: no such algorithm; optimizer.algorithms has {', '.join(o.algorithms)}")
        if kind not in o.weight_decay:
            raise ConfigError(f"optimizer.weight_decay.{kind}: a value is missing; give one, as in 0.0")


def _check_zero_init(m: FamilyConfig, o: OptimizerConfig) -> None:
    """A direction as large as the weight (LAMB's) has no size law where the weight starts at zero: it grows as Adam's."""
    for kind, std in m.init_std:
        if std == 0 and (o.algorithms[getattr(o, kind)].update_norm or {}).get("s"):
            raise ConfigError(
                f"model.init_std.{kind}=0: {getattr(o, kind)} rescales its step to the weight's norm, which is zero here; "
                f"leave its trust ratio out there, as in optimizer.{kind}=lamb_vector, or start from another std"
            )


def _check_rule(name: str, rule: RuleConfig, o: OptimizerConfig) -> None:
    """A rule must cover every algorithm in use. Raises RuleError, a ValueError that says what it covers."""
    table = Rule(name, rule.multipliers, rule.scaling, rule.source)
    for kind in KINDS:
        algorithm = getattr(o, kind)
        size = o.algorithms[algorithm].update_norm
        if rule.scaling == "derived" and size is None:
            raise ConfigError(
                f"optimizer.algorithms.{algorithm}.update_norm: rule {name} needs the growth of its direction; measure it with "
                f"action=derive and use rule=derived/{o.name}, or give the law, as in {{m_out: 0.5, m_in: 0.5}}"
            )
        table.law(kind, UpdateScaling(algorithm, size or {}))
        for quantity in ("lr", "weight_decay", "eps"):
            table.row(quantity, algorithm)


def _check_bases(s: SweepConfig) -> None:
    if s.base_width not in s.width and s.base_width >= min(s.width):
        raise ConfigError(
            f"sweep.base_width={s.base_width}: no run of sweep.width={s.width} can be compared with it; "
            f"set it to one of these widths (or below them all), as in sweep.base_width={min(s.width)}"
        )
    if s.base_depth not in s.depth and s.base_depth >= min(s.depth):
        raise ConfigError(
            f"sweep.base_depth={s.base_depth}: no run of sweep.depth={s.depth} can be compared with it; "
            f"set it to one of these depths, as in sweep.base_depth={min(s.depth)}"
        )


def _check_derive(m: FamilyConfig, d: DeriveConfig) -> None:
    if len(set(d.width)) < 3 or len(set(d.width)) < len(d.width):
        raise ConfigError(f"derive.width={d.width}: a slope needs three different widths, as in 'derive.width=[64,128,256]'")
    m.check_widths(d.width, "derive.width")
    if len(set(d.seed)) < len(d.seed):
        raise ConfigError(f"derive.seed={d.seed}: a value is listed twice; list each once")


def _check_prepare(p: PrepareConfig, action: str) -> None:
    if p.model is not None and p.tokenizer == "bytes":
        raise ConfigError("prepare.model: prepare.tokenizer=bytes uses none; choose one of gpt2, bpe, sentencepiece")
    if p.model is None and p.tokenizer == "sentencepiece":
        raise ConfigError(
            "prepare.model: prepare.tokenizer=sentencepiece needs it; give the model file, or use prepare.tokenizer=bpe"
        )
    if action == "prepare" and not p.input:
        raise ConfigError(
            "prepare.input: action=prepare needs it; give a file, a folder or hf:NAME, as in prepare.input=book.txt"
        )
    if action == "prepare" and not p.out:
        raise ConfigError("prepare.out: action=prepare needs it; give a new folder, as in prepare.out=tokens")


def _check_tied(name: str, rule: RuleConfig) -> None:
    """A tied readout cannot carry a readout's own init or lr: its scaling must be a multiplier on the logits."""
    if not Rule(name, rule.multipliers, rule.scaling).for_tied:
        raise ConfigError(
            f"rule={name}: scales the readout through its init and lr, which is impossible with model.tied=true; "
            "use rule=spectral (a multiplier on the logits) or model.tied=false"
        )
