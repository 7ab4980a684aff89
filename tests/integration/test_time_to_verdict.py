"""Time to a verdict: the benchmark on a few steps, with a stand-in for the trainer of others."""

import importlib
import json
import subprocess
import sys

import pytest
from support import ROOT
from support.launches import environment

CLONE = ROOT / "tests/support/nanogpt_mup"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("time_to_verdict")


@pytest.mark.slow
def test_the_three_ways_are_timed_and_judged(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/time_to_verdict.py", "--tiny", "--nanogpt-mup", CLONE, "--out", "out.json"]
    env = environment(tmp_path, PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    seconds = {way: row["seconds"] for way, row in found["ways"].items()}
    assert seconds.keys() == {"field", "fixed", "search"}
    assert {found["ways"][way]["runs"] for way in ("field", "fixed")} == {6}
    losses = {(row["width"], row["log2_lr"]): row["loss"] for row in found["ways"]["field"]["losses"]}
    assert losses == {(width, lr): loss for width in (32, 64) for lr, loss in ((-8, 3.04), (-6, 3.0), (-4, None))}
    assert found["ratios"]["end_to_end"] == pytest.approx(found["ratios"]["trainer"] * found["ratios"]["design"])
    assert found["ratios"]["end_to_end"] == seconds["field"] / seconds["search"]
    assert all(name in done.stdout for name in ("end to end: ×", "trainer: ×", "design: ×", "cores, commit"))


def test_a_share_of_the_runs_stands_for_all_and_is_not_judged(benchmark, monkeypatch):
    whole, half = (benchmark.time_field(CLONE, benchmark.TINY, share) for share in (1, 2))
    assert (whole["trained"], half["trained"], half["runs"]) == (6, 3, 6)
    assert whole["verdict"] == "undecided" and half["verdict"] is None
    ways = {"field": half | {"seconds": 8.0}, "search": whole | {"seconds": 1.0, "half": 0.1}}
    fair = benchmark.compare(ways | {"fixed": whole | {"seconds": 4.0, "half": 0.1}})
    assert fair["ratios"] == {"design": 4, "trainer": 2, "end_to_end": 8}
    assert fair["fair"]["fixed"] == {"same_verdict": True, "interval_no_wider": True}
    assert fair["fair"]["field"] == {"same_verdict": False, "interval_no_wider": False}


def test_a_run_that_failed_is_no_loss(benchmark):
    assert benchmark.final_loss("step 0: train loss 5, val loss 5\nstep 40: train loss 2, val loss 3\n", 40) == 3
    with pytest.raises(SystemExit, match="No module named"):
        benchmark.final_loss("step 4: train loss 2, val loss 3\nNo module named 'torch'\n", 40)


def test_without_a_clone_it_says_what_to_clone_and_times_ours(benchmark, monkeypatch, capsys):
    ours = {"seconds": 1.0, "runs": 1, "trained": 1, "verdict": "transfers", "slope": 0.0, "half": 0.1}
    monkeypatch.setattr(benchmark, "time_ours", lambda overrides: ours)
    monkeypatch.setattr(sys, "argv", ["time_to_verdict.py"])
    benchmark.main()
    out, err = capsys.readouterr()
    assert "git clone https://github.com/EleutherAI/nanoGPT-mup" in err
    assert "design: × 1.0" in out and "field" not in out
