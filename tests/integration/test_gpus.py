"""Launches on a machine whose GPUs a script in place of nvidia-smi lists; torch sees none, so workers train on the CPU."""

import json
import os

import pytest
from support.gpus import fake_nvidia_smi
from support.launches import Launch, ended
from support.runs import TINY

RUNS = [*TINY, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-8,-7,-6,-5]", "lr.adaptive=false", "cluster.workers=null"]
pytestmark = pytest.mark.usefixtures("nothing_left")


def on_gpus(tmp_path, count: int, *overrides: str, **env: str) -> Launch:
    path = f"{fake_nvidia_smi(tmp_path / f'bin{count}', count)}:{os.environ['PATH']}"
    return Launch(tmp_path, [*RUNS, *overrides], env={"PATH": path} | env)


def test_workers_are_counted_by_gpu(tmp_path):
    launch = on_gpus(tmp_path, 4, "cluster.per_gpu=2", CUDA_VISIBLE_DEVICES="2")
    assert launch.wait() == 0, launch.err
    assert "To train them: 2 workers on 1 GPU (cluster.per_gpu=2)" in launch.out
    runs = ended(launch.runs)
    owners = {json.loads((run / "attempts/1/owner.json").read_text())["pid"] for run in runs}
    assert len(runs) == 4 and len(owners) == 2


def test_no_gpu_is_one_line_before_anything_starts(tmp_path):
    for number, (count, overrides, visible, key) in enumerate(
        [
            (0, ["cluster.device=cuda"], "0", "cluster.device=cuda"),
            (1, ["cluster.device=cuda"], "", "cluster.device=cuda"),
            (2, ["train.devices=2"], "1", "train.devices=2"),
        ]
    ):
        launch = on_gpus(tmp_path, count, *overrides, CUDA_VISIBLE_DEVICES=visible)
        assert launch.wait() == 2 and launch.number == number
        assert launch.err.startswith(f"error: {key}: ") and launch.err.count("\n") == 1
    assert not launch.runs.exists()


FAULTY = """
import torch

class Faulty(torch.optim.SGD):
    def step(self, closure=None):
        if MISTAKE:
            raise RuntimeError(MISTAKE)
        return super().step(closure)
"""


@pytest.mark.parametrize(("error", "survives"), [("CUDA error: an illegal memory access", False), ("a mistake", True)])
def test_a_worker_whose_gpu_is_broken_trains_no_other_run(error, survives, tmp_path):
    module = FAULTY.replace("if MISTAKE", "if self.param_groups[0]['base_lr'] > 2**-6.5").replace("MISTAKE", repr(error))
    (tmp_path / "faulty.py").write_text(module)
    launch = Launch(
        tmp_path,
        [*RUNS, "optimizer=sgd", "optimizer.algorithms.sgd.target=faulty.Faulty", "sweep.lr=[-7,-6]", "sweep.seed=[0,1]",
         "cluster.workers=1"],
    )  # fmt: skip
    assert launch.wait() == 1, launch.err
    pids = [json.loads(path.read_text())["pid"] for path in launch.runs.glob("*/attempts/1/owner.json")]
    assert len(ended(launch.runs)) == 2 and len(pids) == 4 and (len(set(pids)) == 1) == survives
