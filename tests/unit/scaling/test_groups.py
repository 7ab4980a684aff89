"""What param_groups and make_optimizers refuse: one line that names the argument and the fix."""

import math
import re

import numpy as np
import pytest
import torch
from support.networks import mlp

from spectral_mup import explain, init_, make_optimizers, param_groups, scale
from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec
from spectral_mup.errors import ConfigError
from spectral_mup.theory.growth import KINDS


def one_line(message: str) -> str:
    """A pattern that a message of one line matches from its beginning."""
    return rf"\A{message}[^\n]*\Z"


@pytest.mark.parametrize(
    "optimizer, message",
    [
        (torch.optim.AdamW, r"optimizer=<class .*AdamW.*>: give its name, adamw; an UpdateScaling; or what derive"),
        (torch.optim.SGD, r"optimizer=<class .*SGD.*>: give its name, sgd;"),
        (torch.optim.NAdam, r"optimizer=<class .*NAdam.*>: give its name, one of adamw, adopt, .*; .*derive"),
        (torch.optim.SGD(mlp(4).parameters(), lr=0.1), r"optimizer=SGD .*: give its name, sgd;"),
        (None, r"optimizer=None: give its name, one of adamw, "),
        (["adamw"], r"optimizer=\['adamw'\]: give its name, one of adamw, "),
        (0.1, r"optimizer=0.1: give its name"),
    ],
)
def test_what_is_no_name_of_an_optimizer(optimizer, message):
    with pytest.raises(ValueError, match=one_line(message)):
        scale(mlp(64), mlp(16), optimizer=optimizer)


@pytest.mark.parametrize("rule", [None, 5, ["spectral"]])
def test_what_is_no_name_of_a_rule(rule):
    with pytest.raises(ValueError, match=one_line(r"rule=.*: give the name of one, as in rule='spectral'")):
        scale(mlp(64), mlp(16), rule=rule)


@pytest.mark.parametrize("make", [param_groups, make_optimizers, lambda model, s, **numbers: explain(s, **numbers)])
@pytest.mark.parametrize(
    "numbers, argument",
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": "0.1"}, "lr='0.1'"),
        ({"lr": None}, "lr=None"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": torch.tensor(0.1)}, "lr=tensor"),
        ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"lr": 0.1, "weight_decay": None}, "weight_decay=None"),
        ({"lr": 0.1, "weight_decay": dict.fromkeys(KINDS, 0.1) | {"readout": "0"}}, "weight_decay of readout='0'"),
        ({"lr": 0.1, "eps": "1e-8"}, "eps='1e-8'"),
    ],
)
def test_numbers_that_cannot_be(make, numbers, argument):
    model = mlp(64)
    scaling = scale(model, mlp(16))
    with pytest.raises(ValueError, match=one_line(re.escape(argument) + ".*: give a number, at least 0")):
        make(model, scaling, **numbers)


def test_lr_0_freezes_but_cannot_decay_independently_of_the_lr():
    model = mlp(64)
    scaling = scale(model, mlp(16))
    message = one_line(
        "lr=0: 0.weight cannot shrink by an independent weight_decay=0.1 at lr 0; give lr above 0, or independent=F"
    )
    with pytest.raises(ValueError, match=message):
        param_groups(model, scaling, lr=0, weight_decay=0.1, independent=True)
    for settings in ({"independent": True}, {"weight_decay": 0.1}):
        assert {group["lr"] for group in param_groups(model, scaling, lr=0, **settings)} == {0}


def test_numbers_of_numpy_are_numbers():
    model = mlp(64)
    assert param_groups(model, scale(model, mlp(16)), lr=np.float32(0.5))[0]["lr"] == 0.5


def test_arguments_in_the_wrong_order_or_of_another_kind():
    model = mlp(64)
    scaling = scale(model, mlp(16))
    for call in (param_groups, make_optimizers):
        with pytest.raises(ValueError, match=one_line(r"scaling: give what scale\(model, base\) returns, not Sequential")):
            call(scaling, model, lr=0.1)
        with pytest.raises(ValueError, match=one_line("model: give the module that was scaled, not generator")):
            call(model.parameters(), scaling, lr=0.1)
    with pytest.raises(ValueError, match=one_line("scaling: .*, not dict")):
        param_groups(model, dict(scaling), lr=0.1)
    with pytest.raises(ValueError, match=one_line("scaling: .*, not NoneType")):
        init_(model, None)


@pytest.mark.parametrize(
    "target, message",
    [
        ("torch.optim.Nope", r"optimizer.algorithms.x.target=torch.optim.Nope: cannot be imported .*; give the import path"),
        ("torch..AdamW", r"optimizer.algorithms.x.target=torch..AdamW: cannot be imported"),
        (
            "math.sqrt",
            r"optimizer.algorithms.x.target=math.sqrt: is not a class derived from torch.optim.Optimizer; give",
        ),
        (math.sqrt, r"optimizer=<built-in function sqrt>: cannot be called with"),
        (lambda groups, lr: [1], r"optimizer=<function .*>: builds list, not a torch.optim.Optimizer; give"),
        (torch.optim.LBFGS, r"optimizer=<class .*LBFGS.*>: LBFGS doesn't support"),
    ],
)
def test_what_builds_no_optimizer(target, message):
    model = mlp(64)
    spec = OptimizerSpec("x", dict.fromkeys(KINDS, Algorithm("x", target)))
    with pytest.raises(ConfigError, match=one_line(message)):
        make_optimizers(model, scale(model, mlp(16), optimizer=spec), lr=0.1)
