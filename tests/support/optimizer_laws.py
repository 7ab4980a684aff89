"""The laws that every optimizer of conf/optimizer must obey, as functions of its name: measured in training on text."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spectral_mup import data
from spectral_mup.analysis.feature_check import FeatureCheck, check_features
from spectral_mup.config.compose import load_config
from spectral_mup.config.presets import options
from spectral_mup.config.schema import Config
from spectral_mup.measure.derive import measure_family
from spectral_mup.measure.size_law_fit import Row, SizeLaw, first_log2_lr, size_laws
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.util.files import read_rows
from support.runs import first_point, run_point

SMALL = [
    "data=pydoc", "model.head_size=16", "model.context=32", "train.batch_size=16", "train.precision=float32",
    "train.compile=false", "model.init_std.embedding=1", "train.warmup=0", "train.schedule=constant", "train.eval_sequences=1",
    *[f"optimizer.weight_decay.{k}=0" for k in ("hidden", "embedding", "readout", "vector")],
]  # fmt: skip
TOLERANCE, STEPS = 0.15, 10
SIZES = {"width": [64, 128, 256], "depth": [2, 4, 8]}  # of the feature checks; wider and deeper ones lie in sweeps/results
# Two seeds, seventeen modules and an interval each: whatever the init, some pair of seeds puts one module outside its limit by
# chance (the logbook has the shares). So the laws below are of these seeds, and of tables that start at 1: with NanoGPT's 0.5
# branches weigh more in the stream of a shallow model, and queries and keys of Muon and Shampoo grow with depth (the logbook).
SEEDS = {"width": (4, 5), "depth": (0, 1)}
LARGER = 3  # octaves above the lr that moves no hidden matrix by more than 5 % a step: larger than one trains with


@functools.cache
def small(optimizer: str, *overrides: str) -> Config:
    return load_config([*SMALL, f"optimizer={optimizer}", *overrides])


@functools.cache
def blind(optimizer: str, seeds: tuple[int, ...] = (0, 1), widths: tuple[int, ...] = (32, 64, 128, 256)) -> list[Row]:
    """Directions of a ladder of widths over 12 steps, the optimizer's size law taken away; measured once a session."""
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    run = first_point(small(optimizer, "action=derive", "sweep.width=[64]", "rule=[spectral]"))
    return measure_family(run, corpus, widths=widths, seeds=seeds, steps=12, batch_size=16, update=0.05)


def found(optimizer: str) -> dict[str, SizeLaw]:
    return {law.algorithm: law for law in size_laws(blind(optimizer))}


def declared(optimizer: str) -> dict[str, dict[str, float] | None]:
    """{algorithm in use: its size law as conf/optimizer has it}."""
    o = small(optimizer, "rule=[standard]").optimizer
    return {name: o.algorithms[name].update_norm for name in dict.fromkeys((o.hidden, o.embedding, o.readout, o.vector))}


@functools.cache
def large_lr(optimizer: str) -> int:
    """log2 of a base lr larger than one trains with, and stable: LARGER octaves above a step of 5 % of the weight's norm."""
    directions, algorithms = blind(optimizer, (0,), (64, 80, 96)), small(optimizer).optimizer.algorithms
    lrs = []
    for name in declared(optimizer):
        mine = [row | {"kind": "hidden"} for row in directions if row["algorithm"] == name]
        lrs.append(first_log2_lr(mine) - np.log2(algorithms[name].lr))
    return round(min(lrs) + LARGER)


@functools.cache
def features(
    optimizer: str,
    rule: str,
    model: str = "nanogpt",
    axis: str = "width",
    extra: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
) -> FeatureCheck:
    """The feature check of training runs over `axis`, two seeds, ten steps at a large but stable base lr.

    To width 128 for Shampoo and SOAP, whose eigenvectors of an MLP four times as wide take seconds; to 512 for LAMB on
    NanoGPT, whose slopes are the noisiest.
    """
    torch.set_num_threads(1)
    corpus = data.load("pydoc", None, None)
    sizes, seeds = SIZES[axis], seeds or SEEDS[axis]
    if axis == "width" and optimizer in ("shampoo", "soap"):
        sizes = sizes[:2]
    elif (axis, optimizer, model) == ("width", "lamb", "nanogpt"):
        sizes = [*sizes, 512]
    fixed = "sweep.depth=[2]" if axis == "width" else "sweep.width=[64]"
    grid = [f"sweep.{axis}={sizes}", fixed, f"train.steps={STEPS}", f"probe.steps=[{STEPS}]"]
    config, log2_lr, rows = (
        small(optimizer, f"model={model}", f"rule=[{rule}]", *grid, *extra),
        large_lr(optimizer),
        [],
    )
    sweep = open_sweep(config)
    with tempfile.TemporaryDirectory() as runs:
        for curve in next(sweep.chains({})).curves:
            for seed in seeds:
                folder, _ = run_point(sweep.run(curve, log2_lr, seed), Path(runs), corpus)
                key = {"width": curve.width, "depth": curve.depth, "seed": seed, "log2_lr": float(log2_lr)}
                rows += [key | row for row in read_rows(folder.path / "norms.jsonl")]
    return check_features(pd.DataFrame(rows), log2_lr, axis=axis, sizes=sizes)


def slopes(check: FeatureCheck, quantity: str = "feature") -> dict[str, float]:
    """{module: slope of log2 RMS of its features' change against log2 size} after the last step; of tensors for "update"."""
    assert check.step == STEPS
    rows = check.table[check.table["judged"] & (check.table["quantity"] == quantity)]
    return dict(zip(rows["name"], rows["slope"], strict=True))


OPTIMIZERS = [name for name in options("optimizer") if name != "other"]  # that has no law
