"""What an optimizer is to the framework: which algorithm trains each kind of tensor, and how its update scales."""

import contextlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spectral_mup.config.parse import parse
from spectral_mup.config.presets import options, read_preset
from spectral_mup.config.schema import OptimizerConfig, RuleConfig
from spectral_mup.errors import ConfigError
from spectral_mup.theory.growth import KINDS
from spectral_mup.theory.rules import Exponents, Rule, UpdateScaling

OPTIMIZER = "torch.optim.optimizer.Optimizer"  # by its name, as a config imports no torch


@dataclass(frozen=True)
class Algorithm:
    """One torch optimizer, as conf/optimizer declares it.

    Attributes:
        target: Its class or import path; None: only its scaling is known, not how to build it.
        update_norm: Growth of ‖direction‖₂ as exponents; None: not measured yet.
        eps_law: Growth of its ε as exponents.
        lr: Its base lr in units of the lr that is tuned.
        lr_shape: Exponents of the base tensor's fan_out and fan_in that its base lr is multiplied by.
    """

    name: str
    target: str | Callable[..., Any] | None = None
    update_norm: Exponents | None = field(default_factory=dict)
    eps_law: Exponents = field(default_factory=dict)
    eps: float | None = None
    lr: float = 1.0
    lr_shape: Exponents = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def update(self) -> UpdateScaling:
        """What a rule must know of it."""
        return UpdateScaling(self.name, self.update_norm or {}, self.eps_law)

    def load(self) -> Callable[..., Any]:
        """Return what builds it from (groups, lr=…).

        Raises ConfigError where that is not known, where its import path leads nowhere, and where it leads to something else
        than an optimizer, which is not called to find out.
        """
        if self.target is None:
            raise ConfigError(
                f"optimizer {self.name}: only its scaling is known, not its class; build it from param_groups(model, scaling)"
            )
        if not isinstance(self.target, str):
            return self.target
        said, give = f"optimizer.algorithms.{self.name}.target={self.target}", "give the import path of an optimizer"
        try:
            found = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError, ValueError) as error:
            message = f"{said}: cannot be imported ({type(error).__name__}: {error}); {give}, as torch.optim.AdamW"
            raise ConfigError(message) from error
        if not any(f"{c.__module__}.{c.__name__}" == OPTIMIZER for c in getattr(found, "__mro__", ())):
            raise ConfigError(f"{said}: is not a class derived from torch.optim.Optimizer; {give}, as torch.optim.AdamW")
        return found

    def attribute(self, name: str) -> Any:
        """Return an attribute of its class; None where it has none, or the class cannot be imported."""
        with contextlib.suppress(ConfigError):
            make = self.load()
            return getattr(getattr(make, "func", make), name, None)  # func: of functools.partial
        return None


@dataclass(frozen=True)
class OptimizerSpec:
    """The algorithm that trains each kind of tensor, and the base model's λ by kind."""

    name: str
    by_kind: Mapping[str, Algorithm]
    weight_decay: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    @property
    def algorithms(self) -> dict[str, Algorithm]:
        """Those in use, by name."""
        return {self.by_kind[kind].name: self.by_kind[kind] for kind in KINDS}

    @property
    def mixed(self) -> bool:
        """Whether it treats kinds of tensors differently, so that one must know which dims can grow."""
        return len({repr(algorithm.update) for algorithm in self.by_kind.values()}) > 1


def spec_of(config: OptimizerConfig) -> OptimizerSpec:
    """Return the optimizer of a config."""
    algorithms = {name: Algorithm(name, **dict(a)) for name, a in config.algorithms.items()}
    return OptimizerSpec(config.name, {kind: algorithms[getattr(config, kind)] for kind in KINDS}, config.weight_decay)


def resolve_optimizer(optimizer: str | UpdateScaling | Mapping[str, UpdateScaling] | OptimizerSpec) -> OptimizerSpec:
    """Resolve a name of conf/optimizer, one UpdateScaling, or {kind: UpdateScaling}; a spec stays unchanged.

    Raises ValueError on an unknown name, a kind without a scaling, and an optimizer whose size law was not measured.
    """
    if isinstance(optimizer, OptimizerSpec):
        return optimizer
    if isinstance(optimizer, str):
        spec = spec_of(parse(OptimizerConfig, read_preset("optimizer", optimizer), "optimizer"))
        if any(algorithm.update_norm is None for algorithm in spec.by_kind.values()):
            fix = "measure one with spectral_mup.derive and pass that"
            raise ValueError(f"optimizer={optimizer!r}: it declares no size law; {fix}")
        return spec
    if not isinstance(optimizer, UpdateScaling | Mapping):
        raise ValueError(_no_optimizer(optimizer))
    scalings = dict.fromkeys(KINDS, optimizer) if isinstance(optimizer, UpdateScaling) else dict(optimizer)
    for kind in KINDS:
        if not isinstance(scalings.get(kind), UpdateScaling):
            fix = f"give one for each of {', '.join(KINDS)}, or one for all"
            raise ValueError(f"optimizer: no UpdateScaling for {kind} tensors; {fix}")
    by_kind = {kind: Algorithm(u.name, None, u.update_norm, u.eps) for kind, u in scalings.items() if kind in KINDS}
    return OptimizerSpec(" + ".join(dict.fromkeys(a.name for a in by_kind.values())), by_kind)


def _no_optimizer(given: Any) -> str:
    """Say what to give in place of an optimizer's class, or of the optimizer itself."""
    known = options("optimizer")
    name = getattr(given, "__name__", type(given).__name__).lower()
    said = name if name in known else f"one of {', '.join(known)}"
    return f"optimizer={given!r}: give its name, {said}; an UpdateScaling; or what derive(…) measures of a class".replace(
        "\n", " "
    )


def resolve_rule(rule: str | Rule) -> Rule:
    """Resolve a name of conf/rule; a Rule stays unchanged. Raises ValueError on an unknown name."""
    if not isinstance(rule, Rule | str):
        raise ValueError(f"rule={rule!r}: give the name of one, as in rule='spectral', or a spectral_mup.theory.rules.Rule")
    return rule if isinstance(rule, Rule) else rule_of(rule, parse(RuleConfig, read_preset("rule", rule), f"rule.{rule}"))


def rule_of(name: str, config: RuleConfig) -> Rule:
    """Return a rule of a config."""
    return Rule(name, config.multipliers, config.scaling, config.source)
