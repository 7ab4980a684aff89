"""A verdict as a card: the word, what it means here, its numbers, and what would decide it where it is undecided."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spectral_mup.analysis.verdict import Verdict, format_slope, percent
from spectral_mup.config.tune import LR

MINUS = "\N{MINUS SIGN}"
LONGEST = 2.0  # octaves per doubling: the scale of slopes ends here at the latest


def number(x: float, form: str = "{:.2f}") -> str:
    """Return a number with a true minus sign; a dash where there is none."""
    return form.format(x + 0.0).replace("-", MINUS) if math.isfinite(x) else "–"


def true_minus(text: str) -> str:
    """Return a text whose negative numbers have a true minus sign."""
    return re.sub(r"(?<!\w)-(?=\d)", MINUS, text)


def slope_text(v: Verdict) -> str:
    """Return the slope with its interval, or the bound that is known."""
    return format_slope(v.slope, v.slope_lo, v.slope_hi, lambda x: number(round(x, 2), "{:+.2f}")) or "none"


def regret_text(v: Verdict) -> str:
    """Return the regret in percent of the loss."""
    return f"{'at least ' * v.regret_at_least}{100 * v.regret:.2f}\N{NO-BREAK SPACE}%" if math.isfinite(v.regret) else "unknown"


def cards(verdicts: Sequence[Verdict], called: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return what the template shows of each verdict; their slopes are drawn on one scale."""
    ends = [abs(x) for v in verdicts for x in (v.slope_lo, v.slope_hi) if math.isfinite(x)]
    scale = min(LONGEST, max(1.15 * max(ends, default=0.0), 2 * verdicts[0].tolerance))
    return [
        {
            "rule": called(v.rule),
            "verdict": v.verdict,
            "control": v.is_control,
            "sentence": sentence(v),
            "decide": true_minus(v.reason),
            "slope": slope_text(v),
            "level": percent(v.alpha),
            "bar": slope_bar(v, scale),
            "regret": regret_text(v),
            "limit": f"{100 * v.regret_limit:g}\N{NO-BREAK SPACE}%",
            "tolerance": f"±{v.tolerance:g}",
            "features": features_text(v),
            "runs": ", ".join(f"{n} {status}" for status, n in v.counts.items() if n),
            "basis": v.basis,
            "larger": v.larger_is_better,
        }
        for v in verdicts
    ]


def sentence(v: Verdict) -> str:
    """Return the verdict in words, of these sizes."""
    axis, tuned = v.axis.replace("_", " "), "learning rate" if v.tuned == LR else v.tuned
    far = max(v.optima) if v.base != max(v.optima) else min(v.optima)
    kept = f"Keeping the {tuned} of {axis} {v.base} costs {regret_text(v)} of the loss at {axis} {far}"
    if v.verdict == "transfers":
        return f"The {tuned} that is best at {axis} {v.base} stays the best up to {axis} {far}. {kept}."
    if v.verdict == "drifts":
        end = v.slope if math.isfinite(v.slope) else v.slope_lo if math.isfinite(v.slope_lo) else v.slope_hi
        way = "falls" if end < 0 else "rises"
        if not (math.isfinite(v.slope_lo) and math.isfinite(v.slope_hi)):
            return f"The best {tuned} {way} with the {axis}, beyond the values that were tested. {kept}."
        times = 2.0 ** (v.slope * math.log2(far / v.base))
        return f"The best {tuned} {way}: at {axis} {far} it is {times:.2g} times that of {axis} {v.base}. {kept}."
    if v.verdict == "costs":
        return f"{kept}, surely more than the limit; that the best one drifts is not shown."
    return f"The runs do not yet say whether the {tuned} of {axis} {v.base} stays the best at {axis} {far}."


def features_text(v: Verdict) -> dict[str, str] | None:
    """Whether features keep their size, in a word, and the rest; None where no features are judged."""
    if v.features is None:
        return None
    word = {True: "passed", False: "failed", None: "undecided"}[v.features.passed]
    rest = v.features.summary.removeprefix(word).lstrip(": ")
    at = (
        f"at step {v.features.step}, log2 {v.tuned} {number(v.features.log2_lr, '{:g}')}"
        if v.features.log2_lr is not None
        else ""
    )
    return {"word": word, "rest": true_minus(rest.removeprefix("not decided: ")), "at": at}


def slope_bar(v: Verdict, scale: float) -> dict[str, Any]:
    """Positions from 0 to 100 on an axis from -scale to scale: the tolerance, the interval, and the slope."""

    def at(x: float) -> float:
        return round(50 + 50 * float(np.clip(x / scale, -1, 1)), 2)

    known = math.isfinite(v.slope_lo) or math.isfinite(v.slope_hi)
    ticks = sorted({-v.tolerance, 0.0, v.tolerance, *(x for x in (-1.0, 1.0) if scale > 1.05)})
    return {
        "band": (at(-v.tolerance), at(v.tolerance)),
        "interval": (at(v.slope_lo), at(v.slope_hi)) if known else None,
        "slope": at(v.slope) if math.isfinite(v.slope) and known else None,
        "ticks": [(at(x), number(x, "{:g}")) for x in ticks],
    }
