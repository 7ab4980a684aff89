"""From measured directions to a size law: slopes with intervals, the named law nearest to them, or none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.analysis.stats import NAN, fit_line, rows, t_quantile
from spectral_mup.theory.growth import monomial
from spectral_mup.theory.size_laws import SIZE_LAWS, Exponents

Row = Mapping[str, Any]
ADAM, LAMB = "entries of order 1 (Adam, ADOPT, Sophia, Lion)", "norm of the weight (LAMB)"

TOLERANCE = 0.15  # of a slope against a law: first-block queries and embeddings of few tokens are off by as much
FIRST_STEP = 8  # before it momentum and running statistics are still warming up
FOLLOWS = 0.5  # exponent in the size of the weights above which a direction follows them; laws have 0 or 1
WIDE = 0.25  # half an interval that reaches from one law to the next, which differ by 1/2


@dataclass(frozen=True)
class ClassSlope:
    """Slope of log2 ‖U‖₂ on log2 width of the tensors of one growth, its 95 % interval, and at the first and last step."""

    label: str  # kind and growth (fan_out, fan_in): 'hidden (m, m)', 'readout (1, m)'
    kind: str
    slope: float
    lo: float
    hi: float
    first: float
    last: float
    gradient: float  # exponent of ‖U‖₂ in the size of the loss: 0 for scale-free directions, 1 for the raw gradient
    weight: float  # exponent of ‖U‖₂ in the size of the weights: 0, or 1 for the norm of the weight; NaN: not measured
    laws: Mapping[str, float] = field(repr=False)  # slope that each named law predicts

    @property
    def judged(self) -> bool:
        """False for hidden (1, m) of a direction that follows the gradient, see `size_laws`."""
        return abs(self.gradient) <= TOLERANCE or self.label != "hidden (1, m)"

    @property
    def follows_weight(self) -> bool | None:
        """Whether ‖U‖₂ follows the size of the weights; None where that was not measured, or the gradient's, which does too."""
        return None if math.isnan(self.weight) or abs(self.gradient) > TOLERANCE else self.weight > FOLLOWS

    def misfit(self, law: str) -> tuple[bool, float, str]:
        """Return whether a named law is wrong for this class, by how much at most, and where: growth, the loss or the init."""
        exponents = SIZE_LAWS[law]
        growth, loss = abs(self.slope - self.laws[law]), abs(self.gradient - exponents.get("a", 0.0))
        near = growth <= TOLERANCE or self.lo <= self.laws[law] <= self.hi
        off = [(not near, growth, self.label), (loss > TOLERANCE, loss, f"{self.label}, in the size of the loss")]
        if self.follows_weight is not None:
            wrong = self.follows_weight != bool(exponents.get("s"))
            off.append((wrong, abs(self.weight - exponents.get("s", 0.0)), f"{self.label}, in the size of the weights"))
        return max(off)


@dataclass(frozen=True)
class SizeLaw:
    """The size law of one algorithm. `law` is its name; None: no named one fits, use `exponents`."""

    algorithm: str
    classes: tuple[ClassSlope, ...]
    law: str | None
    also: tuple[str, ...]  # other laws that fit as well, and differ for some tensor of these kinds
    rejected: Mapping[str, tuple[str, float]]  # law: the class that speaks most against it, and by how much
    too_few: str  # why the law is undecided, and what would help; empty if it is not
    exponents: Mapping[str, Exponents]  # of the size law, by kind

    def predicted(self, c: ClassSlope) -> float:
        """Return the slope that the law predicts for a class; NaN where no named one fits."""
        return c.laws[self.law] if self.law else NAN


def size_laws(measured: Sequence[Row]) -> list[SizeLaw]:
    """Judge every algorithm of the rows that `directions.measure_directions` returns.

    A class's slope is that of least squares through its tensors' mean log2 ‖U‖₂ over the steps from 8 on, with an intercept a
    tensor; interval: t(0.975, N−2)·√(the fit's variance over (width, seed) + that of the slopes over tensors). A law fits if
    every class is within ±0.15 of it or has it in its interval, and the exponents in the loss and in the init are its own. For
    directions that follow the gradient, hidden (1, m) is not judged: what reaches a hidden layer of fixed width starts a factor
    √m below its limit and takes many steps to it.
    """
    return [_judge(str(name), part) for name, part in pd.DataFrame(list(measured)).groupby("algorithm", sort=False)]


def late(measured: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that slopes are fitted to: loss and init unscaled, steps from 8 on."""
    return rows(measured, (measured["loss_scale"] == 1) & (_init_scale(measured) == 1) & (measured["step"] >= FIRST_STEP))


def _init_scale(measured: pd.DataFrame) -> pd.Series:
    return pd.Series(measured["init_scale"] if "init_scale" in measured else 1.0, measured.index)


def _judge(algorithm: str, measured: pd.DataFrame) -> SizeLaw:
    ladder, scaled = late(measured), {"loss_scale": rows(measured, measured["loss_scale"] != 1)}
    scaled["init_scale"] = rows(measured, _init_scale(measured) != 1)
    classes = tuple(_class_slope(part, scaled) for _, part in ladder.groupby("label", sort=False))
    judged = [c for c in classes if c.judged]
    worst = {law: max(c.misfit(law) for c in judged) for law in SIZE_LAWS}
    fitting = sorted((x for x in SIZE_LAWS if not worst[x][0]), key=lambda x: sum(c.misfit(x)[1] ** 2 for c in judged))
    law = fitting[0] if fitting else None
    kinds = dict.fromkeys(c.kind for c in judged)
    also = tuple(x for x in fitting[1:] if any(_of_kind(x, kind) != _of_kind(fitting[0], kind) for kind in kinds))
    rejected = {x: (where, by) for x, (wrong, by, where) in worst.items() if wrong}
    exponents = {kind: SIZE_LAWS[law] if law else _exponents(judged, kind) for kind in kinds}
    return SizeLaw(algorithm, classes, law, also, rejected, _too_few(ladder, judged, law, also), exponents)


def _of_kind(law: str, kind: str) -> Mapping[str, float]:
    """Return the exponents of a law for a kind of tensor, the same for laws that say the same of every such tensor."""
    exponents = SIZE_LAWS[law]
    if kind not in ("embedding", "vector"):
        return exponents
    rest = ("a",) if kind == "vector" else ("a", "c", "s")
    same = sum(exponents.get(q, 0.0) for q in ("m_out", "m_max", "m_aspect"))  # of (n, 1), whose m_in is 1
    return {"m": same} | {q: exponents.get(q, 0.0) for q in rest}


def _class_slope(ladder: pd.DataFrame, scaled: Mapping[str, pd.DataFrame]) -> ClassSlope:
    """Fit the tensors of one growth; `scaled` are rows of the runs with a larger loss, and with larger weights."""
    label, kind = str(ladder["label"].iloc[0]), str(ladder["kind"].iloc[0])
    first, last = (_fit(rows(ladder, ladder["step"] == step))[0] for step in (ladder["step"].min(), ladder["step"].max()))
    predicted = {n: ladder.assign(direction=[monomial(law, x) for x in ladder["ratios"]]) for n, law in SIZE_LAWS.items()}
    laws = {name: float(_slopes(table).mean()) for name, table in predicted.items()}
    gradient, weight = (_exponent(ladder, scaled[name], name) for name in ("loss_scale", "init_scale"))
    return ClassSlope(label, kind, *_fit(ladder), first, last, gradient, weight, laws)


def _exponent(ladder: pd.DataFrame, scaled: pd.DataFrame, scale: str) -> float:
    """Return the exponent of ‖U‖₂ in what one run at the base width has `scale` times as large; NaN where it was not run."""
    if not len(scaled):
        return NAN
    both = scaled.merge(ladder, on=["width", "seed", "tensor", "step"], suffixes=("", "_plain"))
    return float((np.log2(both["direction"] / both["direction_plain"]) / np.log2(both[scale])).mean())


def _slopes(ladder: pd.DataFrame) -> np.ndarray:
    """Fit the slope of log2 ‖U‖₂ on log2 width of each tensor."""
    tensors = [np.log2(part[["width", "direction"]].to_numpy(float).T) for _, part in ladder.groupby("tensor", sort=False)]
    return np.array([fit_line(width, norm)[0] for width, norm in tensors])


def _fit(ladder: pd.DataFrame) -> tuple[float, float, float]:
    """Return the mean slope of the tensors, and its 95 % interval."""
    by_tensor = _slopes(ladder)
    slope = float(by_tensor.mean())
    table = ladder.assign(log2=np.log2(ladder["direction"]))
    table["log2"] -= table.groupby("tensor")["log2"].transform("mean")
    runs = pd.DataFrame(table.groupby(["width", "seed"], as_index=False)["log2"].mean())
    _, variance, dof = fit_line(np.log2(runs["width"]), runs["log2"])
    if dof < 1:
        return slope, float("-inf"), float("inf")
    variance += float(by_tensor.var(ddof=1)) / len(by_tensor) if len(by_tensor) > 1 else 0.0
    half = t_quantile(dof) * variance**0.5
    return slope, slope - half, slope + half


def _exponents(judged: Sequence[ClassSlope], kind: str) -> Exponents:
    """Write a measured law of one kind as exponents of m_out and m_in, to two digits."""
    of_kind = [c for c in judged if c.kind == kind]
    follows = bool(of_kind) and all(c.follows_weight for c in of_kind)
    slopes = {c.label: c.slope - (c.laws[LAMB] - c.laws[ADAM] if follows else 0.0) for c in of_kind}  # without that of s
    both, out, fan_in = (slopes.get(f"{kind} ({grows})") for grows in ("m, m", "m, 1", "1, m"))
    if both is not None:
        lean = 0.0 if out is None or fan_in is None else out - fan_in
        out, fan_in = (both + lean) / 2, (both - lean) / 2
    gradient = float(np.mean([c.gradient for c in of_kind]))
    exponents = {"m_out": out, "m_in": fan_in, "a": gradient if abs(gradient) > TOLERANCE else None}
    exponents["s"] = 1.0 if follows else None
    return {q: round(x, 2) for q, x in exponents.items() if x is not None}


def _too_few(ladder: pd.DataFrame, judged: Sequence[ClassSlope], law: str | None, also: Sequence[str]) -> str:
    """Say why the law is undecided; empty if it is not."""
    if law and any(all(abs(c.laws[x] - c.laws[law]) < 0.02 for c in judged) for x in also):
        return "several laws say the same of these tensors: a model whose hidden matrices grow in one dim too would decide"
    vague = [c for c in judged if not (c.hi - c.lo) / 2 <= WIDE]
    if not vague and not also:
        return ""
    worst, reason = max(vague or judged, key=lambda c: c.hi - c.lo), "several laws fit"
    if vague:
        reason = f"{worst.label} is known to ±{(worst.hi - worst.lo) / 2:.2f} only; laws differ by 0.5"
    counts = {"width": 4, "seed": 3, "step": 5}  # that are enough
    few = [f"more {what}s (now {n})" for what, enough in counts.items() if (n := len(set(ladder[what]))) < enough]
    return f"{reason}: {' or '.join(few or ['a longer ladder of widths'])} would decide"


def law_table(laws: Sequence[SizeLaw]) -> pd.DataFrame:
    """Make one row per class: what was measured and what the law predicts."""
    table = [
        (law.algorithm, c.label, c.slope, c.lo, c.hi, c.first, c.last, law.law or "", law.predicted(c), c.judged, c.gradient,
         c.weight)
        for law in laws
        for c in law.classes
    ]  # fmt: skip
    names = "algorithm tensors slope lo hi first last law law_slope judged loss_exponent init_exponent"
    return pd.DataFrame(table, columns=names.split())


def first_log2_lr(measured: Sequence[Row]) -> float:
    """Return log2 of the largest lr that makes no update of a hidden matrix in the base model larger than wanted."""
    base = min(r["width"] for r in measured)
    mine = [r for r in measured if r["width"] == base and r["kind"] == "hidden"]
    lrs = [r["lr"] for r in mine if r["loss_scale"] == 1 and r.get("init_scale", 1) == 1]
    return float(np.log2(min(lrs)))
