"""Types, choices and bounds of the config.

Those of `cluster` are in cluster.py, of `model` in models/configs.py, of `prepare` in data/prepare/settings.py.
Defaults are in conf/, whose YAML files give every key with its meaning.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationInfo,
)
from typing_extensions import TypedDict

from spectral_mup.config.cluster import ClusterConfig
from spectral_mup.data.prepare.settings import PrepareConfig
from spectral_mup.models.configs import ModelConfig
from spectral_mup.theory.growth import KINDS
from spectral_mup.util.fields import AtLeastOne, AtLeastZero, Float, Int, List, NotNegative, Part, Positive, one_of

Kind = Annotated[str, one_of(*KINDS)]
TableKind = Annotated[str, one_of(*KINDS, "fixed", *(f"block_{kind}" for kind in (*KINDS, "fixed")))]

# `true` on the command line is a bool to YAML
AutoTrueFalse = Annotated[Literal["auto", "true", "false"], BeforeValidator(lambda x: str(x).lower())]

# Exponents of: forward multipliers; published tables; an optimizer's size and ε laws; its base lr.
ForwardExponents = dict[Annotated[str, one_of("m_width", "m_depth", "d_head")], Float]
TableExponents = dict[Annotated[str, one_of("m_out", "m_in", "m_max", "m_aspect", "m_depth")], Float]
LawExponents = dict[Annotated[str, one_of("m_out", "m_in", "m_max", "m_aspect", "c", "a", "s")], Float]
ShapeExponents = dict[Annotated[str, one_of("fan_out", "fan_in")], Float]

ARGUMENTS = {  # common arguments of optimizers: (what the value must be, whether it is)
    "eps": ("positive", lambda x: x > 0),
    "betas": ("numbers in [0, 1)", lambda x: all(0 <= beta < 1 for beta in x)),
    **dict.fromkeys(("gamma", "weight_decay"), ("at least 0", lambda x: x >= 0)),
    **dict.fromkeys(("momentum", "beta1", "beta2", "beta3", "shampoo_beta", "dampening"), ("in [0, 1)", lambda x: 0 <= x < 1)),
    **dict.fromkeys(("ns_steps", "interval", "hessian_interval", "precondition_frequency"), ("at least 1", lambda x: x >= 1)),
}


def _check_args(args: dict[str, Any]) -> dict[str, Any]:
    for name, value in args.items():
        if name in ("lr", "params"):
            raise ValueError(f"{name}: is set by the sweep; leave it out")
        said, holds = ARGUMENTS.get(name, ("", lambda x: True))
        try:
            good = value is None or holds(value)
        except TypeError:
            good = False
        if not good:
            raise ValueError(f"{name}={value} must be {said}")
    return args


class AlgorithmConfig(Part):
    target: str
    update_norm: LawExponents | None
    eps_law: LawExponents
    eps: Positive | None
    lr: Positive
    lr_shape: ShapeExponents
    args: Annotated[dict[str, Any], AfterValidator(_check_args)]


class OptimizerConfig(Part):
    name: str
    hidden: str
    embedding: str
    readout: str
    vector: str
    weight_decay: dict[Kind, NotNegative]
    algorithms: dict[str, AlgorithmConfig]


class ScalingTable(TypedDict, total=False):
    """A published table (see theory.rules.Rule); a quantity left out means something else than an empty one."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    update_norm: dict[str, dict[TableKind, LawExponents]]
    init_std: dict[TableKind, TableExponents]
    lr: dict[str, dict[TableKind, TableExponents]]
    weight_decay: dict[str, dict[TableKind, TableExponents]]
    eps: dict[str, dict[TableKind, TableExponents]]


# How a published table differs from the formula: quantity, axis, optimizers and tensors (names with spaces between), exponent
# in the table, exponent of the formula, why.
Difference = tuple[
    Literal["init_std", "lr", "weight_decay", "eps"], Literal["width", "depth"], str, str, Float, Float, str
]  # fmt: skip


class RuleConfig(Part):
    source: str
    multipliers: dict[Annotated[str, one_of("attention", "branch", "logits", "embedding")], ForwardExponents]
    scaling: Annotated[
        Annotated[Literal["derived"], Tag("<word>")] | Annotated[ScalingTable, Tag("<table>")],
        Discriminator(lambda x: "<table>" if isinstance(x, dict) else "<word>"),
    ]
    differences: list[Difference] | None = None  # of a published table alone; no run depends on them


class DataConfig(Part):
    source: str
    path: str | None
    vocab_size: AtLeastOne | None
    target: str | None = None

    @property
    def place(self) -> tuple[str, str | None, int | None, str | None]:
        """The arguments by which spectral_mup.data finds a text."""
        return self.source, self.path, self.vocab_size, self.target


# Keys of TrainConfig that say on how many devices, how fast and in how much memory a run is trained, and what is kept of it.
# They change its numbers by rounding alone and are not part of its id.
PROCESS_KEYS = ("devices", "shard", "graph", "checkpoint_activations", "keep")


def _warmup_steps(value: Any, info: ValidationInfo) -> int:
    """Return whole steps of warmup; a number f below 1 is a fraction of the n steps: ⌊f·n⌋, at least 1 but below n."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if number and value % 1 == 0:
        return int(value)
    if not number or not value < 1:
        raise ValueError("must be a fraction of train.steps below 1, as in 0.1, or a whole number of steps, as in 40")
    steps = info.data.get("steps", 1)  # where steps is invalid, that is the mistake reported
    return min(max(1, int(Decimal(str(value)) * steps)), steps - 1)


class TrainConfig(Part):
    steps: AtLeastOne
    batch_size: AtLeastOne
    accumulate: AtLeastOne
    warmup: Annotated[int, BeforeValidator(_warmup_steps)]
    schedule: Literal["linear", "cosine", "constant"]
    final_lr: NotNegative
    clip: Positive | None
    weight_decay: Literal["coupled", "independent"]
    eval_every: AtLeastZero
    eval_sequences: AtLeastOne
    diverge_factor: Positive
    diverge_patience: AtLeastOne
    precision: Literal["auto", "float32", "bfloat16"]
    compile: AutoTrueFalse
    graph: AutoTrueFalse
    checkpoint_activations: bool
    devices: AtLeastOne
    shard: bool
    keep: Literal["last"] | None = None


class ProbeConfig(Part):
    steps: List[AtLeastOne]
    sequences: AtLeastOne
    quantities: List[str] | None


class LrConfig(Part):
    adaptive: bool
    resolution: Positive
    budget: AtLeastOne


def _as_table(tune: Any) -> Any:
    """Return the keys as {name: log2 values from which its search starts, empty if they follow from its value}."""
    if isinstance(tune, dict):
        return tune
    names = [tune] if isinstance(tune, str) else tune
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("give a key, two of them, or {name: [log2 values]}, as in sweep.tune=lr")
    if len({*names}) < len(names):
        raise ValueError("a key is named twice; name each once")
    return {name: [] for name in names}


def _as_list(values: Any) -> Any:
    return [] if values is None else values


def _check_budget(value: Any) -> Any:
    if value is None:
        return None
    hours = isinstance(value, str) and re.fullmatch(r"(\d+(\.\d*)?|\.\d+)h", value)
    if not hours and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("must be a number of runs, as in 100, or of hours of training, as in 2h or 0.5h")
    return value


class VerdictConfig(Part):
    slope: Positive
    regret: Positive


class SweepConfig(Part):
    name: str
    tune: Annotated[dict[str, Annotated[list[Float], BeforeValidator(_as_list)]], BeforeValidator(_as_table)]
    width: List[AtLeastOne]
    depth: List[AtLeastOne]
    steps: List[AtLeastOne]
    batch_size: List[AtLeastOne]
    base_width: AtLeastOne
    base_depth: AtLeastOne
    lr: List[Float]
    seed: List[AtLeastZero]
    budget: Annotated[int | str | None, BeforeValidator(_check_budget)]


class FiguresConfig(Part):
    only: List[str] | None
    width: Annotated[Float, Field(ge=2.5)]
    font: str
    size: Positive
    note: bool
    full: bool
    labels: dict[str, str] | None
    style: str | None


class TargetConfig(Part):
    width: AtLeastOne | None
    depth: AtLeastOne | None


class DeriveConfig(Part):
    width: List[AtLeastOne]
    steps: Annotated[Int, Field(ge=8)]
    seed: Annotated[List[AtLeastZero], Field(min_length=1)]
    batch_size: AtLeastOne
    update: Annotated[Float, Field(gt=0, lt=1)]


class WandbConfig(Part):
    mode: Literal["disabled", "offline", "online"]
    project: str


class PathsConfig(Part):
    runs: str
    results: str
    jobs: str


class Config(Part):
    action: str
    model: SerializeAsAny[ModelConfig]
    optimizer: OptimizerConfig
    rule: dict[str, RuleConfig]
    data: DataConfig
    train: TrainConfig
    probe: ProbeConfig
    lr: LrConfig
    verdict: VerdictConfig
    sweep: SweepConfig
    target: TargetConfig
    derive: DeriveConfig
    prepare: PrepareConfig
    cluster: SerializeAsAny[ClusterConfig]
    wandb: WandbConfig
    paths: PathsConfig
    yes: bool
    watch: bool
    run: str | None
    cause: str | None
    figures: FiguresConfig


def to_plain(config: BaseModel) -> dict[str, Any]:
    """Return a part of the config as plain dicts, lists and numbers."""
    return config.model_dump()
