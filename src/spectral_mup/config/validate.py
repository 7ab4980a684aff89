"""Everything that can be known wrong with a config before a run, each mistake one line that names key and fix.

Nothing in this module imports torch.
"""

from __future__ import annotations

import importlib.util
import re

from spectral_mup.config.schema import (
    Config,
    DeriveConfig,
    ModelConfig,
    OptimizerConfig,
    PrepareConfig,
    RuleConfig,
    SweepConfig,
    TrainConfig,
)
from spectral_mup.config.validate_cluster import check_cluster
from spectral_mup.errors import ConfigError
from spectral_mup.models import FAMILIES
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Rule, UpdateScaling

TOKENIZERS = ("bytes", "gpt2", "bpe", "sentencepiece")

# What exponents may stand for: in forward multipliers, in published tables, in an optimizer's size and ε laws.
FORWARD_QUANTITIES = ("m_width", "m_depth", "d_head")
TABLE_QUANTITIES = ("m_out", "m_in", "m_max", "m_aspect", "m_depth")
LAW_QUANTITIES = ("m_out", "m_in", "m_max", "m_aspect", "c", "a", "s")


def check(config: Config) -> None:
    """Everything that can be known wrong before a run. Raises ConfigError."""
    m, s, t, o, c, d = config.model, config.sweep, config.train, config.optimizer, config.cluster, config.derive
    _one_of("model.family", m.family, tuple(FAMILIES))
    _one_of("train.schedule", t.schedule, ("linear", "cosine", "constant"))
    _one_of("train.weight_decay", t.weight_decay, ("coupled", "independent"))
    _one_of("train.precision", t.precision, ("auto", "float32", "bfloat16"))
    t.compile = t.compile.lower()  # `true` on the command line is a bool to YAML and "True" to a text field
    _one_of("train.compile", t.compile, ("auto", "true", "false"))
    _one_of("cluster.device", c.device, ("auto", "cpu", "cuda"))
    _one_of("wandb.mode", config.wandb.mode, ("disabled", "offline", "online"))
    for key, grid in {"width": s.width, "depth": s.depth, "lr": s.lr, "seed": s.seed}.items():
        if not grid:
            raise ConfigError(f"sweep.{key}: the grid is empty; give at least one value, as in 'sweep.{key}=[…]'")
        if len(set(grid)) < len(grid):
            raise ConfigError(f"sweep.{key}={grid}: a value is listed twice; list each once")
    for key, value in {
        "sweep.base_width": s.base_width, "sweep.base_depth": s.base_depth, "train.steps": t.steps,
        "train.batch_size": t.batch_size, "train.accumulate": t.accumulate, "train.eval_sequences": t.eval_sequences,
        "train.diverge_patience": t.diverge_patience, "model.context": m.context, "probe.sequences": config.probe.sequences,
        "lr.budget": config.lr.budget, "cluster.threads": c.threads, "cluster.log_every": c.log_every,
        "sweep.width": min(s.width), "sweep.depth": min(s.depth), "train.devices": t.devices,
        "cluster.workers": 1 if c.workers is None else c.workers,
    }.items():  # fmt: skip
        if value < 1:
            raise ConfigError(f"{key}={value}: must be at least 1")
    for key, value in {"train.warmup": t.warmup, "train.eval_every": t.eval_every, "sweep.seed": min(s.seed),
                       "derive.seed": min(d.seed, default=-1)}.items():  # fmt: skip
        if value < 0:
            raise ConfigError(f"{key}={value}: must not be negative")
    if t.batch_size % t.accumulate:
        raise ConfigError(f"train.accumulate={t.accumulate}: train.batch_size={t.batch_size} is not a multiple of it")
    check_cluster(c, t)
    if t.warmup >= t.steps:
        raise ConfigError(f"train.warmup={t.warmup}: not below train.steps={t.steps}; shorten it or train longer")
    if not 0 <= m.dropout < 1:
        raise ConfigError(f"model.dropout={m.dropout}: must be in [0, 1)")
    for value in s.lr:
        if not float(value * 4).is_integer():
            raise ConfigError(f"sweep.lr: {value} is no multiple of 1/4; learning rates are log2, as in 'sweep.lr=[-8,-6]'")
    if not float(config.lr.resolution * 4).is_integer():
        raise ConfigError(f"lr.resolution={config.lr.resolution}: no multiple of 1/4, as in lr.resolution=0.5")
    if config.lr.resolution <= 0:
        raise ConfigError(f"lr.resolution={config.lr.resolution}: must be positive, as in lr.resolution=0.5")
    if max(s.lr) > 16 or min(s.lr) < -60:
        raise ConfigError(f"sweep.lr={s.lr}: values are log2 of the learning rate, as in 'sweep.lr=[-9,-7,-5]'")
    if config.lr.adaptive and config.lr.budget < len(s.lr):
        raise ConfigError(f"lr.budget={config.lr.budget}: below the {len(s.lr)} learning rates of sweep.lr; raise it")
    if not config.rule:
        raise ConfigError("rule: none given; choose from rule=[spectral,standard] and the files of conf/rule")
    if min(config.probe.steps, default=1) < 1:
        raise ConfigError(f"probe.steps={config.probe.steps}: steps count from 1 (step 0 is always measured)")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", s.name) or ".." in s.name.split("/"):
        raise ConfigError(f"sweep.name={s.name}: must be a relative path of letters, digits, '_', '-', '.' and '/'")
    unknown = set(m.init_std) - {"embedding", "hidden", "readout"}
    if unknown:
        raise ConfigError(f"model.init_std.{unknown.pop()}: unknown key; known: embedding, hidden, readout")
    _check_optimizer(o)
    _check_sharded(t, o)
    _check_zero_init(m, o)
    for name, rule in config.rule.items():
        if config.action != "derive":  # which asks no rule
            _check_rule(name, rule, o)
    _check_family(m)
    _check_widths(m, s.width, "sweep.width")
    _check_bases(s)
    _check_derive(m, d)
    _check_prepare(config.prepare, config.action)
    if m.tied:
        for name, rule in config.rule.items():
            _check_tied(name, rule)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(known)}")


def _check_optimizer(o: OptimizerConfig) -> None:
    for name, algorithm in o.algorithms.items():
        package = algorithm.target.partition(".")[0]
        if not package or importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"optimizer.algorithms.{name}.target={algorithm.target}: no package '{package}' is installed; install it, "
                "as in pip install lion-pytorch for lion_pytorch"
            )
        for part, table, known in (
            ("update_norm", algorithm.update_norm or {}, LAW_QUANTITIES),
            ("eps_law", algorithm.eps_law, LAW_QUANTITIES),
            ("lr_shape", algorithm.lr_shape, ("fan_out", "fan_in")),
        ):
            _check_quantities(f"optimizer.algorithms.{name}.{part}", table, known)
    for role in KINDS:
        name = getattr(o, role)
        if name not in o.algorithms:
            raise ConfigError(f"optimizer.{role}={name}: no such algorithm; optimizer.algorithms has {', '.join(o.algorithms)}")
        if role not in o.weight_decay:
            raise ConfigError(f"optimizer.weight_decay.{role}: a value is missing; give one, as in 0.0")


def _check_sharded(t: TrainConfig, o: OptimizerConfig) -> None:
    """Torch's fused SGD takes no sharded parameters."""
    for name in {getattr(o, role) for role in KINDS}:
        if t.shard and o.algorithms[name].target == "torch.optim.SGD" and o.algorithms[name].args.get("fused"):
            raise ConfigError(f"train.shard=true: not with the fused {name}; set optimizer.algorithms.{name}.args.fused=false")


def _check_zero_init(m: ModelConfig, o: OptimizerConfig) -> None:
    """A direction as large as the weight (LAMB's) has no size law where the weight starts at zero: it grows as Adam's."""
    for role, std in m.init_std.items():
        if std == 0 and (o.algorithms[getattr(o, role)].update_norm or {}).get("s"):
            raise ConfigError(
                f"model.init_std.{role}=0: {getattr(o, role)} scales its step to the weight's norm, which a zero init has not; "
                f"leave its trust ratio out there, as in optimizer.{role}=lamb_vector, or start from another std"
            )


def _check_quantities(key: str, exponents: dict[str, float], known: tuple[str, ...]) -> None:
    for quantity in exponents:
        if quantity not in known:
            raise ConfigError(f"{key}.{quantity}: unknown quantity; known: {', '.join(known)}")


def _check_rule(name: str, rule: RuleConfig, o: OptimizerConfig) -> None:
    """A rule must cover every algorithm in use. Raises RuleError, a ValueError that says what it covers."""
    table = Rule(name, rule.multipliers, rule.scaling, rule.source)
    for part, exponents in rule.multipliers.items():
        _check_quantities(f"rule.{name}.multipliers.{part}", exponents, FORWARD_QUANTITIES)
    if isinstance(rule.scaling, dict):
        rows = {"init_std": rule.scaling.get("init_std", {})}
        for quantity in ("update_norm", "lr", "weight_decay", "eps"):
            rows |= {f"{quantity}.{algorithm}": row for algorithm, row in rule.scaling.get(quantity, {}).items()}
        for key, row in rows.items():
            known = LAW_QUANTITIES if key.startswith("update_norm.") else TABLE_QUANTITIES
            for kind, exponents in row.items():
                _check_quantities(f"rule.{name}.scaling.{key}.{kind}", exponents, known)
    for role in KINDS:
        algorithm = getattr(o, role)
        size = o.algorithms[algorithm].update_norm
        if rule.scaling == "derived" and size is None:
            raise ConfigError(
                f"optimizer.algorithms.{algorithm}.update_norm: rule {name} needs the growth of its direction; measure it with "
                f"action=derive and use rule=derived/{o.name}, or give the law, as in {{m_out: 0.5, m_in: 0.5}}"
            )
        table.law(role, UpdateScaling(algorithm, size or {}))
        for quantity in ("lr", "weight_decay", "eps"):
            table.row(quantity, algorithm)


def _check_family(m: ModelConfig) -> None:
    if (m.heads is None) == (m.head_size is None):
        raise ConfigError("model.heads, model.head_size: give exactly one and set the other to null")
    if (m.mlp_ratio is None) == (m.mlp_hidden is None):
        raise ConfigError("model.mlp_ratio, model.mlp_hidden: give exactly one and set the other to null")
    if m.kv_heads is not None and m.kv_ratio is not None:
        raise ConfigError("model.kv_heads, model.kv_ratio: give one at most and set the other to null")
    for key, value in {"mlp_ratio": m.mlp_ratio, "mlp_hidden": m.mlp_hidden, "mlp_multiple": m.mlp_multiple,
                       "kv_heads": m.kv_heads, "kv_ratio": m.kv_ratio, "rope_base": m.rope_base}.items():  # fmt: skip
        if value is not None and value <= 0:
            raise ConfigError(f"model.{key}={value}: must be positive")
    if m.family == "llama2":
        if m.bias:
            raise ConfigError("model.bias=true: llama2 has no biases; set model.bias=false or take model=nanogpt")
        if m.rope_base is None:
            raise ConfigError("model.rope_base: llama2 needs it, as in model.rope_base=10000")
        return
    for key in ("kv_heads", "kv_ratio", "rope_base"):
        if getattr(m, key) is not None:
            raise ConfigError(f"model.{key}={getattr(m, key)}: {m.family} has none; set it to null or take model=llama2")


def _check_widths(m: ModelConfig, widths: list[int], key: str) -> None:
    """Heads must divide every width, and key-value heads the heads."""
    for width in widths:
        name, unit = ("heads", m.heads) if m.heads is not None else ("head_size", m.head_size)
        if width % unit:  # type: ignore[operator]
            raise ConfigError(f"{key}: {width} is no multiple of model.{name}={unit}; change one of them")
        heads = m.heads or width // m.head_size  # type: ignore[operator]
        kv = m.kv_heads or heads * (m.kv_ratio or 1.0)
        if kv < 1 or not float(kv).is_integer() or heads % kv:
            said = f"model.kv_heads={m.kv_heads}" if m.kv_heads else f"model.kv_ratio={m.kv_ratio}"
            raise ConfigError(
                f"{said}: {kv:g} key and value heads cannot share {heads} query heads at width {width}; change one"
            )
        if m.family == "llama2" and (width // heads) % 2:
            raise ConfigError(f"{key}: heads of {width // heads} features at width {width} cannot be rotated; make it even")


def _check_bases(s: SweepConfig) -> None:
    if s.base_width not in s.width and s.base_width >= min(s.width):
        raise ConfigError(
            f"sweep.base_width={s.base_width}: no point of sweep.width={s.width} can be compared with it; "
            f"set it to one of these widths (or below them all), as in sweep.base_width={min(s.width)}"
        )
    if s.base_depth not in s.depth and s.base_depth >= min(s.depth):
        raise ConfigError(
            f"sweep.base_depth={s.base_depth}: no point of sweep.depth={s.depth} can be compared with it; "
            f"set it to one of these depths, as in sweep.base_depth={min(s.depth)}"
        )


def _check_derive(m: ModelConfig, d: DeriveConfig) -> None:
    if len(set(d.width)) < 3 or len(set(d.width)) < len(d.width):
        raise ConfigError(f"derive.width={d.width}: a slope needs three different widths, as in 'derive.width=[64,128,256]'")
    _check_widths(m, d.width, "derive.width")
    if d.steps < 8:
        raise ConfigError(f"derive.steps={d.steps}: must be at least 8; the first directions are of statistics that fill")
    if len(set(d.seed)) < len(d.seed):
        raise ConfigError(f"derive.seed={d.seed}: a value is listed twice; list each once")
    if not 0 < d.update < 1:
        raise ConfigError(f"derive.update={d.update}: a fraction of the weight's norm, as in derive.update=0.05")


def _check_prepare(p: PrepareConfig, action: str) -> None:
    _one_of("prepare.tokenizer", p.tokenizer, TOKENIZERS)
    if p.vocab_size < 257:
        raise ConfigError(f"prepare.vocab_size={p.vocab_size}: must be at least 257, 256 bytes and the end of text")
    if p.shard_tokens < 1:
        raise ConfigError(f"prepare.shard_tokens={p.shard_tokens}: must be at least 1")
    if p.model is not None and p.tokenizer == "bytes":
        raise ConfigError("prepare.model: prepare.tokenizer=bytes reads none; choose one of gpt2, bpe, sentencepiece")
    if p.model is None and p.tokenizer == "sentencepiece":
        raise ConfigError(
            "prepare.model: prepare.tokenizer=sentencepiece needs it; give the model file, or use prepare.tokenizer=bpe"
        )
    if action == "prepare" and not p.input:
        raise ConfigError(
            "prepare.input: action=prepare needs it; give a file, a folder or hf:NAME, as in prepare.input=book.txt"
        )
    if action == "prepare" and not p.out:
        raise ConfigError("prepare.out: action=prepare needs it; give a folder that is not there, as in prepare.out=tokens")


def _check_tied(name: str, rule: RuleConfig) -> None:
    """A tied readout cannot carry a readout's own init or lr: its scaling must be a multiplier on the logits."""
    if not Rule(name, rule.multipliers, rule.scaling).for_tied:
        raise ConfigError(
            f"rule={name}: scales the readout by its init and lr, which model.tied=true has not; "
            "use rule=spectral (a multiplier on the logits) or model.tied=false"
        )
