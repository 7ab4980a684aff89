"""Tasks with GPUs, which the tests' SLURM only counts and a script in place of nvidia-smi lists."""

import json
import re
from pathlib import Path

import pytest
from support.gpus import fake_nvidia_smi
from support.runs import TINY
from support.slurm_sweeps import Site

RUNS = [*TINY, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-8,-7,-6,-5]", "lr.adaptive=false", "cluster.workers=null"]


def with_gpus(tmp: Path, count: int) -> list[str]:
    """Overrides of a site whose jobs find so many GPUs on their node."""
    preamble = tmp / "preamble.sh"
    preamble.write_text(f'export PATH="{fake_nvidia_smi(tmp / "bin", count)}:$PATH"\nunset CUDA_VISIBLE_DEVICES\n')
    return ["cluster.gpus=2", f"cluster.preamble={preamble}"]


@pytest.mark.slow
def test_several_runs_share_each_gpu_of_a_task(slurm, tmp_path):
    site = Site(tmp_path, slurm)
    overrides = [*RUNS, "cluster.per_gpu=2", *with_gpus(tmp_path, 2)]
    launch = site.call(overrides)
    assert launch.code == 0 and re.search(r"4 +1 .* 4 workers on 2 GPUs \(cluster\.per_gpu=2\)", launch.out)
    site.until(overrides, "the end", lambda s: s == {"done": 4})
    assert "4 workers on 2 GPUs (cluster.per_gpu=2)" in site.log()
    owners = [owner for attempts in site.attempts().values() for owner in attempts]
    assert len(owners) == len({owner["pid"] for owner in owners}) == 4
    timing = [json.loads(p.read_text()) for p in site.runs.glob("*/timing.json")]
    assert {(t["device"], t["devices"], t["memory"]) for t in timing} == {("cpu", 1, None)}


@pytest.mark.slow
def test_a_task_that_does_not_see_its_gpus_says_so_and_trains_nothing(slurm, tmp_path):
    site = Site(tmp_path, slurm)
    overrides = [*RUNS, "cluster.retries=0", *with_gpus(tmp_path, 0)]
    assert site.call(overrides).code == 0
    site.until(overrides, "the failure", lambda s: s == {"failed": 4})
    assert "cluster.gpus=2: nvidia-smi lists none on " in site.log()
    assert not list(site.runs.glob("*/metrics.jsonl"))
