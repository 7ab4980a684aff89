"""A run as a value: everything that decides its numbers, typed and frozen, and the id made of it. Imports no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import rfc8785

from spectral_mup.config.optimizer_spec import OptimizerSpec
from spectral_mup.config.schema import PROCESS_KEYS, ProbeConfig, TrainConfig, to_plain
from spectral_mup.config.tune import LR
from spectral_mup.models.configs import ModelConfig
from spectral_mup.theory.rules import Rule

SCHEMA_VERSION = 2
BASE = Rule("base", {}, {}, "the base model: every rule multiplies by 1")


AXES = ("width", "depth", "steps", "batch_size")  # the sizes of a run over which an optimum may move


@dataclass(frozen=True)
class Curve:
    """The losses of one size under one rule, over log2 of the key that is tuned."""

    rule: str
    width: int
    depth: int
    steps: int | None = None  # None: train.steps
    batch_size: int | None = None  # None: train.batch_size
    tuned: str = LR
    held: tuple[tuple[str, float], ...] = ()  # other keys that are not at the config's value, and their log2

    def __str__(self) -> str:
        sizes = {"width": self.width, "depth": self.depth, "steps": self.steps, "batch size": self.batch_size}
        said = [self.rule, *(f"{axis} {size}" for axis, size in sizes.items() if size is not None)]
        return f"{' '.join(said)}{', ' * bool(self.held)}{self.held_text}"

    @property
    def held_text(self) -> str:
        return ", ".join(f"{name} 2^{x:g}" for name, x in self.held)


@dataclass(frozen=True)
class Corpus:
    """Which text a run reads; `content` is its fingerprint."""

    source: str
    vocab_size: int | None
    content: str


@dataclass(frozen=True, eq=False)
class RunConfig:
    """One training run: all that decides its numbers, and which of them are recorded (`probe`); no path, host or clock.

    At the base width and depth every rule gives the same model to the bit, so such a run belongs to no rule: `rule` is BASE.
    `curve` and `value` say why a sweep wants the run and are not part of its identity: curves may share a run.
    """

    model: ModelConfig
    width: int
    depth: int
    base_width: int
    base_depth: int
    optimizer: OptimizerSpec
    rule: Rule
    data: Corpus
    train: TrainConfig
    probe: ProbeConfig
    log2_lr: float
    seed: int
    curve: Curve
    value: float  # log2 of what is tuned

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers: the content of config.json, of which the id is the hash."""
        return dict(self._plain)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("curve", "value")}
        values |= {name: to_plain(values[name]) for name in ("model", "train", "probe")}
        factors = {name: x for name, x in values["model"].pop("multipliers").items() if x != 1}
        values["model"] |= {"multipliers": factors} if factors else {}  # so that older ids stay
        values |= {name: asdict(values[name]) for name in ("optimizer", "data")}
        values["rule"] = None if self.rule == BASE else asdict(self.rule)
        values["train"] = {key: value for key, value in values["train"].items() if key not in PROCESS_KEYS}
        return {"schema_version": SCHEMA_VERSION} | values

    def at(self, log2_lr: float, seed: int) -> "RunConfig":
        """Return the same run at another lr and seed, sharing its plain form: a curve may have thousands of runs."""
        varied = {"log2_lr": log2_lr, "seed": seed}
        other = replace(self, **varied, value=log2_lr if self.curve.tuned == LR else self.value)
        other.__dict__["_plain"] = self._plain | varied
        return other

    @cached_property
    def run_id(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON (RFC 8785) of the config."""
        return hash_of(self.to_json())

    @property
    def sizes(self) -> dict[str, int]:
        """The run's size on each of the AXES."""
        return dict(zip(AXES, (self.width, self.depth, self.train.steps, self.train.batch_size), strict=True))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and sequences per step, which decide the memory and time of a step within a sweep."""
        return self.width, self.depth, self.train.batch_size

    @property
    def cost(self) -> float:
        """Cost of a token times number of tokens; only ratios between runs mean anything."""
        m, t = self.model, self.train
        return m.flops_per_token(self.width, self.depth) * t.steps * t.batch_size * m.context

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunConfig) and self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)

    def __str__(self) -> str:
        size = replace(self.curve, held=())
        numbers = {LR: self.log2_lr} | dict(self.curve.held) | {self.curve.tuned: self.value}
        return f"{size} {' '.join(f'{name} 2^{x:g}' for name, x in numbers.items())} seed {self.seed}"


def hash_of(config: dict[str, Any]) -> str:
    """Return the id of a run from its config.json. Raises ValueError on numbers that are not finite."""
    own = {key: config[key] for key in ("log2_lr", "seed") if key in config}
    shared = {key: value for key, value in config.items() if key not in own}  # by all runs of a curve
    entries = _canonical(json.dumps(own)) | _canonical(json.dumps(shared))
    return hashlib.sha256(b"{" + b",".join(entries[key] for key in sorted(entries)) + b"}").hexdigest()[:16]


@lru_cache(maxsize=1024)
def _canonical(config: str) -> dict[str, bytes]:
    """Return every entry of a config in RFC 8785; cached, as this takes ten times as long as the rest of a hash."""
    return {key: rfc8785.dumps({key: value})[1:-1] for key, value in json.loads(config).items()}
