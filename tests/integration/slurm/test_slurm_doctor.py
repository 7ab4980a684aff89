"""What action=doctor says of a real SLURM, and of one that is wrong or not there."""

import re
import subprocess

import pytest
from support.runs import TINY
from support.slurm_cluster import SlurmCluster
from support.slurm_sweeps import Site

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm import doctor


def said(site: Site, *overrides: str, **more) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and by subject the mark and what was found."""
    launch = site.call([*TINY, "action=doctor", *overrides], **more)
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in launch.out.splitlines()[:-1]]
    assert all(len(row) == 2 for row in rows), launch.out + launch.err
    return launch.code, {what[2:]: (what[0], found) for what, found in rows}


@pytest.fixture
def site(tmp_path, slurm):
    return Site(tmp_path, slurm)


def test_what_a_site_offers_is_told(slurm_with, tmp_path):
    cluster: SlurmCluster = slurm_with(nodes=1, max_array=11, grace=15)
    code, found = said(Site(tmp_path, cluster))
    assert code == 0 and {mark for mark, _ in found.values()} <= set("✓·!"), found
    assert found["MaxArraySize"][0] == "·" and found["MaxArraySize"][1].startswith("11: ")
    assert "1 nodes of 8 cores, 32000 MB, gpu:4, preempted by REQUEUE with 15 s of grace" in found["partition main*"][1]
    assert found["partition high"][1].endswith("gpu:4")
    assert found["accounting"] == ("✓", "sacct answers") and "preemption signal" not in found and "clock" not in found


def test_what_is_wrong_is_told_and_is_the_exit_code(site):
    code, found = said(site, "cluster.partition=nowhere", "wandb.mode=online")
    assert code == 1 and found["partition"] == ("✗", "nowhere: no such partition")
    assert found["W&B"] == ("!", "no key in WANDB_API_KEY or ~/.netrc: run `wandb login` on this machine")
    site.cluster.stop_slurmdbd()
    code, found = said(site)
    assert code == 0 and found["accounting"][0] == "!" and "refused" in found["accounting"][1]


def test_limits_of_an_account_are_told(monkeypatch):
    """The tests' SLURM has no associations of users: its database lacks stored procedures."""
    rows = "project|gpu|normal,long|8|100\nother||||\n"
    monkeypatch.setattr(slurm, "call", lambda *command, **_: subprocess.CompletedProcess(command, 0, rows, ""))
    assert [(f.subject, f.message) for f in doctor.limits()] == [
        ("account project", "at most 100 jobs submitted; at most 8 jobs running in partition gpu; qos normal,long"),
        ("account other", "no limit on jobs; qos none"),
    ]
    monkeypatch.setattr(slurm, "call", lambda *command, **_: subprocess.CompletedProcess(command, 1, "", "no database"))
    assert list(doctor.limits()) == []


def test_limits_that_nobody_enforces_are_not_told(monkeypatch, tiny):
    monkeypatch.setattr(slurm, "call", lambda *command, **_: subprocess.CompletedProcess(command, 0, "project||||\n", ""))
    for enforced in ("none", "associations,limits"):
        found = doctor.check_settings({slurm.NOW: "", "AccountingStorageEnforce": enforced}, tiny("cluster=slurm"))
        assert ("account project" in {f.subject for f in found}) == (enforced != "none")


def test_a_clock_that_is_off_is_told(monkeypatch, tiny):
    config = tiny("cluster=slurm")
    monkeypatch.setattr(slurm, "call", lambda *command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    for off, told in ((-600, True), (0, False), (600, True)):
        settings = {slurm.NOW: doctor.time.strftime("%Y-%m-%dT%H:%M:%S", doctor.time.localtime(doctor.time.time() + off))}
        assert ("clock" in {f.subject for f in doctor.check_settings(settings, config)}) == told
