"""ModelScaling of a whole model against a base model of the same architecture: what the public functions work with."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec, resolve_optimizer, resolve_rule
from spectral_mup.scaling.base_std import measure_base_std
from spectral_mup.scaling.branches import Branches, branches_of
from spectral_mup.scaling.inspect import (
    Attention,
    find_blocks,
    named_parameters,
    parameter_names,
    read_attention_scaling,
    table_factors,
    tied_tables,
    unwrap,
)
from spectral_mup.scaling.matrices import acts_on_matrices, stacked_parameters
from spectral_mup.scaling.notes import forward_notes, init_notes, rule_notes
from spectral_mup.scaling.roles import Layout, inspect_parameters
from spectral_mup.scaling.trace import how_used
from spectral_mup.theory.growth import Growth, count_blocks, match_blocks, measure_growth
from spectral_mup.theory.rules import Multipliers, Rule, Scaling, UpdateScaling


@dataclass(frozen=True, eq=False)
class ModelScaling(Mapping[str, Scaling]):
    """{parameter name: Scaling}, and what they were derived from.

    Wrappers' prefixes are not part of the names.

    Attributes:
        scalings: Multipliers of each tensor.
        growths: How each tensor grew against the base.
        shapes: Of each tensor.
        algorithm: Which of the optimizer's algorithms trains each tensor.
        optimizer: What the scaling is for.
        rule: What decided it.
        multipliers: Numbers of the forward pass relative to the base, where each is 1 (`multipliers` gives the absolute ones).
        attention: Features per head, here and in the base.
        residual_blocks: Prefixes of the blocks.
        mates: {block: the block of the base that it was compared with}.
        branches: {prefix of residual blocks: where their branches end}, where the rule has a multiplier for them.
        base_std: Init std of the base model's tensor, measured; None stays as built (gains, structured values).
        table_factors: {embedding module: what makes its own factor, as √width in Gemma, that of the base}.
        notes: What was not done, and what is left to the user.
    """

    scalings: Mapping[str, Scaling]
    growths: Mapping[str, Growth]
    shapes: Mapping[str, tuple[int, ...]]
    algorithm: Mapping[str, str]
    optimizer: OptimizerSpec = field(repr=False)
    rule: Rule = field(repr=False)
    multipliers: Multipliers = field(default_factory=lambda: Multipliers(1.0))
    attention: Attention = field(default_factory=Attention, repr=False)
    residual_blocks: tuple[str, ...] = ()
    mates: Mapping[str, str] = field(default_factory=dict, repr=False)
    branches: Mapping[str, Branches] = field(default_factory=dict, repr=False)
    base_std: Mapping[str, float | None] = field(default_factory=dict, repr=False)
    table_factors: Mapping[str, float] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Scaling:
        return self.scalings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scalings)

    def __len__(self) -> int:
        return len(self.scalings)


def scale(
    model: nn.Module,
    base: nn.Module,
    *,
    optimizer: str | UpdateScaling | Mapping[str, UpdateScaling] | OptimizerSpec = "adamw",
    rule: str | Rule = "auto",
    residual_blocks: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    linear_out_in: Sequence[str] = (),
    linear_in_out: Sequence[str] = (),
    wider: nn.Module | None = None,
) -> ModelScaling:
    """Return the scaling of every parameter of `model` against `base`, by a rule for an optimizer.

    The formula is that of arXiv 2310.17813 (theory/rules.py).

    Args:
        model: Instance of an architecture, of any width and depth, on any device, the meta device too.
        base: Another, where lr, λ and ε were tuned.
        optimizer: A name of conf/optimizer, an UpdateScaling, {kind: UpdateScaling}, or what `derive` returns.
        rule: A name of conf/rule, or a Rule. `auto` is `spectral_readout`, which needs no logits multiplier, or where the
            readout is tied to the embedding `spectral`, whose set_multipliers_ puts it on the logits.
        residual_blocks: Prefixes of blocks whose outputs are added up, before their index, as in ("layers.",): for depth, and
            for hidden sides that do not grow. Found by itself where blocks are named as in GPT-2 or Llama.
        embeddings: Bare parameters that are looked up or added like embeddings: positions, class tokens; here and below a name
            may be a pattern, as in "layers.*.experts.w1".
        linear_out_in: Bare parameters that are linear maps stored (out, in), or stacks of them (experts, out, in).
        linear_in_out: Those stored (in, out), as in x @ w; one of a single dimension in either maps to one number. A bare
            parameter must be named where no forward pass of its module on the meta device shows what it is.
        wider: Any third, wider instance; needed where `model` is no wider than `base` and kinds of tensors differ.

    Returns:
        The multipliers of each tensor and of the forward pass; torch.save saves it, torch.load loads it, with
            weights_only=False if `optimizer` is what `derive` returned, as that holds the optimizer's class.

    Raises:
        GrowthError: A tensor cannot be classified.
        RuleError: The rule does not cover the optimizer.
        TypeError: `model`, `base` or `wider` is not a module.
        ValueError: The optimizer is a class, a parameter has no shape yet (LazyLinear), embeddings are tied under a rule
            without a logits multiplier, a tensor that LAMB trains starts at zero, or one is empty.
    """
    _check_arguments(model, base, wider)
    spec = resolve_optimizer(optimizer)
    layout = Layout(embeddings, linear_out_in, linear_in_out)
    here, there = inspect_parameters(model, layout), inspect_parameters(base, layout)
    blocks = ((residual_blocks,) if isinstance(residual_blocks, str) else tuple(residual_blocks)) or find_blocks(here)
    growths = measure_growth(here, there, here if wider is None else inspect_parameters(wider, layout), blocks)
    parameters = named_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    if acts_on_matrices(spec.by_kind["hidden"]):
        matrices |= set(stacked_parameters(model))
    own = {name: spec.by_kind[_trained_as(growth, name in matrices, spec)] for name, growth in growths.items()}
    tied = tied_tables(model) or _heads_without_module(base, growths)
    rule = choose_rule(rule, model, tied)
    mates = match_blocks(here, there, blocks)
    base_std = measure_base_std(base, growths, tied, blocks, mates)
    trained = {name: own[name] for name, p in parameters.items() if p.requires_grad}
    _check(spec, rule, growths, trained, tied, base_std)

    factors = _growing_factors(model, base, rule)
    m_depth, attention = _m_depth(parameter_names(model), parameter_names(base), blocks), read_attention_scaling(model, base)
    by_root = rule.multipliers.get("attention") == {"d_head": -0.5}  # as attention is built
    grew = any(growth.m_out != 1 for growth in growths.values())
    attention = replace(attention, unknown=attention.unknown and grew and not by_root)
    head_dim, base_head_dim = attention.head_size or (1.0, 1.0)
    forward = rule.forward(_m_width(growths, tied), m_depth, head_dim / base_head_dim)
    wanted = forward.branch != 1 and not hasattr(unwrap(model), "set_multipliers")
    return ModelScaling(
        scalings={name: rule.scale(growth, own[name].update, forward, m_depth) for name, growth in growths.items()},
        growths=growths,
        shapes=shapes,
        algorithm={name: algorithm.name for name, algorithm in own.items()},
        optimizer=spec,
        rule=rule,
        multipliers=forward,
        attention=attention,
        residual_blocks=blocks,
        mates=mates,
        branches=branches_of(model, base, blocks, mates) if wanted else {},
        base_std=base_std,
        table_factors=factors,
        notes=(
            *init_notes(base, growths, base_std, mates),
            *rule_notes(forward, attention, blocks, own, growths, spec),
            *forward_notes(model, base, growths, tied, factors),
        ),
    )


def choose_rule(rule: str | Rule, model: nn.Module, tied: Sequence[str] | None = None) -> Rule:
    """Return the rule of this name, and for "auto" the form of `spectral` that the model can follow.

    `tied` are tables that are the output layer's weight too, by default those that modules share. Raises ValueError where
    "auto" would need a multiplier on logits that no module puts out.
    """
    if rule != "auto":
        return resolve_rule(rule)
    shared = tied_tables(model)
    if tied and not shared:
        raise ValueError(
            f"{tied[0]}: is the output layer's weight too, in a forward pass that calls no module for it, so no hook can put "
            "1/m on the logits; tie an nn.Linear's weight to it, or multiply the logits by multipliers(scaling).logits "
            'yourself and pass rule="spectral"'
        )
    return resolve_rule("spectral" if shared else "spectral_readout")


def _heads_without_module(base: nn.Module, growths: Mapping[str, Growth]) -> list[str]:
    """List tables that a model without a readout multiplies by, as in F.linear(h, table.weight); none if it cannot be run."""
    if any(growth.kind == "readout" for growth in growths.values()):
        return []
    used = how_used(unwrap(base))
    return [name for name, growth in growths.items() if growth.kind == "embedding" and _both(used.get(name, set()))]


def _both(uses: set[str]) -> bool:
    return "embeddings" in uses and bool(uses & {"linear_out_in", "linear_in_out"})


def _check_arguments(model: Any, base: Any, wider: Any) -> None:
    """Raise TypeError unless each is a module, ValueError if a parameter has no shape yet or no entries."""
    for argument, given in {"model": model, "base": base, "wider": wider}.items():
        if not isinstance(given, nn.Module) and not (given is None and argument == "wider"):
            raise TypeError(f"{argument}: {given!r:.40} is not an nn.Module; build one, as in scale(build(512), build(64))")
        for name, p in {} if given is None else named_parameters(given).items():
            if isinstance(p, nn.UninitializedParameter):
                raise ValueError(f"{argument}: {name} has no shape yet; run it once on a batch before scale")
            if not p.numel():
                fix = "hold None in its place, or gather it first if it is sharded"
                raise ValueError(f"{argument}: {name} is empty, of shape {tuple(p.shape)}; {fix}")


def _check(
    spec: OptimizerSpec,
    rule: Rule,
    growths: Mapping[str, Growth],
    trained: Mapping[str, Algorithm],
    tied: Sequence[str],
    base_std: Mapping[str, float | None],
) -> None:
    """Refuse what cannot be scaled. Raises ValueError."""
    if spec.mixed and not kinds_known(growths):
        raise ValueError(
            f"optimizer={spec.name!r} treats kinds of tensors differently, but no dim grows from base to model; "
            "give a third instance to find out which can, as in scale(model, base, wider=build(2 * width))"
        )
    if tied and not rule.for_tied:
        raise ValueError(
            f"{tied[0]}: tied to the output layer, which rule={rule.name!r} scales by its init and lr; "
            'use rule="auto" or "spectral" and set_multipliers_(model, scaling), which puts the factor on the logits'
        )
    for name, algorithm in trained.items():
        if base_std[name] == 0 and algorithm.update.update_norm.get("s"):
            raise ValueError(
                f"{name}: starts at zero, but {algorithm.name} scales its step to the weight's norm; "
                "give it an init, or another optimizer as in optimizer='adamw'"
            )


def _growing_factors(model: nn.Module, base: nn.Module, rule: Rule) -> dict[str, float]:
    """Return {embedding module: factor} of those that multiply by a number that grows; nothing under a rule without lrs."""
    if not rule.derived and not rule.table.get("lr"):
        return {}
    there = table_factors(base)
    ratios = {name: there[name] / x for name, x in table_factors(model).items() if x and there.get(name)}
    return {name: ratio for name, ratio in ratios.items() if not math.isclose(ratio, 1, rel_tol=1e-4)}


def kinds_known(growths: Mapping[str, Growth]) -> bool:
    """Return whether any weight shows how it grows, or no weight exists."""
    weights = [growth for growth in growths.values() if growth.base_shape[1] > 1 or growth.kind == "embedding"]
    return not weights or any(growth.kind != "fixed" for growth in weights)


def _trained_as(growth: Growth, matrix: bool, spec: OptimizerSpec) -> str:
    """Return the kind whose algorithm trains a tensor.

    Hidden weights that are no matrix to their algorithm (scaling/matrices.py) take that of vectors if hidden matrices have one
    of their own, such as Muon.
    """
    own = spec.by_kind["hidden"].name != spec.by_kind["vector"].name
    return "vector" if growth.trained_as == "hidden" and not matrix and own else growth.trained_as


def _m_depth(seen: Sequence[str], base: Sequence[str], blocks: Sequence[str]) -> float:
    ratios = {}
    for prefix in blocks:
        counts = [count_blocks(names, prefix) for names in (seen, base)]
        if not all(counts):
            raise ValueError(
                f"residual_blocks: no parameter is named {prefix}0. and so on; names begin as {next(iter(seen), '')}"
            )
        ratios[prefix] = counts[0] / counts[1]
    if len(set(ratios.values())) > 1:
        raise ValueError(f"residual_blocks: grown by different factors {ratios}; one depth multiplier cannot serve them")
    return next(iter(ratios.values()), 1.0)


def _m_width(growths: Mapping[str, Growth], tied: Sequence[str]) -> float:
    """Return the growth of what the output layer reads."""
    read = [growth.m_in for growth in growths.values() if growth.kind == "readout"]
    read += [growths[name].m_out for name in tied]
    return max(read or [growth.m_out for growth in growths.values()], default=1.0)


torch.serialization.add_safe_globals(  # so that torch.load takes a saved scaling without weights_only=False
    [ModelScaling, Scaling, Growth, Algorithm, OptimizerSpec, Rule, Multipliers, Attention, Branches]
)
