"""Optimizers and rules as conf/ declares them, read without Hydra. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from spectral_mup.config.compose import ROLES, ROOT, options
from spectral_mup.theory.rules import Rule, UpdateScaling


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: the UpdateScaling and the name of the algorithm that act on each kind of tensor, and the algorithms.

    algorithms  {name: {target, args, lr, lr_shape, eps}}, see conf/optimizer; target is None where only the scaling is known
    """

    name: str
    laws: Mapping[str, UpdateScaling]
    roles: Mapping[str, str]
    algorithms: Mapping[str, Mapping[str, Any]]

    @property
    def mixed(self) -> bool:
        """Whether it treats kinds of tensors differently, so that one must know which dims can grow."""
        return len({repr(law) for law in self.laws.values()}) > 1


def resolve_optimizer(optimizer: str | UpdateScaling | Mapping[str, UpdateScaling] | OptimizerSpec) -> OptimizerSpec:
    """By a name of conf/optimizer, one UpdateScaling, or {kind: UpdateScaling}. Raises ValueError."""
    if isinstance(optimizer, OptimizerSpec):
        return optimizer
    if isinstance(optimizer, str):
        return _from_conf(optimizer)
    laws = {str(role): optimizer for role in ROLES} if isinstance(optimizer, UpdateScaling) else dict(optimizer)
    for role in ROLES:
        if not isinstance(laws.get(role), UpdateScaling):
            raise ValueError(
                f"optimizer: no UpdateScaling for {role} tensors; give one for each of {', '.join(ROLES)}, or one for all"
            )
    known = {"target": None, "args": {}, "lr": 1.0, "lr_shape": {}, "eps": None}
    algorithms = {law.name: known for law in laws.values()}
    return OptimizerSpec(" + ".join(algorithms), laws, {role: laws[role].name for role in ROLES}, algorithms)


def _from_conf(name: str) -> OptimizerSpec:
    found = _read("optimizer", name)
    laws = {}
    for role in ROLES:
        algorithm = found["algorithms"][found[role]]
        if algorithm.get("update_norm") is None:
            raise ValueError(f"optimizer={name!r}: it declares no size law; measure one with spectral_mup.derive and pass that")
        laws[role] = UpdateScaling(found[role], algorithm["update_norm"], algorithm["eps_law"])
    used = {n: a for n, a in found["algorithms"].items() if n in (found[role] for role in ROLES)}
    return OptimizerSpec(name, laws, {role: found[role] for role in ROLES}, used)


def resolve_rule(rule: str | Rule) -> Rule:
    """By a name of conf/rule, or as it is. Raises ValueError on an unknown name."""
    if isinstance(rule, Rule):
        return rule
    found = _read("rule", rule)
    return Rule(rule.replace("/", "_"), found["multipliers"], found["scaling"], found["source"])


def _read(group: str, name: str) -> dict[str, Any]:
    """A YAML of conf/ and below it those of its `defaults`, in their order."""
    folder = ROOT / "conf" / group
    if not folder.is_dir():
        raise ValueError(
            f"{group}={name!r}: {folder} does not exist; install from a clone with pip install -e, "
            "or pass an UpdateScaling (a Rule) instead of a name"
        )
    if name not in options(folder):
        raise ValueError(f"{group}={name!r}: no such file; {group} can be {', '.join(options(folder))}")
    own = OmegaConf.load(folder / f"{name}.yaml")
    inherited = [_read(group, other) for other in OmegaConf.select(own, "defaults", default=[]) if other != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(*inherited, own))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items() if key != "defaults"}
