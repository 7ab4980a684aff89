"""Shared by all tests: one thread (bit-equal runs), and tiny configs on text that is always there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["WANDB_ERROR_REPORTING"] = "false"

import pytest
import torch

from spectral_mup import data
from spectral_mup.config import load_config
from spectral_mup.record import RunFolder
from spectral_mup.schema import Config
from spectral_mup.sweep import Curve, Point, Sweep, open_sweep
from spectral_mup.train import train

TINY = [
    "data=pydoc", "sweep.width=[32,64]", "sweep.base_width=32", "sweep.lr=[-8,-6,-4]", "sweep.seed=[0]", "model.head_size=16",
    "model.context=16", "train.batch_size=4", "train.steps=12", "train.warmup=2", "train.eval_sequences=8",
    "probe.steps=[1,4]", "probe.sequences=2", "cluster.log_every=4", "cluster.workers=2", "train.precision=float32",
    "train.compile=false", "sweep.name=tiny",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path):
    """Function of overrides to a checked tiny config whose folders lie under tmp_path."""

    def make(*overrides: str) -> Config:
        paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.results={tmp_path / 'results'}"]
        return load_config([*TINY, *paths, *overrides])

    return make


@pytest.fixture
def tiny_overrides(tmp_path):
    """The same as a command line."""
    return [*TINY, f"paths.runs={tmp_path / 'runs'}", f"paths.results={tmp_path / 'results'}"]


@pytest.fixture(scope="session")
def corpus():
    return data.load("pydoc", None, None)


def first_point(config: Config, rule: str = "spectral", width: int | None = None, log2_lr: float = -6, seed: int = 0) -> Point:
    sweep: Sweep = open_sweep(config)
    return sweep.point(Curve(rule, width or config.sweep.width[0], config.sweep.depth[0]), log2_lr, seed)


def run_point(point: Point, runs: Path, corpus, **kwargs):
    """Claim the Point's folder and train it here."""
    folder = RunFolder(runs, point.run_id)
    folder.write_config(point.science)
    folder.claim()
    return folder, train(point.science, folder, corpus, device=torch.device("cpu"), log_every=4, **kwargs)
