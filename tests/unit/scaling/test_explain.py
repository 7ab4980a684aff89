"""What `action=explain` prints: the numbers a run trains with, merged where equal, marked where rules disagree."""

import pytest
from support.runs import build_run, explain_rows, first_point, optimizers_of

from spectral_mup.cli import console as cli
from spectral_mup.config.compose import load_config
from spectral_mup.scaling.table import TensorRow, agree, merge, short


@pytest.fixture
def say(capsys):
    """Function of overrides to what `launch.py action=explain` prints: (exit code, lines on stdout, stderr)."""

    def run(*overrides: str) -> tuple[int, list[str], str]:
        code = cli.guard(lambda: cli.launch(["data=pydoc", "action=explain", *overrides]))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def line(lines: list[str], tensor: str) -> str:
    (found,) = [text for text in lines if text.startswith(f"{tensor} ")]
    return found


def test_rules_side_by_side_are_marked_where_they_disagree(say):
    code, lines, _ = say("rule=[spectral,tensor_programs_v]", "sweep.width=[256]")
    assert code == 0
    assert line(lines, "a").split()[1] == "spectral" and "arXiv 2203.03466, Table 3" in line(lines, "b")
    hidden = line(lines, "blocks.*.mlp.down.weight").split()  # kind, then base and two multipliers of init, lr, λ and ε
    assert hidden[1:] == ["hidden", "2^-4", "0.5", "0.5", "2^-5", "0.25", "0.25", "0.1", "4", "4",
                          "1e-08", "0.25", "1", "≠", "1", "1"]  # fmt: skip
    readout = line(lines, "readout.weight").split()
    assert readout[2:6] == ["0.125", "1", "0.25", "≠"] and readout[-3:] == ["0.25", "1", "≠"]
    assert line(lines, "logits").split() == ["logits", "0.25", "1", "≠"] and "≠" not in line(lines, "branch")
    assert "–" in line(lines, "norm.weight").split()  # a gain has no init std, and λ = 0
    assert lines[-1] == "Of 12 rows the rules differ: init std in 1, lr in 1, λ in 1, ε in 12, multiplier in 1."


def test_equal_rules_have_no_mark(say):
    """The control: a rule beside a copy of itself, at the base size, and with λ that no rule acts on."""
    copy = [f"+rule.copy.{k}={v}" for k, v in (("source", "mine"), ("multipliers", "${rule.spectral.multipliers}"))]
    _, lines, _ = say("rule=[spectral]", *copy, "+rule.copy.scaling=derived", "sweep.width=[256]")
    assert not any("≠" in text for text in lines[4:]) and lines[-1] == "The rules agree in all 12 rows."
    _, lines, _ = say("rule=[spectral,standard]", "sweep.width=[64]")
    assert lines[-1] == "The rules agree in all 12 rows."
    _, lines, _ = say("rule=[spectral_readout,qiu]", "sweep.width=[256]")
    assert "λ in" in lines[-1]
    _, lines, _ = say("rule=[spectral_readout,qiu]", "sweep.width=[256]", "train.weight_decay=independent")
    assert lines[-1] == "The rules agree in all 12 rows."


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_rules_fit_into_140_columns(say, optimizer):
    for rules in ("spectral,paper_2602_20937", "spectral,qiu", "zheng,zheng_k1"):
        _, lines, _ = say(f"rule=[{rules}]", f"optimizer={optimizer}", "sweep.width=[8192]", "sweep.depth=[32]")
        assert max(map(len, lines)) <= 140 and not any("\x1b" in text for text in lines)


def test_three_rules_and_one(say):
    code, lines, _ = say("rule=[zheng,zheng_k1,completep]", "sweep.width=[256]", "sweep.depth=[32]")
    assert code == 0 and line(lines, "branch").split() == ["branch", "2^-4", "0.25", "2^-4", "≠"]
    code, lines, _ = say("rule=[spectral]", "sweep.width=[256]")
    assert code == 0 and not any("≠" in text for text in lines)
    query = line(lines, "blocks.*.attention.query.weight").split()
    assert query[1:7] == ["256×256", "hidden", "4", "4", "0.0625", "adamw"]
    assert "forward pass: attention 0.1768, branch 1, logits 0.25, embedding 1" in lines


def test_a_rule_without_the_optimizer_is_one_line_and_exit_2(say):
    for rules in ("completep", "spectral,completep"):
        code, lines, err = say(f"rule=[{rules}]", "optimizer=muon")
        assert (code, lines) == (2, [])
        assert err == "error: rule completep has no lr for optimizer muon; it lists adamw\n"
    assert say("rule=[completep]", "optimizer=adamw")[0] == 0
    with pytest.raises(ValueError, match="paper_2602_20937 has no lr for optimizer sgd; it lists adamw, adopt, lamb"):
        load_config(["rule=[paper_2602_20937]", "optimizer=sgd", "action=run"])  # before anything is launched


def test_numbers_are_those_of_the_run(tiny):
    """init std, lr, λ and ε of every row equal what the model is drawn with and the optimizer's groups hold."""
    for decay in ("coupled", "independent"):
        config = tiny("rule=[qiu]", "optimizer=muon", f"train.weight_decay={decay}", "sweep.depth=[4]", "model.bias=true")
        run = first_point(config, "qiu", 64)
        model, p = build_run(run)
        groups = {n: g for o in optimizers_of(model, p, run) for g in o.param_groups for n in g["names"]}
        for row in explain_rows(run):
            group = groups[row["tensor"]]
            lam = group["weight_decay"] * (group["lr"] if decay == "independent" else 1)
            assert (row["lr"], row["λ"], row["ε"]) == pytest.approx((group["lr"], lam, group["eps"]))
            if row["init std"] is not None:
                std = float(model.get_parameter(row["tensor"]).detach().std())
                assert std == pytest.approx(row["init std"], rel=0.1)


def test_only_tensors_with_equal_numbers_merge():
    def row(tensor: str, lr: float = 1.0) -> list[TensorRow]:
        return [TensorRow(tensor, "4×4", "hidden", 1, 1, "adamw", {"lr": 1.0}, {"lr": lr}, 1.0)]

    rows = [row(f"h.{i}.{part}") for i in range(3) for part in ("q", "k")]
    assert list(merge(rows)) == ["h.*.q", "h.*.k"]
    rows[-1] = row("h.2.k", lr=2.0)
    assert list(merge(rows)) == ["h.*.q", "h.0.k", "h.1.k", "h.2.k"]
    assert list(merge([row("layers.0.weight")])) == ["layers.0.weight"]


def test_numbers_are_short_and_exact_where_they_can_be():
    numbers = {0.25: "0.25", 2**-7: "2^-7", 2**-7.5: "2^-7.5", 1 / 3: "0.333", 1e-8: "1e-08", 1024.0: "1024", 0.03: "0.03"}
    assert {x: short(x) for x in numbers} == numbers and short(None) == "–"
    assert agree([1.0, 1.0 + 1e-12, None]) and not agree([1.0, 1.001])
