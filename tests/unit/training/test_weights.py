"""Laws of train.keep=last: what is kept computes what was trained, and keeping changes nothing of a run."""

import math

import pytest
import torch
from support.cli import call, finish
from support.runs import TINY, build_run, first_point, run_point

from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.run_scaling import check_model
from spectral_mup.training import weights
from spectral_mup.training.distributed import SINGLE_PROCESS
from spectral_mup.training.run import make_task
from spectral_mup.training.text import logits_loss, text_loss

KEEP = "train.keep=last"
HF = [*TINY, "model=huggingface", "sweep.base_depth=2", "sweep.depth=[2,4]", "train.eval_sequences=16", KEEP]


def loss_of(model, run, corpus, loss) -> float:
    """Mean validation loss of a model, as at the end of a run."""
    model.eval()
    with torch.no_grad():
        parts = [
            (float(loss(model, b)) * n, n) for b, n in make_task(run, corpus, torch.device("cpu"), SINGLE_PROCESS).validation()
        ]
    return sum(x for x, _ in parts) / sum(n for _, n in parts)


def test_the_file_is_a_state_dict_and_keeping_changes_nothing(tiny, corpus, tmp_path):
    run, usual = first_point(tiny(KEEP), width=64), first_point(tiny(), width=64)
    assert run.run_id == usual.run_id
    folder, result = run_point(run, tmp_path / "kept", corpus)
    other, _ = run_point(usual, tmp_path / "usual", corpus)
    for name in ("result.json", "metrics.jsonl", "norms.jsonl"):
        assert (folder.path / name).read_bytes() == (other.path / name).read_bytes()
    assert folder.has_weights() and not other.has_weights()
    model, _ = build_run(run)
    untrained = loss_of(model, run, corpus, text_loss)
    model.load_state_dict(torch.load(folder.path / "weights.pt", weights_only=True))
    assert loss_of(model, run, corpus, text_loss) == pytest.approx(result["val_loss"], rel=1e-6)
    assert untrained != pytest.approx(result["val_loss"], rel=1e-3)


def test_a_run_that_diverged_keeps_none(tiny, corpus, tmp_path):
    folder, result = run_point(first_point(tiny("train.warmup=0", KEEP), log2_lr=16), tmp_path, corpus)
    assert result["status"] == "diverged" and not folder.has_weights()


@pytest.mark.parametrize("more", [["model.type=llama"], ["model.type=llama", "model.tied=true"], ["model.type=gpt2"]], ids=str)
def test_transformers_load_what_computes_the_same(corpus, tmp_path, monkeypatch, more):
    """With the multipliers of logits (1/2) and branches (1/2) in the weights; the control, without, computes another loss."""
    from transformers import AutoModelForCausalLM

    sweep = open_sweep(load_config([*HF, *more]))
    run = sweep.run(next(c for chain in sweep.chains({}) for c in chain.curves if (c.width, c.depth) == (64, 4)), -6.0, 0)
    found = {}
    for way in ("folded", "as trained"):
        if way == "as trained":
            monkeypatch.setattr(weights, "folded", lambda model, state: dict(state))
        folder, result = run_point(run, tmp_path / way, corpus)
        model = AutoModelForCausalLM.from_pretrained(folder.path / "model")
        found[way] = loss_of(model, run, corpus, logits_loss)
        assert not list(folder.path.glob(".*"))
    assert found["folded"] == pytest.approx(result["val_loss"], rel=1e-5)
    assert not math.isclose(found["as trained"], result["val_loss"], rel_tol=1e-3)


def test_what_no_config_of_transformers_can_say_is_refused_before_it_is_trained():
    """Attention in heads that grow: μP's 1/d_head is not their 1/√d_head. Without keep it trains."""
    heads = ["model.heads=2", "model.head_size=null", "model.type=llama"]
    for keep, words in (("last", "cannot say that .* scales q·k by .*; give heads of one size"), ("null", "")):
        sweep = open_sweep(load_config([*HF, *heads, f"train.keep={keep}"]))
        runs = [sweep.run(c, -6.0, 0) for chain in sweep.chains({}) for c in chain.curves]
        if words:
            with pytest.raises(ConfigError, match=f"train.keep=last: .*{words}"):
                check_model(runs, 256)
        else:
            check_model(runs, 256)


def test_a_launch_says_which_runs_have_no_weights_and_how_to_get_them(tmp_path):
    argv = [*TINY, f"paths.runs={tmp_path}", "action=plan"]
    sweep = open_sweep(load_config(argv))
    curve = next(c for chain in sweep.chains({}) for c in chain.curves)
    for value in (-8, -6):
        finish(sweep.run(curve, value, 0), tmp_path)
    (tmp_path / sweep.run(curve, -8, 0).run_id / "weights.pt").touch()
    bare = sweep.run(curve, -6, 0).run_id
    said = f"1 run ended without train.keep=last and left no weights, as {tmp_path}/{bare}; to get them, move such folders away"
    assert said in call("launch", *argv, KEEP)[1] and "left no weights" not in call("launch", *argv)[1]
