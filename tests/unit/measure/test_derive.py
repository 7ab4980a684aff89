"""derive end to end: a toy optimizer of one file and one YAML, any class by its path, and the rule that is written."""

import sys
import textwrap

import pytest
from support.optimizer_laws import TOLERANCE, declared, features, found
from support.optimizers import law_name

from spectral_mup.cli import console as cli
from spectral_mup.config.compose import ConfigError, load_config

QUICK = [
    "action=derive", "data=pydoc", "derive.width=[32,64,128]", "derive.steps=9", "model.head_size=16", "model.context=16",
]  # fmt: skip

TOY = """
from typing import Any

import torch
from torch import Tensor

from spectral_mup.optim.stacked import StackedOptimizer


class ColumnSign(StackedOptimizer):
    '''The sign of the momentum, over the root of fan_in: ‖U‖₂ grows as √fan_out.'''

    matrices_only = False

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    def init_state(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(weight)}

    def direction(self, gradient: Tensor, weight: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: int) -> Tensor:
        sign = state["momentum"].mul_(group["momentum"]).add_(gradient).sign()
        return sign * weight.size(-1) ** -0.5 if weight.ndim > 2 else sign
"""
TOY_YAML = """
hidden: toy
embedding: sign
readout: toy
vector: sign
weight_decay: {hidden: 0.0, embedding: 0.0, readout: 0.0, vector: 0.0}
algorithms:
  toy: &toy {target: toy_optimizer.ColumnSign, update_norm: {m_out: 0.5}, eps_law: {}, eps: null,
    lr: 1.0, lr_shape: {}, args: {}}
  sign: {target: lion_pytorch.Lion, update_norm: {m_out: 0.5, m_in: 0.5}, eps_law: {}, eps: null,
    lr: 0.1, lr_shape: {}, args: {}}
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """conf/ of a user's working directory, which is a place for modules too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for group in ("optimizer", "rule"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path / "conf"


@pytest.fixture
def toy(conf):
    """One file and one YAML, and nothing else."""
    (conf.parent / "toy_optimizer.py").write_text(TOY)
    (conf / "optimizer" / "toy.yaml").write_text(TOY_YAML)
    yield conf
    sys.modules.pop("toy_optimizer", None)


@pytest.mark.slow
def test_an_optimizer_of_one_file_and_one_yaml_obeys_every_law(toy):
    """Its law is none of the named ones; it is measured within ±0.15, a wrong one in the YAML fails at the features."""
    laws = found("toy")
    assert law_name(declared("toy")["toy"] or {}) is None and laws["toy"].law is None
    assert laws["toy"].exponents["hidden"]["m_out"] == pytest.approx(0.5, abs=TOLERANCE)
    assert laws["toy"].exponents["hidden"]["m_in"] == pytest.approx(0.0, abs=TOLERANCE)
    assert features("toy", "spectral").passed is not False
    wrong = TOY_YAML.replace("update_norm: {m_out: 0.5}", "update_norm: {}")
    (toy / "optimizer" / "wrong.yaml").write_text(wrong)
    assert features("wrong", "spectral").failed


def test_derive_writes_a_rule_that_explain_and_run_accept(conf, capsys):
    other = ["optimizer=other", "optimizer.name=belief", "optimizer.algorithms.other.target=pytorch_optimizer.AdaBelief"]
    assert cli.guard(lambda: cli.launch([*QUICK, *other, "derive.seed=[0,1]"])) == cli.OK
    said = capsys.readouterr().out
    assert "other: entries of order 1" in said and "hidden (m, m)" in said
    assert (conf.parent / "results/derive/belief/directions.png").exists()
    assert (conf / "rule/derived/belief.yaml").exists()

    rule = ["data=pydoc", "rule=[derived/belief,standard]", *other, "sweep.width=[64,128]", "model.head_size=16"]
    assert cli.guard(lambda: cli.launch([*rule, "action=explain"])) == cli.OK
    assert "derived/belief" in capsys.readouterr().out
    derived = load_config(rule).rule["derived/belief"]
    spectral = load_config(["optimizer=adamw", "rule=[spectral]"]).rule["spectral"]
    assert derived.multipliers == spectral.multipliers
    assert isinstance(derived.scaling, dict)
    assert derived.scaling["update_norm"]["other"]["hidden"] == {"m_out": 0.5, "m_in": 0.5}
    with pytest.raises(ValueError, match="no size law of optimizer adamw"):
        load_config(["optimizer=adamw", "rule=[derived/belief]"])


def test_an_undeclared_size_law_needs_derive():
    other = ["optimizer=other", "optimizer.name=x", "optimizer.algorithms.other.target=torch.optim.NAdam"]
    with pytest.raises(ConfigError, match="action=derive"):
        load_config([*other, "rule=[spectral]"])
    load_config([*other, "rule=[standard]"])


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("derive.width=[64,128]", "three different widths"),
        ("derive.width=[64,64,128]", "three different widths"),
        ("derive.width=[64,100,128]", "not a multiple"),
        ("derive.steps=7", "at least 8"),
        ("derive.update=0", "must be positive"),
        ("derive.seed=[]", "derive.seed"),
    ],
)
def test_bad_ladders_are_refused_before_anything_is_trained(override, match):
    with pytest.raises(ConfigError, match=match):
        load_config([*QUICK, "optimizer=adamw", override])


@pytest.mark.parametrize(
    ("target", "said"),
    [("torch.optim.Nope", "cannot be imported"), ("math.sqrt", "is not a class derived from torch.optim.Optimizer")],
)
def test_a_target_that_is_no_optimizer_is_one_line(conf, capsys, target, said):
    other = ["optimizer=other", "optimizer.name=x", f"optimizer.algorithms.other.target={target}"]
    assert cli.guard(lambda: cli.launch([*QUICK, *other])) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: optimizer.algorithms.other.target={target}: {said}")


def test_an_optimizer_that_needs_more_than_gradients_is_refused(conf, capsys):
    other = ["optimizer=other", "optimizer.name=lbfgs", "optimizer.algorithms.other.target=toy_closure.NeedsClosure"]
    (conf.parent / "toy_closure.py").write_text(
        textwrap.dedent("""
        import torch
        class NeedsClosure(torch.optim.SGD):
            def step(self, closure):
                return closure()
        """)
    )
    assert cli.guard(lambda: cli.launch([*QUICK, *other])) == cli.BAD_INPUT
    assert "step() failed" in capsys.readouterr().err
    assert not (conf / "rule/derived/lbfgs.yaml").exists()
