"""The laws the science rests on, measured in training on text, each with a wrong law or a wrong rule that must fail.

A 2-layer GPT with heads of fixed size at widths 64 to 512, ten steps, two seeds; slopes of log2 against log2 width.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import first_point, run_point

from spectral_mup import data
from spectral_mup.build import parametrize
from spectral_mup.config import load_config
from spectral_mup.record import read_rows
from spectral_mup.theory.growth import monomial

WIDTHS, SEEDS, STEPS, TOLERANCE = (64, 128, 256, 512), (0, 1), 10, 0.15
LOG2_LR = {  # larger than one would train with, and stable
    "adamw": -8, "sgd": -3, "muon": -6, "adopt": -7, "lamb": -6, "sophia": -8, "lion": -9,
}  # fmt: skip

pytestmark = pytest.mark.slow


@functools.cache
def ladder(optimizer: str, rule: str) -> list[dict]:
    """Norm rows of every width and seed, with width and seed added; trained once a session."""
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    config = load_config([
        "data=pydoc", f"optimizer={optimizer}", f"rule=[{rule}]", f"sweep.width=[{','.join(map(str, WIDTHS))}]",
        "model.head_size=16", "model.context=32", "train.batch_size=16", f"train.steps={STEPS}", "train.warmup=0",
        "train.schedule=constant", "train.eval_sequences=1", f"probe.steps=[1,{STEPS}]", "train.precision=float32",
        "train.compile=false", *[f"optimizer.weight_decay.{k}=0" for k in ("matrix", "embedding", "readout", "vector")],
    ])  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        for width in WIDTHS:
            for seed in SEEDS:
                point = first_point(config, rule, width, LOG2_LR[optimizer], seed)
                folder, result = run_point(point, Path(runs), corpus)
                assert result["status"] == "done"
                p = parametrize(point.science, corpus.vocab_size)[1]
                for row in read_rows(folder.path / "norms.jsonl"):
                    if row["what"] == "tensor" and row["step"] > 0:
                        growth = p.growths[row["name"]]
                        law = p.laws["vector" if growth.kind == "fixed" else growth.kind]
                        c = p.forward.logits if growth.kind == "readout" else 1.0
                        ratios = growth.ratios() | {"c": c, "a": 1.0, "s": p.scalings[row["name"]].init_std}
                        row |= {"direction": row["update_norm"] / row["lr"], "size": monomial(law.size, ratios)}
                    rows.append(row | {"width": width, "seed": seed})
    return rows


def slopes(rows: list[dict], value: str, what: str, step: int = STEPS) -> dict[str, float]:
    """{name: slope of log2 value against log2 width}."""
    found = {}
    for name in dict.fromkeys(r["name"] for r in rows if r["what"] == what):
        mine = [r for r in rows if r["name"] == name and r["what"] == what and r["step"] == step]
        found[name] = float(np.polyfit([np.log2(r["width"]) for r in mine], [np.log2(r[value]) for r in mine], 1)[0])
    return found


@pytest.mark.parametrize("optimizer", LOG2_LR)
def test_direction_grows_as_its_size_law(optimizer):
    """Slope of ‖U‖₂, averaged over the tensors of a kind, is the law's within ±0.15; other optimizers' laws are rejected."""
    rows = ladder(optimizer, "spectral")
    measured, law = slopes(rows, "direction", "tensor"), slopes(rows, "size", "tensor")
    kinds = {r["name"]: r["kind"] for r in rows if r["what"] == "tensor"}
    for kind in ("embedding", "matrix", "readout", "vector"):
        names = [n for n in measured if kinds[n] == kind]
        slope = np.mean([measured[n] for n in names])
        assert abs(slope - np.mean([law[n] for n in names])) <= TOLERANCE, (kind, slope)
        if kind == "matrix":  # on hidden matrices the laws say 1, 1/2 or 0, the raw gradient being of norm 1 like Muon's
            for wrong in {0.0, 0.5, 1.0} - {round(law[names[0]], 3)}:
                assert abs(slope - wrong) > TOLERANCE, (kind, slope, wrong)


@pytest.mark.parametrize("optimizer", LOG2_LR)
def test_features_move_alike_at_every_width_under_spectral_alone(optimizer):
    """RMS of the change of every module's features is flat under `spectral`; under `standard` it is not.

    Muon's hidden lr is the same under both rules, so its control must fail at readout or embedding.
    LAMB's differs by √m at its matrices alone, which shows in the modules that sum over many of them.
    """
    good = slopes(ladder(optimizer, "spectral"), "delta_rms", "feature")
    assert max(abs(v) for v in good.values()) <= TOLERANCE, {n: round(v, 2) for n, v in good.items() if abs(v) > TOLERANCE}
    bad = slopes(ladder(optimizer, "standard"), "delta_rms", "feature")
    failed = [name for name, v in bad.items() if abs(v) > TOLERANCE]
    assert failed
    if optimizer == "muon":
        assert {"logits", "token", "position"} & set(failed)
    elif optimizer != "lamb":
        assert len(failed) > len(bad) / 2
