"""The page's table of kinds, made without a model, is what `action=explain` says of every tensor of the model."""

import math

import pytest
from support.pages import largest
from support.runs import explain_rows

from spectral_mup.analysis.page.formula import HEADINGS, PLACES, formula

NAMES = {place: name for name, place in PLACES.items()}
CASES = [
    ("spectral", "adamw", "nanogpt"), ("spectral", "sgd", "nanogpt"), ("spectral", "lamb", "nanogpt"),
    ("spectral", "muon", "llama2"), ("spectral", "shampoo", "nanogpt"), ("standard", "adamw", "nanogpt"),
    ("tensor_programs_v", "adamw", "llama2"), ("completep", "adamw", "nanogpt"), ("spectral_depth_half", "lion", "nanogpt"),
]  # fmt: skip


def row_of(tensor: dict, rows: dict) -> str:
    """The row that speaks of a tensor."""
    name = NAMES[tensor["kind"], ".0." in tensor["tensor"] or ".1." in tensor["tensor"]]
    return name if name in rows else "biases, gains"


@pytest.mark.parametrize(("rule", "optimizer", "model"), CASES)
def test_kinds_are_what_explain_says_of_every_tensor(rule, optimizer, model):
    exact = (
        ["model.mlp_multiple=1", "model.mlp_ratio=3"] if model == "llama2" else []
    )  # else FFNs are rounded, and grow by a little more or less
    run = largest(rule, f"optimizer={optimizer}", f"model={model}", "model.head_size=16", *exact)
    rows = formula(run).rows
    seen = set()
    for tensor in explain_rows(run):
        if tensor["kind"] == "fixed" or ".2." in tensor["tensor"] or ".3." in tensor["tensor"]:
            continue
        name = row_of(tensor, rows)
        algorithm, entries = rows[name]
        assert algorithm == tensor["optimizer"]
        wanted = [tensor["init std ×"], tensor["lr ×"], tensor["λ ×"], tensor["ε ×"], tensor["multiplier"]]
        for heading, entry, value in zip(HEADINGS, entries, wanted, strict=True):
            if entry is not None:
                assert entry.value == pytest.approx(value), (tensor["tensor"], heading)
                assert math.prod({"m": 4.0, "d": 2.0}[s] ** x for s, x in entry.powers.items()) == pytest.approx(value)
        seen.add(name)
    assert len(seen) >= 4
