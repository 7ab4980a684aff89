"""From the growth of a tensor to its init std, learning rate, weight decay and ε.

The spectral condition (arXiv 2310.17813) asks that ‖W‖₂ and ‖ΔW‖₂ of every matrix scale as √(fan_out/fan_in).
With m_out, m_in the growth of the two dims, c the forward multiplier of the tensor, a that of its residual branch,
d = 1/m_depth inside a branch and 1 outside, and `update_norm` the growth of the spectral norm of the optimizer's direction:

    T       = √(m_out/m_in)
    s       = m_in^-1/2 · min(1, √(m_out/m_in)) / c          init std
    lr      = T · d / (c · a · update_norm)                          the one formula
    λ       = 1 / lr                                          coupled decay at a fixed timescale 1/(lr·λ)
    ε       = the optimizer's own law, for Adam c · a / m_out

All are ratios against the base model, so at the base model each is exactly 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spectral_mup.theory.growth import KINDS, Growth, monomial

Exponents = Mapping[str, float]


class RuleError(ValueError):
    """A rule that is malformed or does not cover an optimizer; the message says which and what it covers."""


@dataclass(frozen=True)
class Scaling:
    """Multipliers of one tensor against the base model (dimensionless, 1 at the base)."""

    init_std: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True)
class Multipliers:
    """The numbers in a forward pass.

    Attributes:
        attention: Scale of q·k before the softmax: 1/√d_head at the base; in a ModelScaling relative to that, 1 at the base.
        branch: Of every residual branch's output, 1 at the base.
        logits: Of the readout's output, in training and in inference, 1 at the base.
        embedding: Of the summed embeddings, 1 at the base.
    """

    attention: float
    branch: float = 1.0
    logits: float = 1.0
    embedding: float = 1.0

    def of(self, growth: Growth) -> float:
        """Return what multiplies the output of this tensor's own layer (the branch it may lie in apart)."""
        return {"readout": self.logits, "embedding": self.embedding}.get(growth.kind, 1.0)


@dataclass(frozen=True)
class UpdateScaling:
    """What a rule must know of an optimizer: how the spectral norm of its direction grows, and how its ε does.

    Both are exponents of m_out, m_in, m_max, m_aspect, c, a and s (see Growth.ratios and the formula above):
    {m_out: 1/2, m_in: 1/2} for entrywise normalised directions, {} for orthogonalised ones.
    """

    name: str
    update_norm: Exponents
    eps: Exponents = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """Forward multipliers as exponents, and scalings: `derived` by the formula, or a published table.

    Attributes:
        multipliers: {attention: {d_head: -1}, branch: {m_depth: -1}, logits: {m_width: -1}}.
        scaling: "derived" with the size laws that the optimizers declare; or {update_norm: {optimizer: {kind: exponents}}},
            derived with these in their place; or a table {init_std: {kind: exponents}, lr: {optimizer: {kind: exponents}},
            weight_decay: …, eps: …}, exponents of m_out, m_in and, in residual blocks, m_depth; `block_KIND` goes before KIND
            in a residual block; the entry `any` stands for every other optimizer; what is not listed is × 1.
        source: Where it was published.
    """

    name: str
    multipliers: Mapping[str, Exponents]
    scaling: str | Mapping[str, Any]
    source: str = ""

    def __post_init__(self) -> None:
        for name in set(self.multipliers) - {"attention", "branch", "logits", "embedding"}:
            raise RuleError(f"rule {self.name}: unknown multiplier '{name}'")
        if isinstance(self.scaling, str) and self.scaling != "derived":
            raise RuleError(f"rule {self.name}: scaling is 'derived' or a table, not '{self.scaling}'")
        for quantity in set(self.table) - ({"update_norm"} if self.derived else {"init_std", "lr", "weight_decay", "eps"}):
            raise RuleError(f"rule {self.name}: unknown quantity '{quantity}' in its table")
        by_optimizer = [row for quantity, rows in self.table.items() if quantity != "init_std" for row in rows.values()]
        for kind in (kind for row in (self.table.get("init_std", {}), *by_optimizer) for kind in row):
            if kind.removeprefix("block_") not in (*KINDS, "fixed"):
                raise RuleError(f"rule {self.name}: unknown kind '{kind}'; known: {', '.join(KINDS)}")

    @property
    def table(self) -> Mapping[str, Any]:
        """Its scaling as a table: empty if that is the word `derived`."""
        return {} if isinstance(self.scaling, str) else self.scaling

    @property
    def derived(self) -> bool:
        """Whether the formula gives the scalings, and no table."""
        return isinstance(self.scaling, str) or "update_norm" in self.scaling

    @property
    def for_tied(self) -> bool:
        """Whether a readout tied to the embedding can follow it: by a multiplier on the logits, never by its init and lr."""
        own = self.derived or any(row.get("readout") for row in self.table.get("lr", {}).values())
        return bool(self.multipliers.get("logits")) or not own

    def forward(self, m_width: float, m_depth: float, d_head: float) -> Multipliers:
        """Return a model's multipliers relative to the base, given the ratios of its width, depth and head size to the base."""
        ratios = {"m_width": m_width, "m_depth": m_depth, "d_head": d_head}
        return Multipliers(**{"attention": 1.0} | {part: monomial(powers, ratios) for part, powers in self.multipliers.items()})

    def scale(self, growth: Growth, law: UpdateScaling, forward: Multipliers, m_depth: float = 1.0) -> Scaling:
        """Return the scaling of one tensor under the optimizer that `law` describes."""
        if self.derived:
            return spectral_scaling(growth, self.law(growth.trained_as, law), forward, m_depth)
        ratios = growth.ratios() | {"m_depth": m_depth if growth.in_block else 1.0}
        kinds = (f"block_{growth.kind}", growth.kind) if growth.in_block else (growth.kind,)

        def power(row: Mapping[str, Exponents]) -> float:
            return monomial(next((row[kind] for kind in kinds if kind in row), {}), ratios)

        by_optimizer = {quantity: power(self.row(quantity, law.name)) for quantity in ("lr", "weight_decay", "eps")}
        return Scaling(power(self.table.get("init_std", {})), **by_optimizer)

    def law(self, kind: str, law: UpdateScaling) -> UpdateScaling:
        """Return the law with the size that this rule says it has. Raises RuleError if the rule says none."""
        if "update_norm" not in self.table:
            return law
        sizes = self.table["update_norm"]
        if kind not in sizes.get(law.name, {}):
            listed = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in sizes.items())
            raise RuleError(f"rule {self.name} has no size law of optimizer {law.name} for {kind} tensors; it lists {listed}")
        return replace(law, update_norm=sizes[law.name][kind])

    def row(self, quantity: str, optimizer: str) -> Mapping[str, Exponents]:
        """Return {kind: exponents} of lr, weight_decay or eps. Raises RuleError if the table does not cover the optimizer."""
        rows = self.table.get(quantity, {"any": {}})
        row = rows.get(optimizer, rows.get("any"))
        if row is None:
            raise RuleError(f"rule {self.name} has no {quantity} for optimizer {optimizer}; it lists {', '.join(sorted(rows))}")
        return row


def spectral_scaling(growth: Growth, law: UpdateScaling, forward: Multipliers, m_depth: float = 1.0) -> Scaling:
    """Apply the one formula (module docstring) to one tensor."""
    c = forward.of(growth)
    a, d = (forward.branch, 1.0 / m_depth) if growth.in_block else (1.0, 1.0)
    s = _init_std(growth) / c
    ratios = growth.ratios() | {"c": c, "a": a, "s": s}
    target = (growth.m_out / growth.m_in) ** 0.5
    lr = target * d / (c * a * monomial(law.update_norm, ratios))
    return Scaling(init_std=s, lr=lr, weight_decay=1.0 / lr, eps=monomial(law.eps, ratios))


def _init_std(growth: Growth) -> float:
    """Return m_in^-1/2 · min(1, √(m_out/m_in)), the min read by class: 1 where fan_in does not grow, √(1/m_in) for a readout.

    A logit counts by itself, not by its RMS over the vocabulary (arXiv 2203.03466). But inside a residual block a fan_out
    that does not grow (a fixed FFN) is compared in absolute size, min(1, √(fan_out/fan_in)) against its value in the base:
    an up-projection to a fixed, larger FFN keeps m_in^-1/2 as long as fan_in < fan_out (arXiv 2310.17813).
    """
    if growth.kind == "readout":
        return 1.0 / growth.m_in
    if growth.kind != "hidden" or growth.m_in == 1:
        return growth.m_in**-0.5
    if growth.m_out != 1:
        return growth.m_in**-0.5 * min(1.0, (growth.m_out / growth.m_in) ** 0.5)
    (out, fan_in), (base_out, base_in) = growth.shape, growth.base_shape
    return growth.m_in**-0.5 * min(1.0, (out / fan_in) ** 0.5) / min(1.0, (base_out / base_in) ** 0.5)
