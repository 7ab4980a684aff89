"""Rules with one exponent of `spectral` changed, LAMB's hidden lr and AdamW's λ: they differ in the numbers named here."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from support.runs import explain_rows

from spectral_mup.config.compose import load_config
from spectral_mup.config.optimizer_spec import rule_of
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import Sweep
from spectral_mup.scaling.forward_multipliers import multipliers
from spectral_mup.scaling.run_scaling import scale_on_meta

SIZES = ["sweep=lamb", "sweep.width=[64,256]", "sweep.depth=[1,2]", "sweep.base_depth=1", "model.bias=true"]
M = 4  # in width; 2 in depth
NUMBERS = ("init std ×", "lr ×", "λ ×", "ε ×", "multiplier")
HIDDEN, READOUT = "hidden", "readout"


def point(rule: str, width: int = 256, depth: int = 2, overrides=SIZES):
    return Sweep(load_config(list(overrides)), "text").run(Curve(rule, width, depth), -7, 0)


def numbers(run) -> dict[str, dict[str, float]]:
    return {row["tensor"]: {q: row[q] for q in ("kind", *NUMBERS)} for row in explain_rows(run)}


def differences(run, theirs: dict[str, dict[str, float]]) -> set[tuple]:
    """{(kind, quantity, here, there)} over all tensors of the model, `theirs` being numbers of another rule."""
    found = set()
    for tensor, row in numbers(run).items():
        for q in NUMBERS:
            if abs(row[q] - theirs[tensor][q]) > 1e-9:
                found.add((row["kind"], q, round(row[q], 9), round(theirs[tensor][q], 9)))
    return found


def test_hidden_0_differs_from_spectral_in_the_hidden_lr_and_the_decay_that_goes_with_it():
    ours, theirs = point("lamb_hidden_0"), point("spectral")
    assert differences(ours, numbers(theirs)) == {(HIDDEN, "lr ×", 1, M**-0.5), (HIDDEN, "λ ×", 1, M**0.5)}
    assert multipliers(scale_on_meta(ours, 256)) == multipliers(scale_on_meta(theirs, 256))
    products = [{t: row["lr ×"] * row["λ ×"] for t, row in numbers(s).items()} for s in (ours, theirs)]
    assert products[0] == pytest.approx(products[1])


def test_decay_0_differs_from_spectral_in_the_decay_of_hidden_matrices_alone():
    sizes = ["rule=[spectral,adamw_decay_0]", *SIZES[1:]]
    ours, theirs = point("adamw_decay_0", overrides=sizes), point("spectral", overrides=sizes)
    assert differences(ours, numbers(theirs)) == {(HIDDEN, "λ ×", 1, M)}
    assert multipliers(scale_on_meta(ours, 256)) == multipliers(scale_on_meta(theirs, 256))


def test_the_paper_differs_from_hidden_0_in_decay_and_in_where_the_readout_has_its_1_over_m():
    """At the base depth, for the paper has no rule for depth; with λ = 0 both forms of the readout train alike under LAMB."""
    ours, theirs = (point(rule, depth=1) for rule in ("paper_2602_20937", "lamb_hidden_0"))
    readout = {("init std ×", 1 / M, 1), ("ε ×", 1, 1 / M), ("multiplier", 1, 1 / M), ("λ ×", M, 1)}
    assert differences(ours, numbers(theirs)) == {(HIDDEN, "λ ×", M, 1), *((READOUT, *row) for row in readout)}


def test_every_number_of_hidden_0_is_held():
    """The control: a quarter more in any exponent of any of its rows is seen."""
    run = point("lamb_hidden_0")
    spectral, unseen = numbers(point("spectral")), []
    expected = differences(run, spectral)
    rows = [("init_std",)] + [(q, name) for q in ("lr", "weight_decay", "eps") for name in ("lamb", "lamb_vector")]
    kinds = {"embedding": "m_out", "hidden": "m_in", "readout": "m_in"}, {"vector": "m_out"}
    for path in rows:
        for kind, ratio in kinds[path[-1] == "lamb_vector"].items():
            for quantity in (ratio, "m_depth") if kind in ("hidden", "vector") else (ratio,):
                rule = copy.deepcopy(run.rule)
                row: Any = rule.scaling
                for key in path:
                    row = row[key]
                row[kind] = {**row.get(kind, {})}
                row[kind][quantity] = row[kind].get(quantity, 0) + 0.25
                if differences(replace(run, rule=rule), spectral) == expected:
                    unseen.append((*path, kind, quantity))
    assert unseen == []


def test_sweeps_share_what_is_the_same_and_nothing_else():
    ids = {}
    for name in ("lamb", "lamb_inside", "mini/width"):
        sweep = Sweep(load_config([f"sweep={name}", "optimizer=lamb"]), "text")
        ids[name] = {c: sweep.run(c, -7, 0).run_id for chain in sweep.chains({}) for c in chain.curves}
    shared = set(ids["lamb"].values()) & set(ids["mini/width"].values())
    assert shared == {run for curve, run in ids["lamb"].items() if curve.rule == "spectral"} and len(shared) == 3
    assert not set(ids["lamb_inside"].values()) & (set(ids["lamb"].values()) | set(ids["mini/width"].values()))


@pytest.mark.parametrize("name", ["lamb", "lamb_inside"])
def test_rules_agree_at_the_base_and_all_else_is_equal(name):
    config = load_config([f"sweep={name}"])
    base = point("spectral", 64, 2, [f"sweep={name}"])
    for rule in config.rule:
        assert point(rule, 64, 2, [f"sweep={name}"]) == base
        assert differences(replace(base, rule=rule_of(rule, config.rule[rule])), numbers(base)) == set()
    assert config.optimizer.algorithms["lamb"].args["decoupled"] is (name == "lamb")


def test_the_decay_inside_is_a_tenth_of_the_width():
    rows = explain_rows(point("paper_2602_20937", 256, 2, ["sweep=lamb_inside"]))
    expected = {"hidden": 0.1 * 256, "readout": 0.1 * 256, "embedding": 0.1, "vector": 0.0}
    assert {(row["kind"], round(row["λ"], 9)) for row in rows} == set(expected.items())
