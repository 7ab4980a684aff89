"""The formula against every published table in conf/rule: same init, lr, λ and ε, but for the differences listed there."""

import copy
import math
from dataclasses import asdict, replace
from typing import Any, cast

import pytest

from spectral_mup.config.compose import load_config
from spectral_mup.config.optimizer_spec import rule_of
from spectral_mup.config.presets import options
from spectral_mup.theory.growth import Growth
from spectral_mup.theory.rules import Rule, UpdateScaling

NOT_TABLES = {"spectral", "spectral_readout", "spectral_depth_half", "spectral_depth_0", "standard", "standard_fixed"}
OF_ONE_OPTIMIZER = {"lamb_hidden_0", "adamw_decay_0"}  # no published tables: test_changed_exponents.py
NAMES = [n for n in options("rule") if n not in OF_ONE_OPTIMIZER and not n.startswith("derived/")]
CONFIGS = load_config([f"rule=[{','.join(NAMES)}]"]).rule
RULES = {name: rule_of(name, rule) for name, rule in CONFIGS.items()}
DIFFERENCES = {name: rule.differences for name, rule in CONFIGS.items() if rule.differences is not None}

# Where a table has the readout's 1/m (A: in its init, B: in the logits), and α of its branch multiplier m_depth^-α
PRINTED_FORM = {
    "tensor_programs_v": ("A", 0), "tensor_programs_v_table8": ("B", 0), "paper_2602_20937": ("A", 0), "completep": ("B", 1),
    "zheng": ("B", 1), "zheng_k1": ("B", 0.5), "qiu": ("A", 1),
}  # fmt: skip

ENTRYWISE, RMS = {"m_out": 0.5, "m_in": 0.5}, {"m_out": 0.5, "m_in": -0.5}
GRADIENT = {"c": 1, "a": 1, "m_out": -1}  # an entry of the gradient
NORM = {"c": 1, "a": 1, "m_in": 0.5, "m_out": -0.5}  # its spectral norm
STATISTICS = {"c": 2, "a": 2, "m_in": 1, "m_out": -1}  # the square of that
LAWS = {
    law.name: law
    for law in (
        UpdateScaling("adamw", ENTRYWISE, GRADIENT),
        UpdateScaling("adopt", ENTRYWISE, GRADIENT),
        UpdateScaling("sophia", ENTRYWISE, GRADIENT),
        UpdateScaling("lion", ENTRYWISE),
        UpdateScaling("lamb", {"s": 1, **ENTRYWISE}, GRADIENT),
        UpdateScaling("lamb_vector", ENTRYWISE, GRADIENT),  # without its trust ratio
        UpdateScaling("sgd", NORM),
        UpdateScaling("muon", {}, NORM),
        UpdateScaling("soap", {}, NORM),
        UpdateScaling("shampoo", {}),  # its ε relative to the largest eigenvalue
        UpdateScaling("shampoo_absolute", {}, STATISTICS),
        UpdateScaling("shampoo_half", {x: -e for x, e in NORM.items()}, STATISTICS),  # exponents −1/2 a side
        UpdateScaling("soap_blocked", ENTRYWISE, GRADIENT),  # as many blocks as m_out·m_in
        UpdateScaling("shampoo_blocked", ENTRYWISE, {"c": 2, "a": 2, "m_out": -2}),
        UpdateScaling("muon_out_in", RMS, NORM),  # Muon × √(fan_out/fan_in)
        UpdateScaling("muon_max", {"m_max": 0.5}, NORM),  # Muon × 0.2·√max(fan_out, fan_in)
        UpdateScaling("sso", RMS, NORM),
        UpdateScaling("adamuon", ENTRYWISE, {"m_out": -0.5, "m_in": -0.5}),  # ε beside an entry of an orthogonal matrix
    )
}
ACTS_ON_VECTORS = {"adamw", "adopt", "sophia", "lion", "lamb", "lamb_vector", "sgd", "adamuon"}

# A tensor of each kind, 4 times as wide as its base. `up` and `down` are an MLP of fixed hidden size: one dim grows.
TENSORS = {
    "embedding": Growth("embedding", (256, 1), (64, 1)),
    "hidden": Growth("hidden", (256, 256), (64, 64), in_block=True),
    "up": Growth("hidden", (4096, 256), (4096, 64), in_block=True),
    "down": Growth("hidden", (256, 4096), (64, 4096), in_block=True),
    "bias": Growth("vector", (256, 1), (64, 1), in_block=True),
    "norm": Growth("vector", (256, 1), (64, 1)),
    "readout": Growth("readout", (16, 256), (16, 64)),
    "vocabulary": Growth("readout", (1024, 256), (1024, 64)),  # a readout larger than the width
}
SPEAKS_OF_FANS = {"tensor_programs_v", "tensor_programs_v_table8", "paper_2602_20937", "qiu"}  # the others: of width alone
AXES = {"width": (4, 1), "depth": (1, 8)}  # m_width, m_depth


def exponents(rule: Rule, optimizer: str, tensor: str, axis: str) -> dict[str, float]:
    """{quantity: exponent of the ratio that grows}; `init_std` depends on no optimizer."""
    m_width, m_depth = AXES[axis]
    growth = TENSORS[tensor]
    if m_width == 1:
        growth = replace(growth, shape=growth.base_shape)
    scaling = rule.scale(growth, LAWS[optimizer], rule.forward(m_width, m_depth, 1), m_depth)
    return {q: round(math.log(x, max(m_width, m_depth)), 9) + 0.0 for q, x in asdict(scaling).items()}


def form_of(rule: Rule) -> tuple[str, float]:
    return "B" if "logits" in rule.multipliers else "A", -rule.multipliers.get("branch", {}).get("m_depth", 0)


def formula(name: str) -> Rule:
    """`spectral` in the form that a table uses."""
    form, alpha = form_of(RULES[name])
    derived = RULES["spectral" if form == "B" else "spectral_readout"]
    return replace(derived, multipliers={**derived.multipliers, "branch": {"m_depth": -alpha}})


def optimizers(rule: Rule) -> list[str]:
    assert not isinstance(rule.scaling, str)
    return [name for name in rule.scaling["lr"] if name != "any"]


Difference = dict[tuple[str, str, str, str], tuple[float, float]]
"""{(quantity, axis, optimizer, tensor): (exponent in the table, exponent of the formula)}"""


def differences(rule: Rule, only: str | None = None) -> Difference:
    """Where the table and the formula disagree, for one optimizer or all that the table has."""
    ours, found = formula(rule.name), {}
    for optimizer in [only] if only else optimizers(rule):
        for tensor, growth in TENSORS.items():
            if tensor in ("up", "down") and rule.name not in SPEAKS_OF_FANS:
                continue
            if growth.kind == "vector" and optimizer not in ACTS_ON_VECTORS:
                continue
            for axis in AXES:
                theirs, mine = (exponents(r, optimizer, tensor, axis) for r in (rule, ours))
                for q in theirs:
                    if theirs[q] != pytest.approx(mine[q]):
                        found[q, axis, "-" if q == "init_std" else optimizer, tensor] = (theirs[q], mine[q])
    return found


def listed(name: str) -> Difference:
    rows = [
        ((q, axis, optimizer, tensor), (theirs, ours))
        for q, axis, names, tensors, theirs, ours, _ in DIFFERENCES[name]
        for optimizer in names.split()
        for tensor in tensors.split()
    ]
    assert len(dict(rows)) == len(rows), "listed twice"
    return dict(rows)


def test_every_table_is_held_against_the_formula():
    assert set(DIFFERENCES) == set(RULES) - NOT_TABLES, "a published rule lists its differences in its YAML, [] for none"
    for name in DIFFERENCES:
        for optimizer in optimizers(RULES[name]):
            for quantity in ("lr", "weight_decay", "eps"):
                RULES[name].row(quantity, optimizer)  # an error if the table forgets it
            assert optimizer in LAWS, f"{name} lists {optimizer}, whose size law this test does not know"


def test_forms_are_the_printed_ones():
    assert {name: form_of(RULES[name]) for name in PRINTED_FORM} == PRINTED_FORM


def test_laws_are_those_of_the_optimizers():
    """But for SOAP: the tables have its limit for gradients of one fixed direction, the YAML has what was measured."""
    for optimizer in set(options("optimizer")) - {"other"}:
        for name, algorithm in load_config([f"optimizer={optimizer}"]).optimizer.algorithms.items():
            if name in LAWS:
                size = ENTRYWISE if name == "soap" else LAWS[name].update_norm
                assert (algorithm.update_norm, algorithm.eps_law) == (size, LAWS[name].eps), (optimizer, name)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_forward_multipliers_are_those_of_the_formula(name):
    for sizes in ((4, 1, 1), (1, 8, 1), (4, 8, 4)):
        theirs, ours = (rule.forward(*sizes) for rule in (RULES[name], formula(name)))
        assert asdict(theirs) == pytest.approx(asdict(ours))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_table_equals_formula_but_for_the_listed_differences(name):
    found, known = differences(RULES[name]), listed(name)
    assert {k: v for k, v in found.items() if known.get(k) != v} == {}, "not listed, or listed with other exponents"
    assert set(known) - set(found) == set(), "listed, but gone"


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_exponent_is_held(name):
    """The control: a quarter more in any exponent of any row, of width or of depth, is seen."""
    rule, unseen = RULES[name], []
    for optimizer in optimizers(rule):
        known = differences(rule, optimizer)
        for quantity in ("init_std", "lr", "weight_decay", "eps"):
            for kind, ratio in (("embedding", "m_out"), ("hidden", "m_in"), ("hidden", "m_depth"), ("readout", "m_in"),
                                ("vector", "m_out"), ("vector", "m_depth")):  # fmt: skip
                if kind == "vector" and optimizer not in ACTS_ON_VECTORS:
                    continue
                scaling: Any = copy.deepcopy(dict(cast(Any, rule.scaling)))
                row = dict(scaling["init_std"] if quantity == "init_std" else rule.row(quantity, optimizer))
                kind = f"block_{kind}" if f"block_{kind}" in row else kind
                exponent = row.get(kind, {})
                row[kind] = {**exponent, ratio: exponent.get(ratio, 0) + 0.25}
                if quantity == "init_std":
                    scaling["init_std"] = row
                else:
                    scaling.setdefault(quantity, {})[optimizer] = row
                if differences(replace(rule, scaling=scaling), optimizer) == known:
                    unseen.append((optimizer, quantity, kind, ratio))
    assert unseen == []


def test_a_row_of_blocks_goes_before_the_row_of_its_kind():
    rule = Rule("mine", {}, {"lr": {"any": {"vector": {"m_out": 1}, "block_vector": {"m_out": 2}}}})
    assert exponents(rule, "adamw", "bias", "width")["lr"] == 2
    assert exponents(rule, "adamw", "norm", "width")["lr"] == 1
    with pytest.raises(ValueError, match="unknown kind 'block_matrix'"):
        Rule("mine", {}, {"lr": {"any": {"block_matrix": {}}}})
