"""What to train a large model with, tensor by tensor, as text and as data that a trainer elsewhere can read."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from spectral_mup.config.optimizer_spec import OptimizerSpec
from spectral_mup.scaling.forward_multipliers import multipliers
from spectral_mup.scaling.scale import ModelScaling, scale
from spectral_mup.scaling.table import TensorRow, decimal, merge, tensor_rows
from spectral_mup.theory.rules import Rule, UpdateScaling
from spectral_mup.util.text import table, wrap


@dataclass(frozen=True)
class Group:
    """Tensors that train with the same numbers: one, or one of every block.

    Attributes:
        name: Of the tensors, * for the number of a block.
        pattern: The same as a regex that matches them and no other.
        weight_decay: As torch takes it: a step shrinks the weight by lr · weight_decay.
        eps: None: the optimizer's own, or none.
        multiplier: Of the tensors' output in the forward pass, that of the branch they lie in included.
    """

    name: str
    pattern: str
    kind: str
    shape: tuple[int, ...]
    tensors: int
    optimizer: str
    init_std: float | None
    lr: float
    weight_decay: float
    eps: float | None
    multiplier: float


@dataclass(frozen=True)
class Recipe:
    """Numbers to train a model with.

    Attributes:
        rule: Its name.
        source: Where the rule was published.
        lr: Of the base, which the groups' lrs are multiples of.
        forward: The multipliers of the forward pass; attention is the scale of q·k itself, None if no module has a head_dim.
        optimizers: {name: class and arguments} of those that the groups name.
        groups: Tensors that train with the same numbers, and these numbers.
        notes: What is left to the user.
    """

    rule: str
    source: str
    lr: float
    forward: dict[str, float | None]
    optimizers: dict[str, dict[str, Any]]
    groups: list[Group]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the same as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        passes = ", ".join(f"{part} {decimal(x, 4)}" for part, x in self.forward.items())
        by_shape: dict[str, list[Group]] = {}
        for group in self.groups:
            shape = "×".join(map(str, group.shape))
            by_shape.setdefault(" ".join(filter(None, [group.kind, shape, group.optimizer])), []).append(group)
        cells = [["", "init std", "lr", "λ", "ε", "fwd"]]
        for heading, groups in by_shape.items():
            cells += [[heading, *[""] * 5], *(_cells(group) for group in groups)]
        notes = [line for note in self.notes for line in wrap(f"note: {note}")]
        return "\n".join([f"forward pass: {passes}", *table(cells, right=range(1, 6)), *notes])


def _cells(group: Group) -> list[str]:
    numbers = (group.init_std, group.lr, group.weight_decay, group.eps, group.multiplier)
    return [f"  {group.name}", *(decimal(x, 3) for x in numbers)]


def recipe(
    model: nn.Module | Callable[[], nn.Module],
    base: nn.Module | Callable[[], nn.Module],
    *,
    lr: float,
    optimizer: str | UpdateScaling | Mapping[str, UpdateScaling] | OptimizerSpec = "adamw",
    rule: str | Rule = "auto",
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
    residual_blocks: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    linear_out_in: Sequence[str] = (),
    linear_in_out: Sequence[str] = (),
    wider: nn.Module | None = None,
) -> Recipe:
    """Return what to train `model` with, given what was tuned on `base`: per tensor, and the numbers of the forward pass.

    Args:
        model: A module, or a function that builds it; a large model, built on the meta device, costs no memory.
        base: A module, or a function that builds it.
        lr: As tuned on the base, as for `param_groups`.
        optimizer: As for `scale`.
        rule: As for `scale`.
        weight_decay: λ of the base, as for `param_groups`.
        eps: ε of the base, as for `param_groups`.
        independent: Whether λ is the shrink per step, as for `param_groups`.
        residual_blocks: As for `scale`, as are the following.
        embeddings: Bare parameters that are looked up or added.
        linear_out_in: Bare parameters stored (out, in).
        linear_in_out: Bare parameters stored (in, out).
        wider: A third, wider instance.

    Returns:
        The recipe, which prints as a table; `to_dict` and `to_json` are for trainers elsewhere.

    Raises:
        TypeError: `model` or `base` is neither a module nor a function that builds one.
        ValueError: As for `scale` and `param_groups`.
    """
    with torch.device("meta"):
        large = model if isinstance(model, nn.Module) else model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = base if isinstance(base, nn.Module) else base()
    scaling = scale(
        large,
        small,
        optimizer=optimizer,
        rule=rule,
        residual_blocks=residual_blocks,
        embeddings=embeddings,
        linear_out_in=linear_out_in,
        linear_in_out=linear_in_out,
        wider=wider,
    )
    return recipe_of(scaling, lr=lr, weight_decay=weight_decay, eps=eps, independent=independent)


def recipe_of(
    scaling: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
) -> Recipe:
    """Return the recipe that a scaling amounts to; arguments as those of param_groups."""
    rows = tensor_rows(scaling, lr=lr, weight_decay=weight_decay, eps=eps, independent=independent)
    merged = merge([[row] for row in rows])
    groups = [_group(name, row, scaling, independent) for name, (row,) in merged.items()]
    forward = {part: None if math.isnan(x) else x for part, x in asdict(multipliers(scaling)).items()}
    used = {group.optimizer: scaling.optimizer.algorithms[group.optimizer] for group in groups}
    optimizers = {name: {"target": import_path(a.target), "args": dict(a.args)} for name, a in used.items()}
    return Recipe(scaling.rule.name, scaling.rule.source, lr, forward, optimizers, groups, list(scaling.notes))


def _group(name: str, row: TensorRow, scaling: ModelScaling, independent: bool) -> Group:
    pattern = r"\.".join(r"\d+" if part == "*" else re.escape(part) for part in name.split("."))
    rate, decay = row.value("lr") or 0.0, row.value("λ") or 0.0
    return Group(
        name=name,
        pattern=f"^{pattern}$",  # so that a trainer that searches finds no part of a name either
        kind=row.kind,
        shape=scaling.shapes[row.tensor],
        tensors=sum(bool(re.fullmatch(pattern, tensor)) for tensor in scaling),
        optimizer=row.optimizer,
        init_std=row.value("init std"),
        lr=rate,
        weight_decay=decay / rate if independent else decay,
        eps=row.value("ε"),
        multiplier=row.multiplier,
    )


def import_path(target: Any) -> str | None:
    """Return 'torch.optim.AdamW' of the class or of its path."""
    return target if target is None or isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"
