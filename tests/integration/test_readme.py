"""What README shows runs as it is printed."""

import pytest
from support.readme import snippet


def test_your_own_model(capsys):
    code = snippet("### Your own model")
    assert len([line for line in code.splitlines() if line]) <= 12
    names: dict = {}
    exec(code, names)
    said = capsys.readouterr().out
    lrs = {name: group["lr"] for group in names["optimizer"].param_groups for name in group["names"]}
    assert lrs == pytest.approx({
        "0.weight": 2e-3, "1.weight": 2e-3 / 8, "1.bias": 2e-3, "3.weight": 2e-3 / 8, "3.bias": 2e-3,
    })  # fmt: skip
    assert all(name in said for name in lrs)
    std = float(names["model"][1].weight.detach().std())
    assert std == pytest.approx(float(names["base"][1].weight.detach().std()) * 8**-0.5, rel=0.05)


def test_a_heading_that_is_not_there_is_seen():
    with pytest.raises(IndexError):
        snippet("### Somebody else's model")
