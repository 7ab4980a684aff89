"""Who holds a run, and whether they live: every row of the table, and what is behind the words of its columns."""

import inspect
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from spectral_mup.cluster import slurm_commands as commands
from spectral_mup.cluster.liveness import SILENT_SECONDS, heartbeat_of, lives, may_hold, silence
from spectral_mup.cluster.slurm_commands import JobStart, current_job
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.util import processes
from spectral_mup.util.processes import UNSEEN, lives_here, this_process

HERE, THERE = this_process(), this_process() | {"host": "n1"}


def rows_of(doc: str) -> list[list[str]]:
    """The cells of the table in a docstring, whose columns are where its header is underlined."""
    _, underlines, *lines = inspect.cleandoc(doc).split("\n\n")[1].splitlines()
    columns = [underline.span() for underline in re.finditer("-+", underlines)]
    return [[line[start:end].strip() for start, end in columns] for line in lines]


ROWS = rows_of(lives.__doc__ or "")
WRITERS = {  # what owner.json says; those who ask are the second start of the task 8_0
    "an earlier start of my job": THERE | {"slurm": {"job": "8_0", "restart": 0}},
    "a process that I see": HERE,
    "a process that I see has ended": HERE | {"pid": 1},
    "another process of my job": THERE | {"slurm": {"job": "8_0", "restart": 1}},
    "another job": THERE | {"slurm": {"job": "7_0", "restart": 1}},
    "a process that I cannot see": THERE,
}
SAYINGS = {
    "it runs": ["7_0|x|RUNNING|None|0|1|n1|", "7_0|x|COMPLETING|None|0|1|n1|", "7_0|x|A_STATE_OF_LATER_VERSIONS|None|0|1|n1|"],
    "it waits to start again": ["7_0|x|PENDING|BeginTime|0|2||"],
    "it was started again": ["7_0|x|RUNNING|None|0|2|n2|"],
    "it has ended": ["7_0|x|FAILED|None|256|1|n1|"],
    "no such job": ["slurm_load_jobs error: Invalid job id specified", "7_1|x|RUNNING|None|0|1|n1|"],
    "nothing": ["Unable to contact slurm controller (connect failure)"],
}
BEATS = {"young": [0.0, SILENT_SECONDS - 1], "silent": [SILENT_SECONDS + 1, 1e6], "unreadable": [None]}


@pytest.fixture
def slurm(monkeypatch):
    """Function of what squeue says from now on; its commands are in `asked`."""
    asked: list[tuple[str, ...]] = []

    def say(text: str) -> None:
        def call(*command: str, **_) -> subprocess.CompletedProcess[str]:
            asked.append(command)
            refused = "error" in text or "Unable" in text
            return subprocess.CompletedProcess(command, refused, "" if refused else text, text if refused else "")

        monkeypatch.setattr(commands, "call", call)

    say.asked = asked  # type: ignore[attr-defined]
    return say


def test_the_table_is_the_same_as_every_compiler_keeps_it():
    """From Python 3.13 on a docstring has no indentation, before that its own."""
    doc = lives.__doc__ or ""
    assert len(ROWS) == 16 and rows_of(inspect.cleandoc(doc)) == rows_of(doc.replace("\n", "\n    ")) == ROWS


def test_the_table_has_a_row_for_everything():
    assert {row[0] for row in ROWS} == {*WRITERS} and {row[1] for row in ROWS} == {*SAYINGS, ""}
    assert {row[2] for row in ROWS} == {*BEATS, ""} and {row[3] for row in ROWS} == {"yes", "no", "unknown"}


@pytest.mark.parametrize("row", ROWS, ids=" | ".join)
def test_each_row_holds_whatever_its_empty_columns_are(row, slurm):
    writer, said, beat, expected = row
    for text in SAYINGS[said] if said else sum(SAYINGS.values(), []):
        slurm(text)
        for seconds in BEATS[beat] if beat else sum(BEATS.values(), []):
            found = lives(WRITERS[writer], lambda: seconds, JobStart("8_0", 1))  # noqa: B023
            assert found is {"yes": True, "no": False, "unknown": None}[expected], (text, seconds)


def test_a_process_that_cannot_be_seen_is_one_of_another_machine_boot_or_container_or_hidden(monkeypatch):
    assert lives_here(HERE) is True and lives_here({k: v for k, v in HERE.items() if k != "pids"}) is True
    for other in ({"host": "n1"}, {"start": "another-boot:17"}, {"pids": "pid:[1]"}):
        assert lives_here(HERE | other) is None, other
    real = processes.process_start
    monkeypatch.setattr(processes, "process_start", lambda pid: real(pid) if pid == os.getpid() else UNSEEN)
    assert lives_here(HERE | {"pid": 1}) is None, "/proc is mounted with hidepid and the process is another user's"


def test_the_disk_s_clock_tells_how_long_a_heartbeat_is_silent(tmp_path):
    """Of hosts it may be ten minutes off: what they wrote into the file counts for nothing."""
    beat = tmp_path / "heartbeat.json"
    for claimed in (0.0, 4e9):
        beat.write_text(json.dumps({"time": claimed}))
        age = silence(beat)
        assert age is not None and 0 <= age < 60
    os.utime(beat, (0, beat.stat().st_mtime - 1000))
    age = silence(beat)
    assert age is not None and 1000 <= age < 1060
    assert silence(tmp_path / "none") is None and silence(tmp_path / "no" / "folder") is None
    assert [p.name for p in tmp_path.iterdir()] == ["heartbeat.json"]


def edit(folder: RunFolder, **changed) -> Path:
    """Change what the latest owner.json says; the attempt's folder."""
    path = folder.path / "attempts" / str(folder.attempts()[-1]) / "owner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path.parent


def test_a_run_of_a_container_that_is_gone_is_free_once_it_has_been_silent(tmp_path):
    dead, other = RunFolder(tmp_path, "run"), RunFolder(tmp_path, "run")
    dead.claim()
    dead.write_heartbeat()
    attempt = edit(dead, host="a1b2c3")
    with pytest.raises(ClaimedError, match=r"process \d+ on a1b2c3"):
        other.claim(lambda owner: may_hold(other, owner))
    assert heartbeat_of(dead) == attempt / "heartbeat.json"
    past = (attempt / "heartbeat.json").stat().st_mtime - SILENT_SECONDS - 1
    os.utime(attempt / "heartbeat.json", (past, past))
    other.claim(lambda owner: may_hold(other, owner))
    with pytest.raises(ClaimedError, match="taken over"):
        dead.append("metrics.jsonl", [{"step": 1}])


def test_a_job_is_known_by_its_id_whoever_it_is_of_and_whatever_it_is_called(tmp_path, slurm, monkeypatch):
    """cluster=local in one's own batch job or in an allocation, seen from another node, and by another user."""
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert current_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert current_job() == JobStart("12", 0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert current_job() == JobStart("12", 2)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert current_job() == JobStart("12_3", 2)
    folder = RunFolder(tmp_path, "run")
    folder.claim(slurm={"job": "12", "restart": 0})
    owner = THERE | {"slurm": {"job": "12", "restart": 0}}
    monkeypatch.setenv("LOGNAME", "somebody")
    slurm("12|bash|RUNNING|None|0|0|n1|")
    assert may_hold(folder, owner)
    slurm("12|my|job|TIMEOUT|TimeLimit|0|0|n1|")
    assert not may_hold(folder, owner)
    assert all("--jobs=12" in command and not any("user" in word for word in command) for command in slurm.asked)
