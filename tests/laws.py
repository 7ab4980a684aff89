"""The laws that every optimizer of conf/optimizer must obey, as functions of its name: measured in training on text."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import first_point, run_point

from spectral_mup import data
from spectral_mup.analysis.features import FeatureCheck, check_features
from spectral_mup.analysis.size_law import Row, SizeLaw, first_log2_lr, size_laws
from spectral_mup.config import ROOT, load_config
from spectral_mup.ladder import make_ladder, measure
from spectral_mup.record import read_rows
from spectral_mup.schema import Config

SMALL = [
    "data=pydoc", "model.head_size=16", "model.context=32", "train.batch_size=16", "train.precision=float32",
    "train.compile=false", "train.warmup=0", "train.schedule=constant", "train.eval_sequences=1",
    *[f"optimizer.weight_decay.{k}=0" for k in ("matrix", "embedding", "readout", "vector")],
]  # fmt: skip
TOLERANCE, STEPS = 0.15, 10
LARGER = 2  # octaves above the lr that moves no hidden matrix by more than 5 % a step: larger than one trains with


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
def features(optimizer: str, rule: str, conf: Path | None = None) -> FeatureCheck:
    """The feature check of training runs at widths 64 to 512, two seeds, ten steps at a large but stable base lr.

    To 256 for Shampoo and SOAP, whose eigenvectors of an MLP four times as wide take seconds.
    """
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    sizes, seeds = [64, 128, 256] + [512] * (optimizer not in ("shampoo", "soap")), [0, 1]
    config = small(optimizer, conf, f"rule=[{rule}]", f"sweep.width={sizes}", f"train.steps={STEPS}", f"probe.steps=[{STEPS}]")
    o, rows = config.optimizer, []
    lrs = {
        name: [r | {"kind": "matrix"} for r in blind(optimizer, conf) if r["algorithm"] == name]
        for name in declared(optimizer, conf)
    }
    log2_lr = round(min(first_log2_lr(mine) - np.log2(o.algorithms[name].lr) for name, mine in lrs.items()) + LARGER)
    with tempfile.TemporaryDirectory() as runs:
        for width in sizes:
            for seed in seeds:
                folder, _ = run_point(first_point(config, rule, width, log2_lr, seed), Path(runs), corpus)
                key = {"width": width, "seed": seed, "log2_lr": float(log2_lr)}
                rows += [key | row for row in read_rows(folder.path / "norms.jsonl")]
    return check_features(pd.DataFrame(rows), log2_lr, sizes=sizes)


OPTIMIZERS = sorted(p.stem for p in (ROOT / "conf" / "optimizer").glob("*.yaml") if p.stem != "other")  # that has no law
