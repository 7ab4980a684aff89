"""Which GPUs a process may use, by what nvidia-smi answers and CUDA_VISIBLE_DEVICES says."""

import subprocess

import pytest
from support.gpus import nvidia_smi

from spectral_mup.errors import Unanswered
from spectral_mup.util import gpus
from spectral_mup.util.gpus import visible_gpus

TWO = ["GPU-aaaa-1", "GPU-bbbb-2"]

CASES = {
    None: TWO,
    "": [],
    "-1": [],
    "NoDevFiles": [],
    "1": ["1"],
    "1,0": ["1", "0"],
    " 0 , 1 ": ["0", "1"],
    "0,7,1": ["0"],  # as CUDA does
    "GPU-bbbb-2": ["GPU-bbbb-2"],
    "GPU-bb": ["GPU-bb"],
    "GPU-cccc": [],
    "MIG-dddd": ["MIG-dddd"],
}


@pytest.mark.parametrize("named", CASES)
def test_cuda_visible_devices_is_heeded_and_its_names_are_kept(monkeypatch, named):
    nvidia_smi(monkeypatch, 2, uuids=TWO)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [gpu.id for gpu in visible_gpus()] == CASES[named]


def test_memory_is_that_of_the_gpu_named_and_unknown_where_nobody_says(monkeypatch):
    answer = "0, GPU-a, 1000, NVIDIA A\n1, GPU-b, 2000, NVIDIA B, 2nd\n2, GPU-c, [N/A], NVIDIA C\n"
    monkeypatch.setattr(gpus, "ask_nvidia_smi", lambda: answer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,0,MIG-x,2")
    found = visible_gpus()
    assert [gpu.free for gpu in found] == [2000 * 2**20, 1000 * 2**20, 0, 0]
    assert [gpu.name for gpu in found][:2] == ["NVIDIA B, 2nd", "NVIDIA A"]


def test_without_nvidia_smi_or_its_driver_there_is_none_whatever_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,MIG-x")
    monkeypatch.setattr(gpus, "QUERY", (str(tmp_path / "nvidia-smi"),))
    assert visible_gpus() == []
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "$ANSWER"\nexit $CODE\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("CODE", "9")
    monkeypatch.setenv("ANSWER", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    assert visible_gpus() == []
    monkeypatch.setenv("ANSWER", "0, GPU-a, 1000, NVIDIA A")  # as where another GPU is lost
    assert [gpu.id for gpu in visible_gpus()] == ["0", "MIG-x"]


def test_an_nvidia_smi_that_hangs_is_no_machine_without_gpus(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(Unanswered, match="cluster.device=cpu"):
        visible_gpus()
