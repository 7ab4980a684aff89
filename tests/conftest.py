"""Shared by all tests: one thread (bit-equal runs), and tiny configs on text that is always there."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import tempfile
from pathlib import Path

os.environ["WANDB_ERROR_REPORTING"] = "false"

import pytest
import torch
from slurm_cluster import APT, SlurmCluster

from spectral_mup import data
from spectral_mup.config import load_config
from spectral_mup.optim.base import UsesSampledLabels
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


LONGEST = """
test_slurm_faults test_local test_slurm_submit test_feature_laws test_laws test_slurm_ranks test_slurm test_slurm_cluster
test_wandb test_depth_rules test_team test_derive
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left to run alone at the end."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@functools.cache
def composed(*overrides: str) -> Config:
    """load_config, which takes a fifth of a second and more, once for the same overrides. To be copied before it is changed."""
    return load_config([*overrides])


@pytest.fixture
def tiny(tmp_path):
    """Function of overrides to a checked tiny config whose folders lie under tmp_path."""

    def make(*overrides: str) -> Config:
        config = copy.deepcopy(composed(*TINY, *overrides))
        config.paths.runs, config.paths.results = str(tmp_path / "runs"), str(tmp_path / "results")
        return config

    return make


@pytest.fixture
def tiny_overrides(tmp_path):
    """The same as a command line."""
    return [*TINY, f"paths.runs={tmp_path / 'runs'}", f"paths.results={tmp_path / 'results'}"]


@pytest.fixture(scope="session")
def corpus():
    return data.load("pydoc", None, None)


@pytest.fixture
def undraw(monkeypatch):
    """Function after which a report in this process is its tables alone: drawing takes ten times as long as all else."""

    def spare() -> None:
        monkeypatch.setattr("spectral_mup.analysis.figures.FIGURES", {})
        monkeypatch.setattr("spectral_mup.analysis.diagnostics.DIAGNOSTICS", {})

    return spare


def require_slurm() -> None:
    """Skip where SLURM is not installed; fail instead under REQUIRE_SLURM=1, since a green run would prove nothing."""
    if missing := SlurmCluster.missing():
        stop = pytest.fail if os.environ.get("REQUIRE_SLURM") == "1" else pytest.skip
        stop(f"not installed: {', '.join(missing)}; {APT}")


@pytest.fixture(scope="session")
def short_folder():
    """Function that makes an empty folder whose path is short enough for unix sockets. At the end all are removed, and what a
    failed test has left running in them is stopped."""
    made = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="sl", dir="/tmp")))
        return made[-1]

    yield make
    for folder in made:
        with contextlib.suppress(FileNotFoundError):
            SlurmCluster(folder).stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_cluster(short_folder):
    """The SlurmCluster of this pytest process; tests take it as `slurm`."""
    require_slurm()
    with SlurmCluster(short_folder()) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster):
    """The cluster with an empty queue, all daemons up and all nodes idle, whatever the test before has broken."""
    yield slurm_cluster
    slurm_cluster.clean()


@pytest.fixture
def slurm_with(short_folder):
    """Function of SlurmCluster's settings to a cluster of its own, stopped after the test."""
    require_slurm()
    with contextlib.ExitStack() as clusters:
        yield lambda **settings: clusters.enter_context(SlurmCluster(short_folder(), **settings))


def first_point(config: Config, rule: str = "spectral", width: int | None = None, log2_lr: float = -6, seed: int = 0) -> Point:
    sweep: Sweep = open_sweep(config)
    return sweep.point(Curve(rule, width or config.sweep.width[0], config.sweep.depth[0]), log2_lr, seed)


def run_point(point: Point, runs: Path, corpus, **kwargs):
    """Claim the Point's folder and train it here."""
    folder = RunFolder(runs, point.run_id)
    folder.write_config(point.science)
    folder.claim()
    return folder, train(point.science, folder, corpus, device=torch.device("cpu"), log_every=4, **kwargs)


MATRICES = [(16, 16), (32, 8), (8, 32), (16, 16), (64, 48)]


def parameters(shapes=MATRICES, seed: int = 0, dtype=torch.float32) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in shapes]


def gradients(weights: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Noise that depends on the step, and a pull to 0 that depends on the weights."""
    g = torch.Generator().manual_seed(100 + step)
    return [torch.randn(w.shape, generator=g, dtype=w.dtype) + 0.1 * w.detach() for w in weights]


def sampled_gradients(weights: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Stands for the gradient on sampled labels."""
    g = torch.Generator().manual_seed(9000 + step)
    return [0.1 * torch.randn(w.shape, generator=g, dtype=w.dtype) for w in weights]


def descend(optimizer, params, steps: int, start: int = 0, tokens: int = 64) -> None:
    """Take `steps` steps on `gradients`, as the trainer does for an optimizer that wants sampled labels too."""
    for step in range(start, start + steps):
        if isinstance(optimizer, UsesSampledLabels) and step % optimizer.hessian_interval == 0:
            for p, gradient in zip(params, sampled_gradients(params, step), strict=True):
                p.grad = gradient
            optimizer.update_hessian(tokens)
        for p, gradient in zip(params, gradients(params, step), strict=True):
            p.grad = gradient
        optimizer.step()
