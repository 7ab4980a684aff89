"""A sweep by one call: what it trains, judges and returns, for functions with an import path and without one."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import call
from support.own_model import LANGUAGE_MODEL

import spectral_mup as sm

CODE = (
    LANGUAGE_MODEL
    + """


def build(width, vocab_size):
    return LM(width, vocab_size)
"""
)
SCRIPT = """
import mine
import spectral_mup as sm

found = sm.sweep(mine.build, "data=pydoc", "lr.adaptive=false", "figures.only=[]", name="script", widths=[16, 32],
                 depths=[1], log2_lrs=[-6, -4], seeds=[0], steps=10, rules=["spectral"], workers=1, quiet=True)
print(len(found.runs))
"""
SMALL = {"widths": [16, 32, 64], "depths": [1], "log2_lrs": [-6, -4, -2], "seeds": [0], "steps": 20, "batch_size": 4}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    import mine  # type: ignore[import-not-found]

    yield mine
    sys.modules.pop("mine", None)


def test_one_call_is_what_the_two_commands_are(mine, capsys, undraw):
    undraw()
    found = sm.sweep(mine.build, "data=pydoc", "lr.adaptive=false", name="called", workers=1, **SMALL)
    assert "spectral" in capsys.readouterr().out
    words = [
        "model=factory", "model.target=mine.build", "sweep.name=called", "sweep.width=[16,32,64]", "sweep.base_width=16",
        "sweep.depth=[1]", "sweep.base_depth=1", "sweep.lr=[-6,-4,-2]", "sweep.seed=[0]", "train.steps=20", "train.warmup=2",
        "train.batch_size=4", "data=pydoc", "lr.adaptive=false",
    ]  # fmt: skip
    code, out, _ = call("launch", *words, "action=plan")
    assert code == 0 and "Nothing to do" in out
    before = Path("results/called/curves.csv").read_text()
    assert call("analyze", *words)[0] == 0
    assert Path("results/called/curves.csv").read_text() == before
    assert set(found.runs["width"]) == {16, 32, 64} and set(found.runs["rule"]) == {"spectral", "standard"}
    assert found.runs["loss"].notna().all()


def test_a_function_that_only_this_process_has_is_trained_here(mine, undraw):
    undraw()

    def local(width, vocab_size):
        return mine.LM(width, vocab_size)

    words = ("data=pydoc", "lr.adaptive=false")
    small = SMALL | {"rules": ["spectral"], "quiet": True}
    here = sm.sweep(local, *words, name="here", **small).runs
    there = sm.sweep(mine.build, *words, name="there", workers=0, **small).runs
    assert list(here["loss"]) == list(there["loss"])
    assert set(here["run_id"]).isdisjoint(there["run_id"])  # other code, other runs
    with pytest.raises(ValueError, match="^workers=2: cannot import __main__.local"):
        sm.sweep(local, *words, name="here", workers=2, **(small | {"steps": 21}))


def test_a_family_is_named(tmp_path):
    words = ("model.type=qwen3", "model.context=16", "data=pydoc", "lr.adaptive=false")
    one = {"widths": [32], "depths": [1], "log2_lrs": [-6], "seeds": [0], "steps": 5, "batch_size": 4, "workers": 0}
    found = sm.sweep("huggingface", *words, name="qwen3", folder=tmp_path, quiet=True, **one)
    assert len(set(found.runs["run_id"])) == 1 and (tmp_path / "results/qwen3/lr_transfer.png").is_file()


def test_runs_that_fail_are_an_error_and_leave_their_tracebacks(mine, monkeypatch):
    def no_gradient(width, vocab_size):
        return mine.LM(width, vocab_size).requires_grad_(False)

    with pytest.raises((RuntimeError, ValueError)) as caught:
        sm.sweep(no_gradient, "data=pydoc", "lr.adaptive=false", name="failing", quiet=True, **SMALL)
    assert "error.txt" in str(caught.value) or "requires_grad" in str(caught.value)


def test_a_script_needs_no_guard(mine):
    """Workers import the function alone: where they ran the script again, they would start further sweeps."""
    Path("script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == ["4"], done
