"""Tiny configs on text that is always there, and their runs trained in this process."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Sweep, open_sweep
from spectral_mup.training.loop import train

TINY = [
    "data=pydoc", "sweep.width=[32,64]", "sweep.base_width=32", "sweep.lr=[-8,-6,-4]", "sweep.seed=[0]", "model.head_size=16",
    "model.context=16", "train.batch_size=4", "train.steps=12", "train.warmup=2", "train.eval_sequences=8",
    "probe.steps=[1,4]", "probe.sequences=2", "cluster.log_every=4", "cluster.workers=2", "train.precision=float32",
    "train.compile=false", "sweep.name=tiny",
]  # fmt: skip


@functools.cache
def composed(*overrides: str) -> Config:
    """load_config, which takes a fifth of a second and more, once for the same overrides. To be copied before it is changed."""
    return load_config([*overrides])


def first_point(
    config: Config, rule: str = "spectral", width: int | None = None, log2_lr: float = -6, seed: int = 0
) -> RunConfig:
    sweep: Sweep = open_sweep(config)
    return sweep.run(Curve(rule, width or config.sweep.width[0], config.sweep.depth[0]), log2_lr, seed)


def run_point(point: RunConfig, runs: Path, corpus, **kwargs):
    """Claim the run's folder and train it here."""
    folder = RunFolder(runs, point.run_id)
    folder.write_config(point.to_json())
    folder.claim()
    return folder, train(point, folder, corpus, device=torch.device("cpu"), log_every=4, **kwargs)
