"""What is read from SLURM's commands, and what a site prints beside it."""

import os
import subprocess
from pathlib import Path

import pytest

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.errors import ConfigError
from spectral_mup.util.system import user_name

NOTICES = "Welcome to the cluster!\n\nMaintenance on 2026-12-01 | see https://x/y?a=b | storage | is | at | 97 % |\n"
MORE = "2026\nslurm: note: account=project is at 90% of its hours\n||||||||\n"


@pytest.fixture
def says(monkeypatch):
    """Function of what every command prints and exits with from now on; the commands are in `called`."""
    called: list[tuple[str, ...]] = []

    def say(out: str, code: int = 0, err: str = "") -> None:
        def call(*command: str, **_) -> subprocess.CompletedProcess[str]:
            called.append(command)
            return subprocess.CompletedProcess(command, code, out, err)

        monkeypatch.setattr(slurm, "call", call)

    say.called = called  # type: ignore[attr-defined]
    return say


QUEUE = "7_0|spectral_mup-a|RUNNING|None|0|1|n1|\n7_1|spectral_mup-a|PENDING|Priority||0||\n8|my|job|FAILED|None|256|0|n1|\n"
ACCOUNTS = "7_0|spectral_mup-a|COMPLETED|0:0|n1\n7_[1-2%1]|spectral_mup-a|CANCELLED by 1000|0:15|None assigned\n"
CONFIG = "Configuration data as of 2026-11-28T06:00:00\nMaxArraySize            = 11\n"
READ = {  # a command's reader, and what the command prints
    "squeue": (slurm.squeue, QUEUE),
    "sacct": (lambda: slurm.sacct(["spectral_mup-a"], 0), ACCOUNTS),
    "scontrol show config": (slurm.settings, CONFIG),
    "scontrol show partition": (slurm.partitions, "PartitionName=main AllowGroups=ALL\nPartitionName=high GraceTime=5\n"),
    "sacctmgr": (slurm.limits, "project|gpu|normal,long|8|100\nother||||\n"),
}


@pytest.mark.parametrize("name", READ)
def test_notices_before_between_and_after_the_lines_are_skipped(says, name):
    read, text = READ[name]
    says(text)
    plain = read()
    lines = text.splitlines(keepends=True)
    assert len(plain) >= 2
    for noisy in (NOTICES + text, text + MORE, lines[0] + NOTICES + "".join(lines[1:]), NOTICES + MORE + text):
        says(noisy)
        found = read()
        assert {k: found[k] for k in plain} == plain if isinstance(plain, dict) else found == plain
        assert len(found) == len(plain) or name == "scontrol show config"  # of which nobody reads other names


def test_the_fields_are_read_as_they_are_printed(says):
    says(QUEUE)
    tasks = slurm.squeue()
    assert [(t.state, t.exit_code, t.restarts, t.node) for t in tasks.values()] == [
        ("RUNNING", 0, 1, "n1"), ("PENDING", 0, 0, ""), ("FAILED", 1, 0, "n1"),
    ]  # fmt: skip
    assert tasks["8"].name == "my|job"
    says(ACCOUNTS)
    assert {job: task.state for job, task in slurm.sacct(["x"], 0).items()} == {
        "7_0": "COMPLETED", "7_1": "CANCELLED", "7_2": "CANCELLED",
    }  # fmt: skip


@pytest.mark.parametrize(
    "printed, job",
    [
        ("12\n", "12"),
        ("12;cluster\n", "12"),
        (f"{NOTICES}12\n", "12"),
        ("12\nThank you for computing with us\n", "12"),
        (f"{NOTICES}\n", None),
        ("2026\n12\n", None),
        ("job-12\n", None),
    ],
)
def test_a_job_s_id_is_digits_alone_on_one_line_only(says, printed, job):
    says(printed)
    assert slurm.sbatch(Path("submit.sh")) == job


def test_one_s_own_jobs_are_asked_for_by_user_id_and_others_by_job_id(says, monkeypatch):
    for name in ("LOGNAME", "USER", "USERNAME"):
        monkeypatch.setenv(name, "somebody_else")
    says(QUEUE)
    slurm.squeue()
    slurm.squeue(["7", "9"])
    says(ACCOUNTS)
    slurm.sacct(["x"], 0, [7, os.getuid()])
    own, jobs, accounts = says.called
    assert f"--user={os.getuid()}" in own and "--jobs=7,9" in jobs and not any("--user" in word for word in jobs)
    assert f"--user={','.join(map(str, sorted({7, os.getuid()})))}" in accounts
    assert "somebody_else" not in " ".join(map(str, says.called)) and user_name() != "somebody_else"


def test_that_no_job_of_an_id_is_known_is_an_answer_and_silence_is_none(says):
    says("", 1, "slurm_load_jobs error: Invalid job id specified")
    assert slurm.squeue(["7"]) == {}
    with pytest.raises(slurm.NoAnswer):
        slurm.squeue()
    says("", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(slurm.NoAnswer):
        slurm.squeue(["7"])


def test_a_site_without_job_arrays_is_told_so(says):
    says("MaxArraySize            = 0\n")
    with pytest.raises(ConfigError, match=r"MaxArraySize=0: the site has job arrays switched off; .*cluster=local"):
        slurm.max_array_size()
    says(CONFIG)
    assert slurm.max_array_size() == 11
    says("", 1, "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)")
    assert slurm.max_array_size() == 1001


def test_no_option_that_the_user_s_shell_has_for_a_command_reaches_ours(monkeypatch):
    """As SINFO_PARTITION, which would hide the nodes of all other partitions."""
    for command in ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo"):
        monkeypatch.setenv(f"{command.upper()}_PARTITION", "high")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    passed = slurm.environment()
    assert [name for name in passed if name.endswith("_PARTITION") or name.startswith("SLURM_")] == ["SLURM_CONF"]


def test_what_is_no_text_in_a_job_s_name_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_bytes(b"#!/bin/sh\necho '8|f\xfcr|RUNNING|None|0|0|n1|'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert [task.state for task in slurm.squeue().values()] == ["RUNNING"]
