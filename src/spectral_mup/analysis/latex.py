"""The summary as a table for a paper: a tabular of booktabs, without a preamble."""

import math
from collections.abc import Sequence

from spectral_mup.analysis.names import PRINTED
from spectral_mup.analysis.results import Results, by_family_and_axis, printed_labels
from spectral_mup.analysis.verdict import Verdict, format_slope, level_marks, percent

HEAD = ("optimizer", "model", "over", "rule", "verdict")
SPECIAL = {c: rf"\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}"}


def summary_tex(sweeps: Sequence[Results]) -> str:
    """Write one row per sweep and rule: optimizer, model, axis with its sizes, rule, verdict, slope, regret (%), seeds, runs.

    A rule of booktabs parts the (family, axis). A level of intervals that is not the usual one has a dagger.
    """
    levels = level_marks([v for r in sweeps for v in r.verdicts])
    interval = "; ".join(f"{_dagger(mark)}{': ' * bool(mark)}{_percent(percent(alpha))}" for alpha, mark in levels.items())
    lines = [r"% needs \usepackage{booktabs}; written by analyze.py --summary", rf"\begin{{tabular}}{{{'l' * len(HEAD)}lrrr}}"]
    lines += [r"\toprule", _row([*HEAD, f"slope [{interval}]", "regret", "seeds", "runs"])]
    for (family, axis), group in by_family_and_axis(sweeps).items():
        lines.append(r"\midrule")
        for r, label in zip(group, printed_labels(group), strict=True):
            for v in r.verdicts:
                over = f"{axis.replace('_', ' ')} {_span(min(v.optima), max(v.optima))}"
                names = [escape(name) for name in (label, PRINTED.get(family, family), over, v.rule, v.verdict)]
                slope = _slope(v) + _dagger(levels[v.alpha])
                lines.append(_row([*names, slope, _regret(v), _span(*r.seeds(v)), f"{len(r.done(v.rule))}"]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Escape text so that no character in it is a command of LaTeX."""
    return "".join(SPECIAL.get(c, c) for c in text)


def _row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _span(lo: int, hi: int) -> str:
    return f"{lo}--{hi}" if lo < hi else f"{lo}"


def _percent(text: str) -> str:
    return text.replace(" %", r"\,\%")


def _dagger(mark: str) -> str:
    return "$^{" + len(mark) * r"\dagger" + "}$" if mark else ""


def _slope(v: Verdict) -> str:
    written = format_slope(v.slope, v.slope_lo, v.slope_hi, lambda x: f"{round(x, 2) + 0.0:+.2f}")
    return "$" + written.replace(" [", r"\ [") + "$" if written else "--"


def _regret(v: Verdict) -> str:
    bound = r"\geq " if v.regret_at_least else ""
    return rf"${bound}{100 * v.regret:.2f}\,\%$" if math.isfinite(v.regret) else "--"
