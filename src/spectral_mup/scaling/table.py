"""What each tensor trains with, as text: one rule in full, or several rules side by side. Imports no torch.

A row is a dict a tensor, from `tensor_row`: `X` is the number it trains with, `X ×` what the rule multiplied the base by.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from spectral_mup.theory.growth import Growth
from spectral_mup.theory.rules import Multipliers, Scaling

Row = Mapping[str, Any]
QUANTITIES = {"init std": "init", "lr": "lr", "λ": "λ", "ε": "ε"}  # and their short headings


def tensor_row(
    name: str,
    shape: Sequence[int],
    growth: Growth,
    scaling: Scaling,
    base: Mapping[str, float | None],
    optimizer: str,
    forward: Multipliers,
    independent: bool,
) -> dict[str, Any]:
    """What one tensor is, how it grew and what it trains with; `base` has the base model's init_std, lr, weight_decay, eps.

    With `independent` no rule acts on λ (see theory.apply.param_groups).
    """

    def times(value: float | None, multiplier: float) -> float | None:
        return None if value is None else value * multiplier

    decay = 1.0 if independent else scaling.weight_decay
    multiplier = {"readout": forward.logits, "embedding": forward.embedding}.get(growth.kind, 1.0)
    return {
        "tensor": name,
        "shape": "×".join(str(n) for n in shape),
        "kind": growth.kind,
        "m_out": growth.m_out,
        "m_in": growth.m_in,
        "init std": times(base["init_std"], scaling.init_std),
        "init std ×": scaling.init_std,
        "optimizer": optimizer,
        "lr": times(base["lr"], scaling.lr),
        "lr ×": scaling.lr,
        "λ": times(base["weight_decay"], decay),
        "λ ×": decay,
        "ε": times(base["eps"], scaling.eps),
        "ε ×": scaling.eps,
        "multiplier": multiplier * (forward.branch if growth.in_block else 1.0),
    }


def merge(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for all tensors that differ in a number of their name alone: blocks.0.mlp.up.weight, … as blocks.*.mlp.up.weight.

    Tensors whose other entries are not all equal keep a row each.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = ".".join("*" if part.isdigit() else part for part in row["tensor"].split("."))
        groups.setdefault(label, []).append(row)
    merged = []
    for label, group in groups.items():
        same = len(group) > 1 and all({**row, "tensor": ""} == {**group[0], "tensor": ""} for row in group)
        merged += [{**group[0], "tensor": label}] if same else [dict(row) for row in group]
    return merged


def one_rule(name: str, source: str, rows: Sequence[Row], forward: Mapping[str, float]) -> str:
    """Every tensor with its shape, growth, values and multipliers."""
    table = merge([{k: v for k, v in row.items() if k != "init std ×"} for row in rows])
    numeric = [all(isinstance(row[key], float | int | None) for row in table) for key in table[0]]
    lines = columns([list(table[0])] + [[decimal(v, 4) for v in row.values()] for row in table], right=numeric)
    passes = ", ".join(f"{part} {decimal(x, 4)}" for part, x in forward.items())
    return "\n".join([f"{name} ({source})", f"forward pass: {passes}", "", *(line.rstrip() for line in lines)])


def side_by_side(sources: Mapping[str, str], rows: Sequence[Sequence[Row]], forward: Sequence[Mapping[str, float]]) -> str:
    """The base's values, what each rule multiplies them by, and ≠ where rules disagree; `fwd`: the tensor's own multiplier.

    sources  {rule: where it was published}
    rows     of each rule, the same tensors in the same order
    forward  of each rule: {attention, branch, logits, embedding: number in the forward pass}
    A value that the base has not (no ε, no init) or that is 0 shows as –, and no rule can disagree on it.
    """
    letters = string.ascii_lowercase[: len(sources)]
    times = [f"×{letter}" for letter in letters]
    lines = merge([_compare(tensor) for tensor in zip(*rows, strict=True)])
    groups = [columns([["tensor"]] + [[line["tensor"]] for line in lines])]
    groups += [columns([["kind"]] + [[line["kind"]] for line in lines])]
    for quantity, heading in QUANTITIES.items():
        values = [[short(line[quantity][0]), *marked(line[quantity][1])] for line in lines]
        groups.append(columns([[heading, *times]] + values, " "))
    groups.append(columns([["fwd a", *letters[1:]]] + [marked(line["multiplier"]) for line in lines], " "))

    counts = {quantity: sum(not agree(line[quantity][1]) for line in lines) for quantity in QUANTITIES}
    counts["multiplier"] = sum(not agree(line["multiplier"]) for line in lines)
    differ = ", ".join(f"{quantity} in {n}" for quantity, n in counts.items() if n)
    parts = [[part, *marked([numbers[part] for numbers in forward])] for part in forward[0]]
    text = columns([[letter, name, source] for letter, (name, source) in zip(letters, sources.items(), strict=True)])
    text += ["Base values, what each rule multiplies them by, ≠ where rules disagree; fwd: multiplier in the forward pass.", ""]
    text += ["   ".join(cells) for cells in zip(*groups, strict=True)]
    text += ["", *columns([["forward pass", *letters], *parts]), ""]
    text += [f"Of {len(lines)} rows the rules differ: {differ}." if differ else f"The rules agree in all {len(lines)} rows."]
    return "\n".join(line.rstrip() for line in text)


def _compare(tensor: Sequence[Row]) -> dict[str, Any]:
    """One tensor under every rule: {quantity: (base value, multipliers)}."""
    line: dict[str, Any] = {"tensor": tensor[0]["tensor"], "kind": tensor[0]["kind"]}
    for quantity in QUANTITIES:
        value = tensor[0][quantity]
        base = value / tensor[0][f"{quantity} ×"] if value else None
        line[quantity] = (base, [None if base is None else row[f"{quantity} ×"] for row in tensor])
    return line | {"multiplier": [row["multiplier"] for row in tensor]}


def agree(values: Sequence[float | None]) -> bool:
    """Whether all rules say the same; there is nothing to disagree on where the base has no value."""
    known = [v for v in values if v is not None]
    return all(math.isclose(v, known[0], rel_tol=1e-9) for v in known)


def marked(values: Sequence[float | None]) -> list[str]:
    """A cell a rule, with ≠ after the last one if rules disagree."""
    cells = [short(v) for v in values]
    return cells if agree(values) else [*cells[:-1], f"{cells[-1]} ≠"]


def short(value: float | None) -> str:
    """Three significant digits, or a power of two where that is shorter and exact: 0.25, 2^-7, 2^-3.5."""
    text = decimal(value, 3)
    if value and len(text) > 5 and math.isclose(exponent := round(math.log2(value) * 2) / 2, math.log2(value), abs_tol=1e-9):
        text = min(text, f"2^{exponent:g}", key=len)
    return text


def decimal(value: Any, digits: int) -> str:
    """A number to so many significant digits (integers to 9999 in full), – for nothing, text as it is."""
    if not isinstance(value, float | int):
        return "–" if value is None else str(value)
    return f"{value:.{max(digits, 4) if abs(value) >= 1000 else digits}g}"


def columns(cells: Sequence[Sequence[str]], gap: str = "  ", right: Sequence[bool] | None = None) -> list[str]:
    """Lines of cells padded to columns of equal width, to the left but where `right`."""
    right = right or [False] * len(cells[0])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [gap.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)) for line in cells]
