"""What action=doctor says of what jobs are given, from the login node alone."""

import os
from pathlib import Path

import pytest
from support.runs import composed
from support.slurm_sweeps import FIXED, ON_SLURM

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm import doctor, snapshot
from spectral_mup.cluster.slurm.doctor import GOOD, KNOW, LOOK, WRONG
from spectral_mup.cluster.slurm.snapshot import snapshot_code
from spectral_mup.util.system import user_name


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Function of cluster keys to marks and messages by subject, for a launch from an empty folder of an installed package."""
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOGNAME", user_name())
    package = tmp_path / "site-packages/spectral_mup"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def say(**keys: str) -> dict[str, tuple[str, str]]:
        config = composed(*ON_SLURM, *FIXED)
        paths = config.paths.model_copy(update={"jobs": str(tmp_path / "jobs")})
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update=keys), "paths": paths})
        return {found.subject: (found.mark, found.message) for found in doctor.given_to_jobs(config)}

    return say


def test_where_all_is_well_little_is_said(said):
    assert said() == {"snapshot": (GOOD, "0.0 MB of code")}


def test_a_shell_s_name_and_variables_are_told(said, monkeypatch):
    for name, value in (("LOGNAME", "somebody"), ("SBATCH_ACCOUNT", "project"), ("SBATCH_TIMELIMIT", "1")):
        monkeypatch.setenv(name, value)
    found = said()
    assert found["user"][0] == KNOW and "LOGNAME=somebody" in found["user"][1]
    assert found["SBATCH_ACCOUNT"] == (KNOW, "project: jobs are submitted with it")
    assert found["SBATCH_TIMELIMIT"][0] == LOOK and said(account="mine")["SBATCH_ACCOUNT"][0] == LOOK


def test_a_spoilt_copy_and_too_much_code_are_told(said, tmp_path):
    code = snapshot_code(tmp_path / "jobs")
    assert said()["snapshot"][0] == GOOD
    (tmp_path / "jobs/code" / code / "random.py").write_text("")
    assert said()["snapshot"][0] == LOOK and "new copy" in said()["snapshot"][1]
    Path("sweeps").mkdir()
    with open("sweeps/model.pt", "wb") as f:
        f.truncate(5_000_000_000)
    assert said()["snapshot"][0] == WRONG and "sweeps/model.pt" in said()["snapshot"][1]


def test_modules_that_python_has_and_a_folder_of_everybody_are_told(said):
    Path("random.py").write_text("")
    Path("mine.py").write_text("")
    assert said()["modules"] == (LOOK, "random.py: named as modules of Python, which jobs import instead; rename")
    assert "launch folder" not in said()
    Path.cwd().chmod(0o1777)
    assert said()["launch folder"][0] == LOOK


def test_a_preamble_that_bash_cannot_read_is_told(said):
    Path("site.sh").write_text("set -euo pipefail\nmodule purge\n")
    assert said(preamble="site.sh")["preamble"] == (GOOD, "bash can read site.sh")
    Path("site.sh").write_text("if true; then\n")
    assert said(preamble="site.sh")["preamble"][0] == WRONG and "syntax error" in said(preamble="site.sh")["preamble"][1]
    assert said(preamble="none.sh")["preamble"] == (WRONG, "no such file; slurm/ has an example")


def test_a_site_without_job_arrays_is_told(tiny, monkeypatch):
    monkeypatch.setattr(doctor, "_partitions", lambda name: iter(()))
    for size, mark in (("0", WRONG), ("1001", KNOW)):
        found = {f.subject: f for f in doctor.check_settings({slurm.NOW: "", "MaxArraySize": size}, tiny("cluster=slurm"))}
        assert found["MaxArraySize"].mark == mark and ("switched off" in found["MaxArraySize"].message) == (mark == WRONG)


def test_hidden_jobs_of_others_are_told(monkeypatch, tiny):
    monkeypatch.setattr(doctor, "_partitions", lambda name: iter(()))
    for private, told in (("jobs,users", True), ("none", False)):
        found = doctor.check_settings({slurm.NOW: "", "PrivateData": private}, tiny("cluster=slurm"))
        assert ("PrivateData" in {f.subject for f in found}) == told
