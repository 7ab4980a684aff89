"""Who holds a run, asked of a real SLURM by a user whose shell has another name: by job id, and by no name."""

import json
import os
import sys

import pytest
from support.launches import until
from support.slurm_sweeps import FIXED, HELD, Site

from spectral_mup.cluster import slurm_commands as commands
from spectral_mup.cluster.liveness import may_hold
from spectral_mup.runs.run_folder import RunFolder

CLAIM = """
import sys, time
from dataclasses import asdict
from pathlib import Path
from spectral_mup.cluster.slurm_commands import current_job
from spectral_mup.runs.run_folder import RunFolder
RunFolder(Path(sys.argv[1]), "run").claim(slurm=asdict(current_job()))
time.sleep(300)
"""


@pytest.fixture
def site(tmp_path, slurm, monkeypatch):
    for name, value in (slurm.env() | {"LOGNAME": "somebody", "USER": "somebody"}).items():
        monkeypatch.setenv(name, value)
    return Site(tmp_path, slurm)


@pytest.mark.parametrize("options, job", [([], "{id}"), (["--array=3"], "{id}_3"), (["--job-name=my|own"], "{id}")])
def test_the_holder_in_a_job_of_one_s_own_lives_as_long_as_the_job(site, options, job):
    """As seen from another node, where the process table says nothing."""
    program = site.tmp / "claim.py"
    program.write_text(CLAIM)
    wrap = f"--wrap={sys.executable} {program} {site.runs}"
    told = site.cluster.run("sbatch", "--parsable", "--output=/dev/null", *options, wrap).strip()
    folder = RunFolder(site.runs, "run")
    owner = until(folder.owner, "the claim") | {"host": "another"}
    assert owner["slurm"] == {"job": job.format(id=told), "restart": 0}
    os.utime(site.runs / "run/attempts/1/owner.json", (0, 0))
    assert may_hold(folder, owner)
    site.cluster.run("scancel", told)
    until(lambda: not may_hold(folder, owner), "the end of the job")


def test_one_s_jobs_are_found_whatever_the_shell_calls_one(site):
    pair = [*FIXED, "rule=[spectral]", "sweep.lr=[-6]"]
    other = {"LOGNAME": "somebody", "USER": "somebody"}
    assert site.call([*pair, HELD], env=other).code == 0
    assert site.states(pair) == {"queued": 2}
    submission = site.numbered()[0] / "submission.json"
    submission.write_text(json.dumps(json.loads(submission.read_text()) | {"created": 0.0}))  # so that it could be lost
    assert site.states(pair) == {"queued": 2}
    job = json.loads((site.numbered()[0] / "job.json").read_text())["id"]
    assert {*commands.squeue()} >= {*commands.squeue([job])} == {f"{job}_0", f"{job}_1"}
    assert commands.squeue(["999999"]) == {} and {*commands.squeue([job, "999999"])} == {f"{job}_0", f"{job}_1"}
