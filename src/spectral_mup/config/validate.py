"""Checks of a config beyond single values, which schema.py bounds; every mistake is reported in one line."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from itertools import chain

from spectral_mup.config import schema, tune
from spectral_mup.config.cluster import ClusterConfig, SlurmConfig
from spectral_mup.config.optimizer_spec import rule_of, spec_of
from spectral_mup.config.parse import walk
from spectral_mup.errors import ConfigError
from spectral_mup.models.configs import ModelConfig
from spectral_mup.theory.growth import KINDS
from spectral_mup.util.registry import did_you_mean

SAFE_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")  # of a sweep or an optimizer, after which folders and files are named


def check(config: schema.Config) -> None:
    """Raise ConfigError on any mistake that can be known before a run, RuleError if a rule does not cover an optimizer."""
    c = config
    mistakes = chain(
        _sweep(c.sweep, c.lr),
        _training(c.train, c.cluster),
        _optimizer(c.optimizer, c.model, c.train),
        _rules(c),
        _widths(c.model, c.sweep, c.derive),
        _prepare(c.prepare, c.action),
        _data(c),
        _tune(c),
        _target(c),
    )
    _refuse(mistakes)


def varied(
    config: schema.Config, log2: Mapping[str, float], steps: int | None = None, batch_size: int | None = None
) -> schema.Config:
    """Return the config with this length and batch and keys at 2**log2 (see tune). Raises ConfigError if that is invalid."""
    c = tune.with_numbers(tune.with_sizes(config, steps, batch_size), log2)
    _refuse(
        chain(_training(c.train, c.cluster), _optimizer(c.optimizer, c.model, c.train), _widths(c.model, c.sweep, c.derive))
    )
    return c


def _refuse(mistakes: Iterator[str]) -> None:
    mistake = next(mistakes, None)
    if mistake is not None:
        raise ConfigError(mistake)


def _tune(c: schema.Config) -> Iterator[str]:
    s, names = c.sweep, list(c.sweep.tune)
    if not 1 <= len(names) <= 2:
        said = f"[{', '.join(names)}]"
        yield f"sweep.tune={said}: give one key, or two to be tuned by turns, as in 'sweep.tune=[lr,optimizer.adamw.lr]'"
    if len({tune.key_named(c, name) for name in names}) < len(names):
        yield f"sweep.tune=[{', '.join(names)}]: these are the same key; name it once"
    known = tune.tunable(c)
    if tune.LR not in names and len(s.lr) > 1 and all(tune.key_named(c, name) in known for name in names):
        yield f"sweep.lr={s.lr}: lr is not tuned (sweep.tune={names[0]}) but held; give one value, as in 'sweep.lr=[-7]'"
    for name in names:
        yield from _tuned(c, name)
    for axis, base in (("width", s.base_width), ("depth", s.base_depth)):
        if (len(names) > 1 or s.steps or s.batch_size) and base not in getattr(s, axis):
            what = "two keys are tuned by turns" if len(names) > 1 else "steps and batch sizes vary"
            yield f"sweep.base_{axis}={base}: {what} at the base, which must be one of sweep.{axis}={getattr(s, axis)}"
    for axis in ("steps", "batch_size"):
        for size in getattr(s, axis):
            try:
                varied(c, {}, **{axis: size})
            except ConfigError as error:
                yield f"sweep.{axis}: at {size}, {error}"


def _tuned(c: schema.Config, name: str) -> Iterator[str]:
    key, start, values = tune.key_named(c, name), tune.start_of(c, name), tune.tunable(c)
    here, give = f"sweep.tune: {name}", f"give the log2 values to start from, as in 'sweep.tune={{{name}:[-4,-2,0]}}'"
    if key in tune.SIZES:
        yield f"{here} is a size; an optimum is followed over it by {tune.SIZES[key]}, as in '{tune.SIZES[key]}=[100,200,400]'"
    elif key not in values and name != tune.LR:
        every = dict(walk(schema.to_plain(c)))
        wrong = "no run depends on it; " if key in every else f"unknown key; {did_you_mean(name, tune.names(c))}"
        yield f"{here}: {wrong}known: {', '.join(tune.names(c))}"
    elif name != tune.LR and not tune.is_number(values[key]) and values[key] is not None:
        yield f"{here}: its value {values[key]} is not a number; tune another key, as in sweep.tune=lr"
    elif not start:
        yield f"{here}: it has no log2, being {'null' if values[key] is None else values[key]}; {give}"
    if len(set(start)) < len(start):
        yield f"{here}: [{', '.join(f'{x:g}' for x in start)}] lists a value twice; list each once"
    for x in start:
        if x * 4 % 1:
            yield f"{here}: {x:g} is not a multiple of 1/4; values are log2, as in 'sweep.tune={{{name}:[-4,-2,0]}}'"
        if name != tune.LR:
            try:
                varied(c, {name: x})
            except ConfigError as error:
                yield f"{here} at 2^{x:g}: {error}; {give}"
    if c.lr.adaptive and c.lr.budget < len(start):
        yield f"lr.budget={c.lr.budget}: below the {len(start)} values that the search of {name} starts from; raise it"


def _sweep(s: schema.SweepConfig, lr: schema.LrConfig) -> Iterator[str]:
    for key in ("width", "depth", "lr", "seed", "steps", "batch_size"):
        grid = getattr(s, key)
        if not grid and key not in ("steps", "batch_size"):
            yield f"sweep.{key}: the grid is empty; give at least one value, as in 'sweep.{key}=[…]'"
        if len(set(grid)) < len(grid):
            yield f"sweep.{key}={grid}: a value is listed twice; list each once"
    yield from _name("sweep.name", s.name)
    for value in s.lr:
        if value * 4 % 1:
            yield f"sweep.lr: {value} is not a multiple of 1/4; learning rates are {tune.log2_lr(value)}"
    if lr.resolution * 4 % 1:
        yield f"lr.resolution={lr.resolution}: not a multiple of 1/4, as in lr.resolution=0.5"
    if max(s.lr) > 16 or min(s.lr) < -60:
        yield f"sweep.lr={s.lr}: values are log2 of the learning rate, as in 'sweep.lr=[-9,-7,-5]'"
    if lr.adaptive and lr.budget < len(s.lr):
        yield f"lr.budget={lr.budget}: below the {len(s.lr)} learning rates of sweep.lr; raise it"
    axes = (("width", s.width, s.base_width, "widths (or below them all)"), ("depth", s.depth, s.base_depth, "depths"))
    for axis, grid, base, these in axes:
        if base not in grid and base >= min(grid):
            yield (
                f"sweep.base_{axis}={base}: no run of sweep.{axis}={grid} can be compared with it; "
                f"set it to one of these {these}, as in sweep.base_{axis}={min(grid)}"
            )


def _name(key: str, name: str) -> Iterator[str]:
    """Check a name after which files and folders are named."""
    if not SAFE_NAME.fullmatch(name):
        yield f"{key}={name}: must be a relative path of letters, digits, '_', '-', '.' and '/', no part beginning with '.'"


def _training(t: schema.TrainConfig, c: ClusterConfig) -> Iterator[str]:
    if t.batch_size % t.accumulate:
        yield f"train.accumulate={t.accumulate}: train.batch_size={t.batch_size} is not a multiple of it"
    if t.warmup >= t.steps:
        yield f"train.warmup={t.warmup}: not below train.steps={t.steps}; shorten it, as in train.warmup=0.1, or train longer"
    if t.batch_size % (t.accumulate * t.devices):
        times = f"times train.accumulate={t.accumulate}; change one"
        yield f"train.devices={t.devices}: train.batch_size={t.batch_size} is not a multiple of it {times}"
    if t.shard and t.devices == 1:
        yield "train.shard=true: needs more than one device, as in train.devices=2; or set train.shard=false"
    if not isinstance(c, SlurmConfig):
        return
    if c.device == "cuda" and not c.gpus:
        yield "cluster.device=cuda: cluster.gpus=0 requests no GPU; raise it, or use cluster.device=auto"
    if c.signal_seconds >= 60 * c.time:
        yield f"cluster.signal_seconds={c.signal_seconds}: must be shorter than cluster.time ({c.time} min)"
    if t.devices % c.nodes or (c.nodes > 1 and t.devices == 1):
        yield f"cluster.nodes={c.nodes}: train.devices={t.devices} cannot be divided among them; change one"
    if t.devices > 1 and c.gpus and c.gpus != (per_node := t.devices // c.nodes):
        need = f"train.devices={t.devices} on {c.nodes} nodes need {per_node} per node; set cluster.gpus={per_node}"
        yield f"cluster.gpus={c.gpus}: {need}"


def _optimizer(o: schema.OptimizerConfig, m: ModelConfig, t: schema.TrainConfig) -> Iterator[str]:
    yield from _name("optimizer.name", o.name)
    for name, algorithm in o.algorithms.items():
        package = algorithm.target.partition(".")[0]
        if not package.isidentifier() or package == "__main__" or importlib.util.find_spec(package) is None:
            yield (
                f"optimizer.algorithms.{name}.target={algorithm.target}: no package '{package}' is installed; install it, "
                "as in pip install lion-pytorch for lion_pytorch"
            )
    for kind in KINDS:
        name = getattr(o, kind)
        if name not in o.algorithms:
            yield f"optimizer.{kind}={name}: no such algorithm; optimizer.algorithms has {', '.join(o.algorithms)}"
        if kind not in o.weight_decay:
            yield f"optimizer.weight_decay.{kind}: a value is missing; give one, as in 0.0"
    spec = spec_of(o)
    for a in spec.algorithms.values():  # torch's fused SGD does not take sharded parameters
        if t.shard and a.target == "torch.optim.SGD" and a.args.get("fused"):
            yield f"train.shard=true: not with the fused {a.name}; set optimizer.algorithms.{a.name}.args.fused=false"
    # A direction as large as the weight (LAMB's) has no size law where the weight starts at zero: there it grows as Adam's.
    for key, std in m.init_std:
        kind = key if key in KINDS else "embedding"  # positions are looked up as tokens are
        if std == 0 and (spec.by_kind[kind].update_norm or {}).get("s"):
            yield (
                f"model.init_std.{key}=0: {spec.by_kind[kind].name} rescales its step to the weight's norm, which is zero "
                f"here; leave its trust ratio out there, as in optimizer.{kind}=lamb_vector, or start from another std"
            )


def _rules(c: schema.Config) -> Iterator[str]:
    """Check that each rule covers every algorithm in use, else `law` and `row` raise RuleError, and fits a tied readout.

    A tied readout cannot carry an init or lr of its own: its scaling must be a multiplier on the logits.
    """
    if not c.rule:
        yield "rule: none given; choose from rule=[spectral,standard] and the files of conf/rule"
    spec = spec_of(c.optimizer)
    for name, config in c.rule.items():
        rule = rule_of(name, config)
        for kind in KINDS if c.action != "derive" else ():  # derive uses no rule
            a = spec.by_kind[kind]
            if rule.scaling == "derived" and a.update_norm is None:
                yield (
                    f"optimizer.algorithms.{a.name}.update_norm: rule {name} needs the growth of its direction; measure it "
                    f"with action=derive and use rule=derived/{spec.name}, or give the law, as in {{m_out: 0.5, m_in: 0.5}}"
                )
            rule.law(kind, a.update)
            for quantity in ("lr", "weight_decay", "eps"):
                rule.row(quantity, a.name)
        if c.model.tied and not rule.for_tied:
            yield (
                f"rule={name}: scales the readout through its init and lr, which is impossible with model.tied=true; "
                "use rule=spectral (a multiplier on the logits) or model.tied=false"
            )


def _widths(m: ModelConfig, s: schema.SweepConfig, d: schema.DeriveConfig) -> Iterator[str]:
    m.check_widths(s.width, "sweep.width")
    if len(set(d.width)) < 3 or len(set(d.width)) < len(d.width):
        yield f"derive.width={d.width}: a slope needs three different widths, as in 'derive.width=[64,128,256]'"
    m.check_widths(d.width, "derive.width")
    if len(set(d.seed)) < len(d.seed):
        yield f"derive.seed={d.seed}: a value is listed twice; list each once"


def _data(c: schema.Config) -> Iterator[str]:
    if c.data.source == "batches" and c.data.vocab_size is None and c.model.family != "factory":
        yield (
            f"data.vocab_size: model={c.model.family} needs it; give the number of token ids in the batches of data.target, "
            "or use model=factory for any other kind of model"
        )


def _prepare(p: schema.PrepareConfig, action: str) -> Iterator[str]:
    if p.model is not None and p.tokenizer == "bytes":
        yield "prepare.model: prepare.tokenizer=bytes uses none; choose one of gpt2, bpe, sentencepiece"
    if p.model is None and p.tokenizer == "sentencepiece":
        yield "prepare.model: prepare.tokenizer=sentencepiece needs it; give the model file, or use prepare.tokenizer=bpe"
    if action == "prepare" and not p.input:
        yield "prepare.input: action=prepare needs it; give a file, a folder or hf:NAME, as in prepare.input=book.txt"
    if action == "prepare" and not p.out:
        yield "prepare.out: action=prepare needs it; give a new folder, as in prepare.out=tokens"


def _target(c: schema.Config) -> Iterator[str]:
    grids = {"width": (c.sweep.width, c.sweep.base_width), "depth": (c.sweep.depth, c.sweep.base_depth)}
    given = {axis: size for axis, size in (("width", c.target.width), ("depth", c.target.depth)) if size is not None}
    for axis, size in given.items():
        grid, base = grids[axis]
        if size <= max(grid) and size != base:
            yield f"target.{axis}={size}: not above those of sweep.{axis}={grid}; a recipe is for a larger model"
    c.model.check_widths([given["width"]] if "width" in given else [], "target.width")
