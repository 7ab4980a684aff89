"""The laws that every optimizer of conf/optimizer must obey, as functions of its name: measured in training on text."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import first_point, run_point

from spectral_mup import data
from spectral_mup.analysis.size_law import Row, SizeLaw, first_log2_lr, size_laws
from spectral_mup.config import ROOT, load_config
from spectral_mup.derive import make_ladder, measure
from spectral_mup.record import read_rows
from spectral_mup.schema import Config

SMALL = [
    "data=pydoc", "model.head_size=16", "model.context=32", "train.batch_size=16", "train.precision=float32",
    "train.compile=false", "train.warmup=0", "train.schedule=constant", "train.eval_sequences=1",
    *[f"optimizer.weight_decay.{k}=0" for k in ("matrix", "embedding", "readout", "vector")],
]  # fmt: skip
TOLERANCE, STEPS, UPDATE = 0.15, 10, 0.1


def small(optimizer: str, conf: Path | None = None, *overrides: str) -> Config:
    return load_config([*SMALL, f"optimizer={optimizer}", *overrides], conf)


@functools.cache
def blind(optimizer: str, conf: Path | None = None, seeds: tuple[int, ...] = (0, 1)) -> list[Row]:
    """Directions of widths 64 to 512 over 12 steps, the optimizer's size law taken away; measured once a session."""
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    science = first_point(small(optimizer, conf, "action=derive", "sweep.width=[64]", "rule=[spectral]")).science
    ladder = make_ladder(science, corpus.vocab_size, [64, 128, 256, 512])
    return measure(ladder, corpus, seeds=seeds, steps=12, batch_size=16, update=0.05)


def found(optimizer: str, conf: Path | None = None) -> dict[str, SizeLaw]:
    return {law.algorithm: law for law in size_laws(blind(optimizer, conf))}


def declared(optimizer: str, conf: Path | None = None) -> dict[str, dict[str, float] | None]:
    """{algorithm in use: its size law as conf/optimizer has it}."""
    o = small(optimizer, conf, "rule=[standard]").optimizer
    return {name: o.algorithms[name].size for name in dict.fromkeys((o.matrix, o.embedding, o.readout, o.vector))}


@functools.cache
def ladder(optimizer: str, rule: str, conf: Path | None = None) -> list[Row]:
    """Norm rows of training runs at widths 64 to 512 and two seeds, at one base lr a little above what one trains with."""
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    o = small(optimizer, conf, "rule=[standard]").optimizer
    lr = min(
        first_log2_lr([r | {"kind": "matrix"} for r in blind(optimizer, conf) if r["algorithm"] == name])
        - np.log2(o.algorithms[name].lr)
        for name in declared(optimizer, conf)
    )
    config = small(
        optimizer, conf, f"rule=[{rule}]", "sweep.width=[64,128,256,512]", f"train.steps={STEPS}", f"probe.steps=[{STEPS}]"
    )
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        for width in config.sweep.width:
            for seed in (0, 1):
                point = first_point(config, rule, width, round(lr + np.log2(UPDATE / 0.05)), seed)
                folder, result = run_point(point, Path(runs), corpus)
                assert result["status"] == "done"
                rows += [row | {"width": width, "seed": seed} for row in read_rows(folder.path / "norms.jsonl")]
    return rows


def feature_slopes(optimizer: str, rule: str, conf: Path | None = None) -> dict[str, float]:
    """{module: slope of log2 RMS of the change of its features against log2 width} after the last step."""
    rows = [r for r in ladder(optimizer, rule, conf) if r["what"] == "feature" and r["step"] == STEPS]
    slopes = {}
    for name in dict.fromkeys(r["name"] for r in rows):
        mine = [r for r in rows if r["name"] == name]
        slopes[name] = float(np.polyfit([np.log2(r["width"]) for r in mine], [np.log2(r["delta_rms"]) for r in mine], 1)[0])
    return slopes


OPTIMIZERS = sorted(p.stem for p in (ROOT / "conf" / "optimizer").glob("*.yaml") if p.stem != "other")  # that has no law
