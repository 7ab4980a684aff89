"""What a probe records of a tensor: a function of a TensorStep that returns a number, or None where it does not apply.

QUANTITIES has those of norms.jsonl, a column each; `probe.quantities` chooses among them, or names a function of your own by
its import path. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectral_mup.util.registry import lookup

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorStep:
    """One tensor in a step, as matrices (fan_out, fan_in) in float32, with their spectral norms; at step 0 the weight alone.

    Attributes:
        inputs: What its linear map reads on the fixed batch (tokens, fan_in); None for other tensors.
        lr: What it trained with in the step.
    """

    weight: Tensor
    weight_norm: float
    inputs: Tensor | None
    update: Tensor | None = None
    update_norm: float | None = None
    gradient: Tensor | None = None
    gradient_norm: float | None = None
    lr: float | None = None


def stable_rank(matrix: Tensor | None, norm: float | None) -> float | None:
    """Return ‖M‖_F²/‖M‖₂², 0 for M = 0."""
    if matrix is None or norm is None:
        return None
    return float(matrix.square().sum()) / norm**2 if norm > 0 else 0.0


def alignment(matrix: Tensor | None, norm: float | None, inputs: Tensor | None) -> float | None:
    """Return ‖M·x‖/(‖M‖₂·‖x‖), norms over the whole fixed batch: 1 where inputs lie along the top singular direction."""
    if matrix is None or inputs is None or norm is None or not norm > 0:
        return None
    return float((inputs @ matrix.mT).norm() / (norm * inputs.norm()))


Quantity = Callable[[TensorStep], float | None]
QUANTITIES: dict[str, Quantity] = {
    "weight_norm": lambda s: s.weight_norm,
    "weight_alignment": lambda s: alignment(s.weight, s.weight_norm, s.inputs),
    "lr": lambda s: s.lr,
    "update_norm": lambda s: s.update_norm,
    "update_stable_rank": lambda s: stable_rank(s.update, s.update_norm),
    "grad_norm": lambda s: None if s.gradient is None else float(s.gradient.norm()),
    "grad_stable_rank": lambda s: stable_rank(s.gradient, s.gradient_norm),
    "update_alignment": lambda s: alignment(s.update, s.update_norm, s.inputs),
}


def resolve_quantities(names: Sequence[str] | None) -> dict[str, Quantity]:
    """Return {column: quantity} of names or import paths; all of QUANTITIES if None. Raises ConfigError."""
    if names is None:
        return QUANTITIES
    return {name.rpartition(".")[2]: lookup(QUANTITIES, name, "probe.quantities") for name in names}
