"""ModelScaling of a whole model against a base model of the same architecture: what the public functions work with."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec, resolve_optimizer, resolve_rule
from spectral_mup.optim.stacked import whole
from spectral_mup.scaling.branches import Branches, branches_of
from spectral_mup.scaling.inspect import (
    HEADS_UNKNOWN,
    Attention,
    Layout,
    find_blocks,
    inspect_parameters,
    named_modules,
    named_parameters,
    owners,
    read_attention_scaling,
    table_factors,
    tied_tables,
    unwrap,
)
from spectral_mup.scaling.matrices import acts_on_matrices, stacked_parameters
from spectral_mup.scaling.trace import how_used
from spectral_mup.theory.growth import Growth, count_blocks, counterpart, in_first_block, match_blocks, measure_growth
from spectral_mup.theory.rules import Multipliers, Rule, Scaling, UpdateScaling

SIGMAS = 5  # standard errors by which a sample may be off
FEW = 16  # values that say nothing of their std
PAIRS = 100  # fewer say nothing of a correlation
SEEN = 2**16  # values that are looked at for repetitions
DISTINCT = 256  # values of which half must differ in a sample, in any precision


@dataclass(frozen=True, eq=False)
class ModelScaling(Mapping[str, Scaling]):
    """{parameter name: Scaling}, and what they were derived from. Wrappers' prefixes are not part of the names.

    algorithm    which of the optimizer's algorithms trains each tensor
    multipliers  numbers of the forward pass relative to the base, where each is 1 (`multipliers` gives the absolute ones)
    mates        {block: the block of the base that it was compared with}
    branches     {prefix of residual blocks: where their branches end}, where the rule has a multiplier for them
    base_std     init std of the base model's tensor, measured; None stays as built (gains, structured values)
    table_factors  {embedding module: what makes its own factor, as √width in Gemma, that of the base}
    notes        what was not done, and what is left to the user
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
    """Scaling of every parameter of `model` against `base`, by a rule for an optimizer (arXiv 2310.17813, theory/rules.py).

    model, base      instances of one architecture, of any width and depth, on any device, the meta device too
    optimizer        a name of conf/optimizer, an UpdateScaling, {kind: UpdateScaling}, or what `derive` returns
    rule             a name of conf/rule, or a Rule. `auto` is `spectral_readout`, which needs no logits multiplier, or where
                     the readout is tied to the embedding `spectral`, whose set_multipliers_ puts it on the logits
    residual_blocks  prefixes of blocks whose outputs are added up, before their index, as in ("layers.",): for depth, and for
                     hidden sides that do not grow. Found by itself where blocks are named as in GPT-2 or Llama
    embeddings       bare parameters that are looked up or added like embeddings: positions, class tokens; here and below a name
                     may be a pattern, as in "layers.*.experts.w1"
    linear_out_in    bare parameters that are linear maps stored (out, in), or stacks of them (experts, out, in)
    linear_in_out    those stored (in, out), as in x @ w. A bare parameter is asked about where no forward pass of its module
                     on the meta device shows what it is
    wider            any third, wider instance; needed where `model` is no wider than `base` and kinds of tensors differ

    Raises GrowthError on a tensor that cannot be classified, RuleError where the rule does not cover the optimizer,
    TypeError on what is no module, and ValueError on an optimizer's class, a parameter without a shape (LazyLinear), tied
    embeddings under a rule without a logits multiplier and a zero init that LAMB cannot leave. What it returns can be saved
    with torch.save, and loaded with torch.load as it is.
    """
    _check_arguments(model, base, wider)
    spec = resolve_optimizer(optimizer)
    layout = Layout(embeddings, linear_out_in, linear_in_out)
    here, there = inspect_parameters(model, layout), inspect_parameters(base, layout)
    blocks = ((residual_blocks,) if isinstance(residual_blocks, str) else tuple(residual_blocks)) or find_blocks(here)
    growths = measure_growth(here, there, here if wider is None else inspect_parameters(wider, layout), blocks)
    shapes = {name: tuple(p.shape) for name, p in named_parameters(model).items()}
    matrices = {name for name, shape in shapes.items() if len(shape) < 3}
    if acts_on_matrices(spec.by_kind["hidden"]):
        matrices |= set(stacked_parameters(model))
    own = {name: spec.by_kind[_trained_as(growth, name in matrices, spec)] for name, growth in growths.items()}
    tied = tied_tables(model) or _heads_without_module(base, growths)
    rule = choose_rule(rule, model, tied)
    mates = match_blocks(here, there, blocks)
    base_std = _base_std(base, growths, tied, blocks, mates)
    _check(spec, rule, growths, own, tied, base_std)

    factors = _growing_factors(model, base, rule)
    m_depth, attention = _m_depth(here, there, blocks), read_attention_scaling(model, base)
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
            *_init_notes(base, growths, base_std, mates),
            *_notes(forward, attention, blocks, own, growths, spec),
            *_forward_notes(model, base, growths, tied, factors),
        ),
    )


def choose_rule(rule: str | Rule, model: nn.Module, tied: Sequence[str] | None = None) -> Rule:
    """The rule of this name, and for "auto" the form of `spectral` that the model can follow.

    tied  tables that are the output layer's weight too; default: those that modules share
    Raises ValueError where "auto" would need a multiplier on logits that no module puts out.
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
    """Tables that a model without a readout multiplies by, as in F.linear(h, table.weight); none where it cannot be run."""
    if any(growth.kind == "readout" for growth in growths.values()):
        return []
    used = how_used(unwrap(base))
    return [name for name, growth in growths.items() if growth.kind == "embedding" and _both(used.get(name, set()))]


def _both(uses: set[str]) -> bool:
    return "embeddings" in uses and bool(uses & {"linear_out_in", "linear_in_out"})


def _check_arguments(model: Any, base: Any, wider: Any) -> None:
    """Raises TypeError on what is no module, ValueError on one whose parameters have no shape yet."""
    for argument, given in {"model": model, "base": base, "wider": wider}.items():
        if not isinstance(given, nn.Module) and not (given is None and argument == "wider"):
            raise TypeError(f"{argument}: {given!r:.40} is no nn.Module; build one, as in scale(build(512), build(64))")
        for name, p in {} if given is None else named_parameters(given).items():
            if isinstance(p, nn.UninitializedParameter):
                raise ValueError(f"{argument}: {name} has no shape yet; run it once on a batch before scale")


def _check(
    spec: OptimizerSpec,
    rule: Rule,
    growths: Mapping[str, Growth],
    algorithm: Mapping[str, Algorithm],
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
    for name in growths:
        if base_std[name] == 0 and algorithm[name].update.update_norm.get("s"):
            raise ValueError(
                f"{name}: starts at zero, but {algorithm[name].name} scales its step to the weight's norm; "
                "give it an init, or another optimizer as in optimizer='adamw'"
            )


def _growing_factors(model: nn.Module, base: nn.Module, rule: Rule) -> dict[str, float]:
    """{embedding module: factor}, where the module multiplies by a number that grows; nothing under a rule without lrs."""
    if not rule.derived and not rule.table.get("lr"):
        return {}
    there = table_factors(base)
    ratios = {name: there[name] / x for name, x in table_factors(model).items() if x and there.get(name)}
    return {name: ratio for name, ratio in ratios.items() if not math.isclose(ratio, 1, rel_tol=1e-4)}


def _init_notes(
    base: nn.Module, growths: Mapping[str, Growth], base_std: Mapping[str, float | None], mates: Mapping[str, str]
) -> Iterator[str]:
    """What init_ keeps, and which biases it draws."""
    found = named_parameters(base)
    for name, growth in growths.items():
        values = found[counterpart(name, mates)]
        if values.ndim > 1 and growth.kind != "vector" and base_std[name] is None and values.requires_grad:
            yield f"{name}: starts at values that are no sample of mean zero, so init_ keeps what the model is built with"
    if any(std is not None and found[counterpart(name, mates)].ndim < 2 for name, std in base_std.items()):
        yield "biases that torch draws start with the base's std at every width; init_(biases=False) leaves them as built"


def _forward_notes(
    model: nn.Module, base: nn.Module, growths: Mapping[str, Growth], tied: Sequence[str], factors: Mapping[str, float]
) -> Iterator[str]:
    """What the forward pass may do that a rule does not see."""
    kinds = {growth.kind for growth in growths.values()}
    if "embedding" in kinds and "readout" not in kinds and not tied:
        yield "no readout: if the output layer takes an embedding's weight, multiply the logits by base width over model width"
    for name, factor in factors.items():
        yield f"{name}: multiplies by a factor that grows, which set_multipliers_ takes back by × {factor:.4g}"
    there = named_modules(base)
    for name, module in named_modules(model).items():
        here, before = (getattr(m, "embed_scale", None) for m in (module, there.get(name)))
        if isinstance(here, float) and isinstance(before, float) and here != before and name not in factors:
            yield f"{name}.embed_scale: {here:.4g}, but {before:.4g} in the base; take the base's if it multiplies embeddings"


def kinds_known(growths: Mapping[str, Growth]) -> bool:
    """Whether any weight tells how it grows, or there is none to ask."""
    weights = [growth for growth in growths.values() if growth.base_shape[1] > 1 or growth.kind == "embedding"]
    return not weights or any(growth.kind != "fixed" for growth in weights)


def _trained_as(growth: Growth, matrix: bool, spec: OptimizerSpec) -> str:
    """The kind whose algorithm trains a tensor. Hidden weights that are no matrix to their algorithm (scaling/matrices.py) take
    that of vectors if hidden matrices have one of their own, such as Muon."""
    own = spec.by_kind["hidden"].name != spec.by_kind["vector"].name
    return "vector" if growth.trained_as == "hidden" and not matrix and own else growth.trained_as


def _m_depth(seen: Mapping[str, Any], base: Mapping[str, Any], blocks: Sequence[str]) -> float:
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
    """Growth of what the output layer reads."""
    read = [growth.m_in for growth in growths.values() if growth.kind == "readout"]
    read += [growths[name].m_out for name in tied]
    return max(read or [growth.m_out for growth in growths.values()], default=1.0)


@torch.no_grad()
def _base_std(
    base: nn.Module, growths: Mapping[str, Growth], tied: Sequence[str], blocks: Sequence[str], mates: Mapping[str, str]
) -> dict[str, float | None]:
    """Init std of the base model's tensors: of its values, or on the meta device what its config or its fan_in says.

    None where a tensor stays as built: gains, constants, and values that are no independent sample of mean zero.
    """
    found, held = named_parameters(base), owners(base)
    declared = getattr(getattr(base, "config", None), "initializer_range", None)
    stds: dict[str, float | None] = {}
    for name, growth in growths.items():
        p = found[counterpart(name, mates)]
        if p.ndim < 2:
            stds[name] = _drawn_bias_std(p, held[id(p)][0])
        elif growth.kind == "vector":
            stds[name] = None
        elif not p.is_meta:
            stds[name] = sample_std(p)
        elif declared is not None:
            stds[name] = declared
        else:  # a tied table starts as the readout that it also is
            stds[name] = growth.base_shape[0] ** -0.5 if name in tied else growth.base_shape[1] ** -0.5
    return _pooled(stds, growths, blocks)


def sample_std(p: Any) -> float | None:
    """Std of values that look like an independent sample of mean zero, 0 where all are zero; None of any others.

    Within five standard errors: the mean, and the correlation of neighbours along each axis. Values that repeat, as in an
    identity or in equal rows, are no sample either.
    """
    x = whole(p.detach()).double().cpu()
    if not x.any():
        return 0.0
    std, n = float(x.std(correction=0)), x.numel()
    if len(x.flatten()[:SEEN].unique()) < min(n, DISTINCT) / 2 or abs(float(x.mean())) > SIGMAS * std / n**0.5:
        return None
    for axis in range(x.ndim):
        length = x.shape[axis] - 1
        pairs = (x.narrow(axis, 0, length) * x.narrow(axis, 1, length)).flatten() / std**2
        if len(pairs) >= PAIRS and abs(float(pairs.mean())) > SIGMAS / len(pairs) ** 0.5:
            return None
    return std


def _drawn_bias_std(p: Any, module: Any) -> float | None:
    """Std of a bias as torch's linear maps draw it, uniform within ±fan_in^-1/2; None of any other, or of one on meta."""
    if p is not getattr(module, "bias", None) or not isinstance(module, nn.Linear | _ConvNd) or p.is_meta:
        return None
    bound = math.prod(module.weight.shape[1:]) ** -0.5
    x = whole(p.detach()).double()
    std, rms = bound / 3**0.5, float(x.square().mean().sqrt())
    constant = not x.any() or (len(x) > 1 and len(x.unique()) == 1)
    as_torch = bool((x.abs() <= bound).all()) and (len(x) < FEW or abs(rms - std) < std / 2)
    return std if as_torch and not constant else None


def base_init_std(growth: Growth, stds: Mapping[str, float | None]) -> float | None:
    """Init std in the base model by kind: stds[kind], or fan_in^-1/2 where that is None; None: it stays as built."""
    if growth.kind not in stds or growth.kind == "vector":
        return None
    fixed = stds[growth.kind]
    return growth.base_shape[1] ** -0.5 if fixed is None else fixed


def _pooled(stds: Mapping[str, float | None], growths: Mapping[str, Growth], blocks: Sequence[str]) -> dict[str, float | None]:
    """Stds of one tensor over the blocks as one number, where they agree within the error of a sample."""
    alike: dict[str, list[str]] = {}
    for name, std in stds.items():
        if std is not None:
            alike.setdefault(in_first_block(name, blocks), []).append(name)
    pooled = dict(stds)
    for names in alike.values():
        measured = [stds[name] or 0.0 for name in names]
        mean = (sum(s**2 for s in measured) / len(measured)) ** 0.5
        size = min(math.prod(growths[name].base_shape) for name in names)
        if all(abs(s - mean) <= 5 * mean / (2 * size) ** 0.5 for s in measured):
            pooled |= dict.fromkeys(names, mean)
    return pooled


def _notes(
    forward: Multipliers,
    attention: Attention,
    blocks: Sequence[str],
    algorithm: Mapping[str, Algorithm],
    growths: Mapping[str, Growth],
    spec: OptimizerSpec,
) -> Iterator[str]:
    if not blocks:
        yield "no residual_blocks given: depth is not scaled, and hidden sides that do not grow count as inputs or outputs"
    if attention.unknown:
        yield f"attention: {HEADS_UNKNOWN}"
    for name, growth in growths.items():
        if growth.kind == "hidden" and algorithm[name] != spec.by_kind["hidden"]:
            yield f"{name}: not a matrix by its shape, so {algorithm[name].name} trains it"
    for name in dict.fromkeys(a.name for a in algorithm.values() if a.attribute("update_hessian")):
        yield f"{name}: without update_hessian it is sign momentum; Trainer calls it, and its docstring shows how to"
    wanted = {part: x for part, x in asdict(forward).items() if x != 1}
    if wanted:
        said = ", ".join(f"{part} × {x:.4g}" for part, x in wanted.items())
        yield f"the forward pass must carry {said} (relative to the base): set_multipliers_ or multipliers"


torch.serialization.add_safe_globals(  # so that torch.load takes a saved scaling without weights_only=False
    [ModelScaling, Scaling, Growth, Algorithm, OptimizerSpec, Rule, Multipliers, Attention, Branches]
)
