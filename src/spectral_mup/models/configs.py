"""The config of each model family: keys, checks, sizes at a width, cost. Imports torch only to build a model."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from spectral_mup.errors import ConfigError
from spectral_mup.util.fields import AtLeastOne, Fraction, NotNegative, Part, Positive
from spectral_mup.util.registry import code_digest

if TYPE_CHECKING:
    from torch import nn


class InitStd(Part):
    """Init std of the base model by kind of tensor; None: fan_in^-1/2, and of an embedding the family's `embedding_std`."""

    embedding: NotNegative | None
    hidden: NotNegative | None
    readout: NotNegative | None


class PositionInitStd(InitStd):
    """InitStd with that of a table of learned positions; None: that of the embedding."""

    position: NotNegative | None = None


class ForwardMultipliers(Part):
    """Factors of the base model's forward pass, by which those of a rule, 1 there, are multiplied at every size."""

    embedding: Positive = 1.0
    attention: Positive = 1.0
    branch: Positive = 1.0
    logits: Positive = 1.0


class ModelConfig(Part):
    """What the framework asks of the config of any model: how it is built at a width and depth, and how its base starts.

    `ours`: the model takes its multipliers by itself and its step can be captured; any other is checked at the plan.
    """

    ours: ClassVar[bool] = False
    draws_weights: ClassVar[bool] = False  # where init_std is null, its base starts with the weights that it was built with
    embedding_std: ClassVar[float] = 1.0

    family: str
    context: AtLeastOne
    tied: bool
    dropout: Fraction
    init_std: InitStd
    multipliers: ForwardMultipliers = ForwardMultipliers()

    @property
    def label(self) -> str:
        """What tables and figures call the model."""
        return self.family

    def blocks(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the prefixes of the parameter names of residual blocks, before their number; empty: found by their names."""
        return ()

    def bare_parameters(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return {embeddings, linear_out_in, linear_in_out: names} of the bare parameters among these, as `scale` takes it."""
        return {}

    def check_widths(self, widths: Sequence[int], key: str) -> None:
        """Check that a model of every width can be built. Raises ConfigError, which names `key`, where the widths are given."""

    def mlp_width(self, width: int) -> int:
        """Return the number of hidden features of the MLP, for an estimate of the memory."""
        return 4 * width

    def init_stds(self, base_width: int) -> dict[str, float | None]:
        """Return the init std of the base model by kind, or module; a tied table starts as the readout that it also is."""
        std = dict(self.init_std)
        if std["embedding"] is None:
            of_readout = base_width**-0.5 if std["readout"] is None else std["readout"]
            std["embedding"] = of_readout if self.tied else self.embedding_std
        return std

    def flops_per_token(self, width: int, depth: int) -> float:
        """Return the relative cost of a token, about the number of parameters: only ratios between runs have a meaning."""
        return 12 * depth * width**2 + 2 * 256 * width + 20_000 * depth

    def check_sizes(self, vocab_size: int | None, width: int, depths: set[int]) -> None:
        """Check that what should grow with width and depth does. Raises ConfigError."""

    def build(self, vocab_size: int | None, width: int, depth: int) -> nn.Module:
        """Build a model of this size: token ids (B, T) to logits (B, T, V); `ours` with targets to their mean cross entropy."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class FamilyConfig(ModelConfig):
    """Keys that the transformer families share.

    For a family of your own, subclass this in a module of the working directory, add the keys that it has beyond these, and
    name the class in conf/model/NAME.yaml, as in `family: my_module.MyConfig`. It must define `model_class`, and
    `residual_blocks` unless its blocks are `blocks.0` and so on; it may override `embedding_std`, at which tables of the base
    model start, `build`, `check_widths`, `mlp_width` and `flops_per_token`.

    Attributes:
        model_class: Import path of its models.layers.LanguageModel, built from (config, vocab_size, width, depth), weights as
            its modules draw them: attention scaled by 1/√head_dim, every other multiplier 1, each attention with `head_dim`
            (`head_dim(width)` of this class) and `scaling`.
        residual_blocks: Prefixes of the parameter names of residual blocks, before the block's number.
    """

    ours: ClassVar[bool] = True
    residual_blocks: ClassVar[tuple[str, ...]] = ("blocks.",)
    model_class: ClassVar[str]

    heads: AtLeastOne | None
    head_size: AtLeastOne | None
    mlp_ratio: Positive | None
    mlp_hidden: AtLeastOne | None
    mlp_multiple: AtLeastOne | None

    def blocks(self, names: Iterable[str]) -> tuple[str, ...]:
        return self.residual_blocks

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        for one, other in (("heads", "head_size"), ("mlp_ratio", "mlp_hidden")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ConfigError(f"model.{one}, model.{other}: give exactly one and set the other to null")
        return self

    def check_widths(self, widths: Sequence[int], key: str) -> None:
        """Check that a model of every width can be built. Raises ConfigError, which names `key`, where the widths are given."""
        name, unit = ("heads", self.heads) if self.heads is not None else ("head_size", self.head_size)
        for width in widths:
            if width % unit:  # type: ignore[operator]
                raise ConfigError(f"{key}: {width} is not a multiple of model.{name}={unit}; change one of them")

    def head_count(self, width: int) -> int:
        """Return the number of query heads at this width, at least 1."""
        return self.heads if self.heads is not None else max(1, width // self.head_size)  # type: ignore[operator]

    def head_dim(self, width: int) -> float:
        """Return the features per head at this width; a fraction where a base model is only a reference (base width 1)."""
        return width / self.heads if self.heads is not None else float(self.head_size)  # type: ignore[arg-type]

    def mlp_width(self, width: int) -> int:
        """Return the hidden features of the MLP: fixed, or mlp_ratio · width rounded up to a multiple of mlp_multiple."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        multiple = self.mlp_multiple or 1
        return multiple * max(1, math.ceil(round(self.mlp_ratio * width) / multiple))  # type: ignore[operator]

    def build(self, vocab_size: int | None, width: int, depth: int) -> nn.Module:
        """Build a model of this size, of the class that `model_class` names."""
        return pkgutil.resolve_name(self.model_class)(self, vocab_size, width, depth)


class NanoGPTConfig(FamilyConfig):
    """models.nanogpt.NanoGPT, with or without biases."""

    model_class: ClassVar[str] = "spectral_mup.models.nanogpt.NanoGPT"
    embedding_std: ClassVar[float] = 0.5  # best of 1, 1/2, 1/4 with the lr tuned for each, at width 64 and depth 2

    bias: bool
    init_std: PositionInitStd

    def init_stds(self, base_width: int) -> dict[str, float | None]:
        std = super().init_stds(base_width)
        return std | {"position": std["embedding"] if self.init_std.position is None else self.init_std.position}


class GroupedHeadsConfig(FamilyConfig):
    """Keys of a family with rotary positions whose key and value heads are fixed, a share of the query heads, or as many."""

    kv_heads: AtLeastOne | None
    kv_ratio: Positive | None

    @model_validator(mode="after")
    def _check_key_heads(self) -> Self:
        if self.kv_heads is not None and self.kv_ratio is not None:
            raise ConfigError("model.kv_heads, model.kv_ratio: give at most one and set the other to null")
        return self

    def check_widths(self, widths: Sequence[int], key: str) -> None:
        super().check_widths(widths, key)
        for width in widths:
            heads = self.head_count(width)
            shared = self._shared_heads(heads)
            if shared < 1 or not float(shared).is_integer() or heads % shared:
                name = "kv_heads" if self.kv_heads is not None else "kv_ratio"
                raise ConfigError(
                    f"model.{name}={getattr(self, name)}: gives {shared:g} key and value heads for {heads} query heads at "
                    f"width {width}; it must be a whole number that divides {heads}"
                )
            if (width // heads) % 2:
                raise ConfigError(f"{key}: rotary embeddings need an even head size, but width {width} gives {width // heads}")

    def kv_head_count(self, width: int) -> int:
        """Return the number of key and value heads at this width, at least 1."""
        return max(1, round(self._shared_heads(self.head_count(width))))

    def _shared_heads(self, heads: int) -> float:
        return self.kv_heads if self.kv_heads is not None else heads * (1.0 if self.kv_ratio is None else self.kv_ratio)


class Llama2Config(GroupedHeadsConfig):
    """models.llama2.Llama2, which has no biases."""

    model_class: ClassVar[str] = "spectral_mup.models.llama2.Llama2"

    rope_base: Positive


class HuggingFaceConfig(GroupedHeadsConfig):
    """models.huggingface.build: a decoder of transformers, built from its config class.

    Attributes:
        type: As AutoConfig knows it: llama, qwen3, gpt2, …
        config: Keys of its config that are the same at every size.
        grows: Keys of its config that grow with the width, as multiples of it, beside those that models/huggingface.py knows.
    """

    ours: ClassVar[bool] = False
    residual_blocks: ClassVar[tuple[str, ...]] = ()
    model_class: ClassVar[str] = "spectral_mup.models.huggingface.build"

    type: str
    config: dict[str, Any] | None = None
    grows: dict[str, Positive] | None = None

    @property
    def label(self) -> str:
        return self.type

    def blocks(self, names: Iterable[str]) -> tuple[str, ...]:
        return pkgutil.resolve_name("spectral_mup.models.huggingface.blocks")(names)

    def bare_parameters(self, names: Iterable[str]) -> dict[str, list[str]]:
        return pkgutil.resolve_name("spectral_mup.models.huggingface.bare_parameters")(names)

    def check_sizes(self, vocab_size: int | None, width: int, depths: set[int]) -> None:
        pkgutil.resolve_name("spectral_mup.models.huggingface.check_sizes")(self, vocab_size, width)


class FactoryConfig(ModelConfig):
    """models.factory.build: what a function of the user's own returns for a width.

    Attributes:
        target: Its import path; it is called with width, and with depth, vocab_size and context if it takes them.
        args: Further keyword arguments.
        embeddings: Bare parameters that are looked up or added like embeddings.
        linear_out_in: Bare parameters that are linear maps stored (out, in), or stacks of them.
        linear_in_out: Those stored (in, out).
        residual_blocks: Prefixes of the parameter names of residual blocks, before the block's number; empty: found by their
            names.
        code: Digest of the file that defines it, filled in: runs of other code are other runs.
    """

    draws_weights: ClassVar[bool] = True

    target: str
    args: dict[str, Any] | None = None
    embeddings: list[str] = []
    linear_out_in: list[str] = []
    linear_in_out: list[str] = []
    residual_blocks: list[str] = []
    code: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_code(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("target"), str):
            return values
        known, found = values.get("code"), code_digest(values["target"])
        if known is not None and found != known:
            raise ConfigError(
                f"model.target={values['target']}: its code has changed since the launch; restore it, or launch again"
            )
        return {**values, "code": found}

    @property
    def label(self) -> str:
        return self.target

    def blocks(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.residual_blocks)

    def bare_parameters(self, names: Iterable[str]) -> dict[str, list[str]]:
        return {key: getattr(self, key) for key in ("embeddings", "linear_out_in", "linear_in_out")}

    def init_stds(self, base_width: int) -> dict[str, float | None]:
        return {kind: std for kind, std in self.init_std if std is not None}

    def check_sizes(self, vocab_size: int | None, width: int, depths: set[int]) -> None:
        pkgutil.resolve_name("spectral_mup.models.factory.check_depths")(self, depths)

    def build(self, vocab_size: int | None, width: int, depth: int) -> nn.Module:
        return pkgutil.resolve_name("spectral_mup.models.factory.build")(self, vocab_size, width, depth)
