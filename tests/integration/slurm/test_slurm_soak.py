"""The fault soak of benchmarks/, with few runs and for half a minute."""

import re
import subprocess
import sys

import pytest
from support import ROOT
from support.slurm_cluster import require_slurm


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_ends_like_an_unbroken_one_though_everything_breaks():
    require_slurm()
    command = [sys.executable, ROOT / "benchmarks/soak.py", "--minutes", "0.5", "--runs", "16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = re.search(r"^(\d+) faults: ", done.stdout, re.M)
    assert faults and int(faults[1]), done.stdout
