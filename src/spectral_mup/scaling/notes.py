"""What `scale` says in notes: what was not done, and what is left to the user."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from torch import nn

from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec
from spectral_mup.scaling.inspect import HEADS_UNKNOWN, Attention, is_vector, named_modules, named_parameters
from spectral_mup.theory.growth import Growth, counterpart
from spectral_mup.theory.rules import Multipliers


def rule_notes(
    forward: Multipliers,
    attention: Attention,
    blocks: Sequence[str],
    algorithm: Mapping[str, Algorithm],
    growths: Mapping[str, Growth],
    spec: OptimizerSpec,
) -> Iterator[str]:
    """Yield what a rule wants of the forward pass, and what it does not scale."""
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


def init_notes(
    base: nn.Module, growths: Mapping[str, Growth], base_std: Mapping[str, float | None], mates: Mapping[str, str]
) -> Iterator[str]:
    """Yield what init_ keeps as built, and whether it draws biases."""
    found = named_parameters(base)
    vectors = [name for name, growth in growths.items() if is_vector(found[counterpart(name, mates)].shape, growth)]
    for name, growth in growths.items():
        weight = growth.kind != "vector" and name not in vectors
        if weight and base_std[name] is None and found[counterpart(name, mates)].requires_grad:
            yield f"{name}: does not start as a random sample of mean zero, so init_ keeps what the model is built with"
    if any(base_std[name] is not None for name in vectors):
        yield "biases that torch draws start with the base's std at every width; init_(biases=False) leaves them as built"


def forward_notes(
    model: nn.Module, base: nn.Module, growths: Mapping[str, Growth], tied: Sequence[str], factors: Mapping[str, float]
) -> Iterator[str]:
    """Yield what the forward pass may do that a rule does not see."""
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
