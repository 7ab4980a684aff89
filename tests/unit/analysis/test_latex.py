"""Laws of summary.tex: a tabular that LaTeX can compile, and says what the verdicts say."""

import re

import numpy as np
import pytest
from support.summary_data import grid, of_slope, sweep

from spectral_mup.analysis.latex import SPECIAL, escape, summary_tex

ESCAPED = re.compile(r"\\[&%$#_{}]")


def body(tex):
    """The rows of the table, as lists of cells; the first is the head."""
    return [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in tex.splitlines() if line.endswith(r"\\")]


def assert_compiles(tex):
    """What LaTeX would stumble on: braces, math, columns, environments, characters that are commands."""
    lines = [line for line in tex.splitlines() if not line.startswith("%")]
    assert lines[0].startswith(r"\begin{tabular}{") and lines[-1] == r"\end{tabular}"
    assert [line for line in lines if "rule" in line and line[:1] == "\\"][0] == r"\toprule" and lines[-2] == r"\bottomrule"
    columns = lines[0].removeprefix(r"\begin{tabular}{").removesuffix("}")
    assert set(columns) <= set("lcr")
    for row in body(tex):
        assert len(row) == len(columns), row
        for cell in row:
            bare = ESCAPED.sub("", cell)
            assert bare.count("$") % 2 == 0 and bare.count("{") == bare.count("}"), cell
            text = "".join(bare.split("$")[::2])  # outside of math
            assert not set("_^~#&<>%") & set(text), cell
            assert "%" not in bare
            assert set(re.findall(r"\\[a-zA-Z]+", bare)) <= {r"\geq", r"\dagger", *(x.split("{")[0] for x in SPECIAL.values())}
    assert tex.isascii() and tex.endswith("\n")


def test_a_row_a_sweep_and_rule():
    tex = summary_tex([sweep("adamw"), sweep("lamb", "llama2", "depth", ("lamb_hidden_0",))])
    assert_compiles(tex)
    head, *rows = [[cell.strip() for cell in row] for row in body(tex)]
    assert head == ["optimizer", "model", "over", "rule", "verdict", r"slope [95\,\%]", "regret", "seeds", "runs"]
    assert [row[:5] for row in rows] == [
        ["AdamW", "NanoGPT", "width 64--256", "spectral", "transfers"],
        ["AdamW", "NanoGPT", "width 64--256", "standard", "drifts"],
        ["LAMB", "Llama2", "depth 2--8", r"lamb\_hidden\_0", "transfers"],
    ]
    assert tex.count(r"\midrule") == 2
    v = sweep("adamw").verdicts[1]
    assert rows[1][5] == rf"${v.slope:+.2f}\ [{v.slope_lo:+.2f}, {v.slope_hi:+.2f}]$" and rows[1][6].endswith(r"\,\%$")
    assert rows[0][7] == "2" and int(rows[0][8]) == sweep("adamw").verdicts[0].counts["done"]


@pytest.mark.parametrize(
    ("fields", "slope", "regret"),
    [
        (of_slope(-0.30, 0.22), r"$-0.04\ [-0.30, +0.22]$", None),
        (of_slope(-np.inf, -0.4), "$< -0.40$", None),
        (of_slope(0.3, np.inf), "$> +0.30$", None),
        (of_slope(-np.inf, np.inf), "--", None),
        (of_slope(-0.1, 0.1, slope=-0.001), r"$+0.00\ [-0.10, +0.10]$", None),
        ({"regret": 0.0123, "regret_at_least": True}, None, r"$\geq 1.23\,\%$"),
        ({"regret": np.nan}, None, "--"),
    ],
)
def test_numbers_are_typeset(fields, slope, regret):
    tex = summary_tex([sweep(rules=("spectral",), **fields)])
    assert_compiles(tex)
    row = [cell.strip() for cell in body(tex)[1]]
    assert row[5] == (slope or row[5]) and row[6] == (regret or row[6])


def test_every_special_character_is_escaped():
    name = r"a&b%c$d#e_f{g}h~i^j\k<l>m"
    tex = summary_tex([sweep(name, name, rules=(name,))])
    assert_compiles(tex)
    assert (
        escape(name)
        == r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}l\textgreater{}m"
    )
    with pytest.raises(AssertionError):
        assert_compiles(tex.replace(escape(name), name, 1))


def test_a_level_that_is_not_the_usual_one_is_marked():
    tex = summary_tex([sweep("adamw"), sweep("muon", rules=("spectral",), alpha=0.016)])
    assert_compiles(tex)
    assert r"slope [95\,\%; $^{\dagger}$: 98.4\,\%]" in tex and tex.count(r"]$$^{\dagger}$") == 1


def test_a_grid_of_sweeps():
    tex = summary_tex(grid())
    assert_compiles(tex)
    assert len(body(tex)) == 1 + 36 and tex.count(r"\midrule") == 4
