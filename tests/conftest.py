"""Shared by all tests: one thread (bit-equal runs), and tiny configs on text that is always there."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

os.environ["WANDB_ERROR_REPORTING"] = "false"

import pytest
import torch
from support.launches import leftovers
from support.runs import TINY, composed
from support.slurm_cluster import SlurmCluster, require_slurm

from spectral_mup import data
from spectral_mup.config.schema import Config

NOBODY = 65534
LONGEST = """
test_slurm_faults test_local test_slurm_submit test_feature_laws test_local_team test_gpu_check test_slurm_ranks test_laws
test_slurm_soak test_slurm test_wheel test_tutorial test_slurm_cluster test_sweep_in_python test_wandb test_depth_rules
test_how_to_add test_analyze test_report test_team test_derive test_time_to_verdict test_gpus
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left to run alone at the end."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def nothing_left(tmp_path):
    """After the test every process that its launches started is gone, those of their jobs too, and every mount."""
    yield
    assert not (left := leftovers(tmp_path)), f"processes were left: {left}"
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.fixture
def no_root():
    """An empty folder that another user than root owns, who runs the test in root's place; tests of permissions need one."""
    folder = Path(tempfile.mkdtemp(prefix="no_root", dir="/tmp"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield folder
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)


@pytest.fixture
def tiny(tmp_path):
    """Function of overrides to a checked tiny config whose folders lie under tmp_path."""

    def make(*overrides: str) -> Config:
        config = composed(*TINY, *overrides)
        paths = config.paths.model_copy(update={"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")})
        return config.model_copy(update={"paths": paths})

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
        monkeypatch.setattr("spectral_mup.analysis.report.draw_figures", lambda *_: None)

    return spare


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
