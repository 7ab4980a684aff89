"""What each kind of tensor trains with under a rule: powers of the growth, and the numbers at the largest size of a sweep.

By theory alone, from shapes that stand for a kind, so that no model is built; action=explain has every tensor of the model.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.theory.growth import Growth

HEADINGS = ("init std", "lr", "λ", "ε", "output ×")
PLACES = {  # what a row is called: the kind of its tensors, and whether they lie in residual blocks
    "embeddings": ("embedding", False),
    "hidden matrices": ("hidden", True),
    "readout": ("readout", False),
    "biases, gains": ("vector", True),
    "biases, gains outside blocks": ("vector", False),
}
GROWS = {"embedding": (1, 0), "hidden": (1, 1), "readout": (0, 1), "vector": (1, 0)}  # whether fan_out and fan_in grow
Powers = Mapping[str, float]  # of m, the growth of the width, and d, that of the depth


@dataclass(frozen=True)
class Entry:
    """What multiplies the base's value: powers, none of them zero, and their product at the largest size."""

    powers: Powers
    value: float
    base: str = ""  # the value in the base model, where it is known


@dataclass(frozen=True)
class Formula:
    """The table of one rule: {kind of tensor: (the algorithm that trains it, an Entry for each of HEADINGS)}.

    An entry is None where the base has nothing to multiply, as a λ of 0. `forward`: powers in the forward pass, by part.
    """

    rule: str
    source: str
    rows: dict[str, tuple[str, list[Entry | None]]]
    forward: dict[str, Powers]


def formula(run: RunConfig) -> Formula:
    """Return the table of a run's rule and optimizer at its size, against the base of its sweep."""
    rows = {name: (run.optimizer.by_kind[kind].name, _entries(run, kind, inside)) for name, (kind, inside) in PLACES.items()}
    *_, inside, outside = rows
    if rows[inside] == rows[outside]:
        del rows[outside]
    symbols = {"m_width": "m", "m_depth": "d", "d_head": "head size"}
    forward: dict[str, Powers] = {
        part: {symbols[of]: x for of, x in powers.items()} for part, powers in run.rule.multipliers.items()
    }
    return Formula(run.rule.name, run.rule.source, rows, forward)


def _entries(run: RunConfig, kind: str, inside: bool) -> list[Entry | None]:
    algorithm = run.optimizer.by_kind[kind]

    def multipliers(width: float, depth: float) -> list[float]:
        out, fan_in = (64 * (width if grows else 1) for grows in GROWS[kind])
        shape = (out, 1) if kind in ("embedding", "vector") else (out, fan_in)
        base = (64, 1) if kind in ("embedding", "vector") else (64, 64)
        growth, forward = Growth(kind, shape, base, inside), run.rule.forward(width, depth, 1.0)  # pyright: ignore
        scaling = run.rule.scale(growth, algorithm.update, forward, depth)
        return [*asdict(scaling).values(), forward.of(growth) * (forward.branch if inside else 1.0)]

    m_width, m_depth = run.width / run.base_width, run.depth / run.base_depth
    largest = multipliers(m_width, m_depth)
    wider = multipliers(2 if m_width != 1 else 1, 1)  # powers of what does not grow in this sweep are left out
    deeper = multipliers(1, 2 if m_depth != 1 else 1)
    decay = run.optimizer.weight_decay[kind]
    eps = "" if algorithm.eps is None else f"{algorithm.eps:g}"
    base = [_base_std(run, kind), f"{algorithm.lr:g} lr" if algorithm.lr != 1 else "lr", f"{decay:g}", eps, ""]
    absent = {"init std": kind == "vector", "λ": not decay, "ε": algorithm.eps is None}
    entries: list[Entry | None] = []
    for heading, m, d, value, own in zip(HEADINGS, wider, deeper, largest, base, strict=True):
        fixed = heading == "λ" and run.train.weight_decay == "independent"  # no rule acts on it
        powers = {} if fixed else {s: round(math.log2(x), 6) for s, x in (("m", m), ("d", d)) if not math.isclose(x, 1)}
        entries.append(None if absent.get(heading) else Entry(powers, 1.0 if fixed else value, own))
    return entries


def _base_std(run: RunConfig, kind: str) -> str:
    std = run.model.init_stds(run.base_width).get(kind)
    return f"{std:g}" if std is not None else "as built" if not run.model.ours else "1/√fan_in" if kind != "vector" else ""
