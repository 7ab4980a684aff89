"""What each tensor trains with, as text: one rule in full, or several rules side by side."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spectral_mup.scaling.forward_multipliers import multipliers
from spectral_mup.scaling.groups import base_values
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.util.text import table

QUANTITIES = {"init std": "init", "lr": "lr", "λ": "λ", "ε": "ε"}  # and their short headings


@dataclass(frozen=True)
class TensorRow:
    """What one tensor is, how it grew, and the numbers it trains with: base[quantity] · times[quantity].

    Attributes:
        base: Value in the base model of each of QUANTITIES; None where it has none.
        times: What the rule multiplies it by.
        multiplier: Of the tensor's own output in the forward pass.
    """

    tensor: str
    shape: str
    kind: str
    m_out: float
    m_in: float
    optimizer: str
    base: Mapping[str, float | None]
    times: Mapping[str, float]
    multiplier: float

    def value(self, quantity: str) -> float | None:
        """Return what the tensor trains with."""
        base = self.base[quantity]
        return None if base is None else base * self.times[quantity]

    def cells(self) -> dict[str, Any]:
        """Return its row of `one_rule`."""
        row: dict[str, Any] = {"tensor": self.tensor, "shape": self.shape, "kind": self.kind, "m_out": self.m_out}
        row |= {"m_in": self.m_in, "init std": self.value("init std"), "optimizer": self.optimizer}
        for quantity in ("lr", "λ", "ε"):
            row |= {quantity: self.value(quantity), f"{quantity} ×": self.times[quantity]}
        return row | {"multiplier": self.multiplier}


def explain(
    scaling: ModelScaling,
    *,
    lr: float = 1.0,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
) -> str:
    """Return a table: each tensor's kind, growth, init std, lr, λ, ε and multiplier, and the numbers of the forward pass.

    Args:
        scaling: What `scale` returned.
        lr: As for `param_groups`, as are the following.
        weight_decay: λ of the base.
        eps: ε of the base.
        independent: Whether λ is the shrink per step.

    Returns:
        The table as text, and the scaling's notes below it.

    Raises:
        ValueError: A number is negative or not finite, or weight_decay misses a kind.
    """
    rows = tensor_rows(scaling, lr=lr, weight_decay=weight_decay, eps=eps, independent=independent)
    if not rows:
        return "no parameters"
    rule = scaling.rule
    text = one_rule(f"{rule.name}, {scaling.optimizer.name}", rule.source, rows, asdict(multipliers(scaling)))
    return "\n".join([text, *(f"note: {note}" for note in scaling.notes)])


def tensor_rows(
    scaling: ModelScaling,
    *,
    lr: float,
    weight_decay: float | Mapping[str, float] = 0.0,
    eps: float | None = None,
    independent: bool = False,
) -> list[TensorRow]:
    """Make one row per tensor; with `independent` no rule acts on λ (see groups.param_groups)."""
    base, forward, rows = base_values(scaling, lr, weight_decay, eps), scaling.multipliers, []
    for name, s in scaling.items():
        growth, own = scaling.growths[name], base[name]
        rows.append(
            TensorRow(
                tensor=name,
                shape="×".join(map(str, scaling.shapes[name])),
                kind=growth.kind,
                m_out=growth.m_out,
                m_in=growth.m_in,
                optimizer=scaling.algorithm[name],
                base={"init std": scaling.base_std[name], "lr": own["lr"], "λ": own["weight_decay"], "ε": own["eps"]},
                times={"init std": s.init_std, "lr": s.lr, "λ": 1.0 if independent else s.weight_decay, "ε": s.eps},
                multiplier=forward.of(growth) * (forward.branch if growth.in_block else 1.0),
            )
        )
    return rows


def merge(tensors: Sequence[Sequence[TensorRow]]) -> dict[str, Sequence[TensorRow]]:
    """Return {label: rows of a tensor, one per rule}.

    Tensors that differ in a number of their name alone are one entry if all their other values are equal:
    blocks.0.mlp.up.weight, … as blocks.*.mlp.up.weight.
    """
    groups: dict[str, list[Sequence[TensorRow]]] = {}
    for tensor in tensors:
        label = ".".join("*" if part.isdigit() else part for part in tensor[0].tensor.split("."))
        groups.setdefault(label, []).append(tensor)
    merged: dict[str, Sequence[TensorRow]] = {}
    for label, group in groups.items():
        unnamed = [[replace(row, tensor="") for row in tensor] for tensor in group]
        same = len(group) > 1 and all(rows == unnamed[0] for rows in unnamed)
        merged |= {label: group[0]} if same else {tensor[0].tensor: tensor for tensor in group}
    return merged


def one_rule(name: str, source: str, rows: Sequence[TensorRow], forward: Mapping[str, float]) -> str:
    """Show every tensor with its shape, growth, values and multipliers."""
    cells = [row.cells() | {"tensor": label} for label, (row,) in merge([[row] for row in rows]).items()]
    numeric = [i for i, key in enumerate(cells[0]) if all(isinstance(row[key], float | int | None) for row in cells)]
    lines = table([list(cells[0])] + [[decimal(v, 4) for v in row.values()] for row in cells], right=numeric)
    passes = ", ".join(f"{part} {decimal(x, 4)}" for part, x in forward.items() if not math.isnan(x))
    return "\n".join([f"{name} ({source})", f"forward pass: {passes}", "", *lines])


def side_by_side(
    sources: Mapping[str, str], rows: Sequence[Sequence[TensorRow]], forward: Sequence[Mapping[str, float]]
) -> str:
    """Show the base's values, what each rule multiplies them by, and ≠ where rules disagree; `fwd`: the tensor's multiplier.

    Values that are absent or zero in the base are shown as – and never count as a disagreement.

    Args:
        sources: {rule: where it was published}.
        rows: Of each rule, the same tensors in the same order.
        forward: Of each rule: {attention, branch, logits, embedding: number in the forward pass}.
    """
    letters = string.ascii_lowercase[: len(sources)]
    times = [f"×{letter}" for letter in letters]
    lines = merge(list(zip(*rows, strict=True)))
    groups = [table([["tensor"]] + [[label] for label in lines])]
    groups += [table([["kind"]] + [[line[0].kind] for line in lines.values()])]
    for quantity, heading in QUANTITIES.items():
        values = [[short(line[0].base[quantity] or None), *marked(_times(line, quantity))] for line in lines.values()]
        groups.append(table([[heading, *times]] + values, gap=1))
    multiplier = [[row.multiplier for row in line] for line in lines.values()]
    groups.append(table([["fwd a", *letters[1:]]] + [marked(line) for line in multiplier], gap=1))

    counts = {quantity: sum(not agree(_times(line, quantity)) for line in lines.values()) for quantity in QUANTITIES}
    counts["multiplier"] = sum(not agree(line) for line in multiplier)
    differ = ", ".join(f"{quantity} in {n}" for quantity, n in counts.items() if n)
    parts = [[part, *marked([numbers[part] for numbers in forward])] for part in forward[0]]
    text = table([[letter, name, source] for letter, (name, source) in zip(letters, sources.items(), strict=True)])
    text += ["Base values, what each rule multiplies them by, ≠ where rules disagree; fwd: multiplier in the forward pass.", ""]
    text += table(list(zip(*groups, strict=True)), gap=3)
    text += ["", *table([["forward pass", *letters], *parts]), ""]
    text += [f"Of {len(lines)} rows the rules differ: {differ}." if differ else f"The rules agree in all {len(lines)} rows."]
    return "\n".join(text)


def _times(line: Sequence[TensorRow], quantity: str) -> list[float | None]:
    """Return the multipliers under each rule; None where the base has no value or 0, on which rules cannot disagree."""
    return [row.times[quantity] if row.base[quantity] else None for row in line]


def agree(values: Sequence[float | None]) -> bool:
    """Return whether all rules say the same; there is nothing to disagree on where the base has no value."""
    known = [v for v in values if v is not None]
    return all(math.isclose(v, known[0], rel_tol=1e-9) for v in known)


def marked(values: Sequence[float | None]) -> list[str]:
    """Format one cell per rule, with ≠ after the last one if rules disagree."""
    cells = [short(v) for v in values]
    return cells if agree(values) else [*cells[:-1], f"{cells[-1]} ≠"]


def short(value: float | None) -> str:
    """Format a number to three significant digits, or as a power of two where that is shorter and exact: 0.25, 2^-7, 2^-3.5."""
    text = decimal(value, 3)
    if value and len(text) > 5 and math.isclose(exponent := round(math.log2(value) * 2) / 2, math.log2(value), abs_tol=1e-9):
        text = min(text, f"2^{exponent:g}", key=len)
    return text


def decimal(value: Any, digits: int) -> str:
    """Format a number to that many significant digits (integers to 9999 in full), – for nothing, text unchanged."""
    if not isinstance(value, float | int):
        return "–" if value is None else str(value)
    return f"{value:.{max(digits, 4) if abs(value) >= 1000 else digits}g}"
