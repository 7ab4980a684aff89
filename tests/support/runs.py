"""Tiny configs on text that is always there, and their runs trained in this process."""

import functools
import json
from pathlib import Path
from typing import Any

import torch

from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import Config
from spectral_mup.models.layers import LanguageModel
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Sweep, open_sweep
from spectral_mup.scaling.forward_multipliers import set_multipliers_
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta, scale_run
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.scaling.table import tensor_rows
from spectral_mup.training.run import train_run

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
    return folder, train_run(point, folder, corpus, device=torch.device("cpu"), log_every=4, **kwargs)


def bury(folder: RunFolder) -> None:
    """Make its owner a process that is long gone."""
    for owner in folder.path.glob("attempts/*/owner.json"):
        content = json.loads(owner.read_text())
        boot = content["start"].partition(":")[0]
        owner.write_text(json.dumps(content | {"start": f"{boot}:0"}))


def build_run(run: RunConfig, vocab_size: int = 256) -> tuple[LanguageModel, ModelScaling]:
    """The run's model, scaled and initialised as it is for training, and its scaling."""
    model = run.model.build(vocab_size, run.width, run.depth)
    scaling = scale_run(run, model, vocab_size)
    set_multipliers_(model, scaling)
    init_(model, scaling, seed=run.seed)
    return model, scaling


def optimizers_of(model: LanguageModel, scaling: ModelScaling, run: RunConfig) -> list[torch.optim.Optimizer]:
    """Those that the run trains with."""
    return make_optimizers(model, scaling, **hyperparameters(run))


def explain_rows(run: RunConfig, vocab_size: int = 256) -> list[dict[str, Any]]:
    """What `action=explain` prints of the run, a dict per tensor."""
    rows = tensor_rows(scale_on_meta(run, vocab_size), **hyperparameters(run))
    return [row.cells() | {"init std ×": row.times["init std"]} for row in rows]
