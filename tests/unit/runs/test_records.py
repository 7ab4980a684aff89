"""Laws of damaged records: named in a line, of no weight to others, in the way of nobody once they are put aside."""

import json
import os
from pathlib import Path

import pytest
from support.cli import DIVERGED, RESULT, call, finish, planned
from support.launches import snapshot
from support.runs import bury

from spectral_mup.analysis.collect import norm_reader
from spectral_mup.cluster.durations import measured_durations
from spectral_mup.errors import RecordError
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.util.files import MOST_BYTES, read_rows

DEEP = "[" * 100_000 + "]" * 100_000
NOT_A_RESULT = {  # what lies at result.json, and what is said of it
    "cut off": ('{"val', "not JSON"),
    "a list": ("[]", "should be a valid dictionary"),
    "of one field": ('{"status": "done"}', "val_loss: field required"),
    "text for a number": (json.dumps(RESULT | {"val_loss": "3.0"}), "val_loss: input should be a valid number"),
    "a number for text": (json.dumps(RESULT | {"corpus": {"sha256": 3}}), "corpus.sha256: input should be a valid string"),
    "done without a loss": (json.dumps(RESULT | {"val_loss": None}), "val_loss: input should be a valid number"),
    "not a number": (json.dumps(RESULT | {"val_loss": float("nan")}), "not JSON"),
    "nested": (DEEP, "nested too deep"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not JSON"),
    "empty": ("", "not JSON"),
}


def put(path, content) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder_with(tmp_path, content) -> RunFolder:
    folder = RunFolder(tmp_path, "r")
    folder.claim()
    put(folder.path / "result.json", content)
    return folder


@pytest.mark.parametrize("name", NOT_A_RESULT)
def test_what_is_no_result_is_the_runs_error_and_in_its_way_until_it_is_put_aside(tmp_path, name):
    content, said = NOT_A_RESULT[name]
    folder, other = folder_with(tmp_path, content), RunFolder(tmp_path, "r")
    with pytest.raises(RecordError, match=said) as error:
        folder.read("result.json")
    line = str(error.value)
    assert (
        line.startswith(f"{folder.path}/result.json: ") and line.endswith("; action=retry moves it aside") and "\n" not in line
    )
    assert folder.result() is None and folder.error() == f"RecordError: {line}"
    with pytest.raises(RecordError, match=said):
        other.claim()
    folder.archive_error()
    assert (folder.path / "result.json.damaged").exists() and folder.error() is None
    folder.finish(RESULT)
    assert folder.result() == RESULT and folder.error() is None


def test_results_as_they_are_written_are_read(tmp_path):
    more = {"tokens": None, "epochs": None, "more": [1]}
    for i, result in enumerate((RESULT, DIVERGED, RESULT | more, RESULT | {"val_loss": 3})):
        assert folder_with(tmp_path / str(i), json.dumps(result)).result() == result


def too_much(path) -> None:
    path.touch()
    os.truncate(path, MOST_BYTES + 1)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, too_much])
def test_a_folder_a_pipe_or_too_much_where_a_record_should_be_is_refused_at_once(tmp_path, make):
    folder = RunFolder(tmp_path, "r")
    folder.claim()
    make(folder.path / "result.json")
    with pytest.raises(RecordError, match="result.json: (not a regular file|too large); action=retry"):
        folder.read("result.json")
    assert folder.result() is None and "result.json" in folder.error()


@pytest.mark.parametrize("name", ["status.json", "timing.json", "attempts/1/heartbeat.json"])
@pytest.mark.parametrize("content", ["{", '{"time": "now"}', DEEP])
def test_what_no_result_rests_on_counts_as_missing(tmp_path, name, content):
    folder = RunFolder(tmp_path, "r")
    folder.claim()
    put(folder.path / name, content)
    assert folder.peek(name) is None and folder.error() is None
    with pytest.raises(RecordError, match=f"{name}: "):  # the control
        folder.read(name)


def test_who_claims_sweeps_up_what_killed_writers_left_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path, "r")
    folder.claim()
    left = [".result.json.17.0123abcd", "ckpt/.000000009.pt.17.0123abcd", "attempts/1/.heartbeat.json.17.0123abcd"]
    others = [".bashrc", ".result.json.swp", "ckpt/.keep", "notes.txt", "attempts/new", "attempts/²"]
    (folder.path / "ckpt").mkdir()
    for name in (*left, *others):
        (folder.path / name).touch()
    (folder.path / "attempts/new.0123456789abcdef").mkdir()
    bury(folder)
    before = {path.name for path in folder.path.rglob("*")}
    RunFolder(tmp_path, "r").claim()
    after = {path.name for path in folder.path.rglob("*")}
    assert before - after == {Path(name).name for name in left} | {"new.0123456789abcdef"} and after - before == {"2"}


def test_a_claim_that_was_swept_up_is_a_claim_lost(tmp_path, monkeypatch):
    """Of two processes that prepare a claim at once, the slower one finds its folder gone."""
    first, second = RunFolder(tmp_path, "r"), RunFolder(tmp_path, "r")
    real = RunFolder._check_owner

    def overtaken(self, made):
        monkeypatch.setattr(RunFolder, "_check_owner", real)
        first.claim()
        return real(self, made) if made.exists() else None

    monkeypatch.setattr(RunFolder, "_check_owner", overtaken)
    with pytest.raises(ClaimedError, match="claimed by another process just now"):
        second.claim()
    first.finish(RESULT)


def test_a_config_that_was_swept_up_is_a_claim_lost(tmp_path, monkeypatch):
    """Who claims a run removes what other processes have not put in place yet."""
    first, second = RunFolder(tmp_path, "r"), RunFolder(tmp_path, "r")
    real = os.fsync

    def overtaken(descriptor):
        monkeypatch.setattr(os, "fsync", real)
        first.write_config({})
        first.claim()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", overtaken)
    with pytest.raises(ClaimedError, match="claimed by another process just now"):
        second.write_config({})
    first.finish(RESULT)


def test_of_a_run_that_has_no_folder_nothing_is_read(tmp_path, monkeypatch):
    """Hundreds of a new sweep, on a network disk, asked for by each of its tasks."""
    monkeypatch.setattr(RunFolder, "read", lambda *_: pytest.fail("read"))
    folder = RunFolder(tmp_path, "r")
    assert folder.damage() is None and folder.error() is None
    folder.path.mkdir()
    with pytest.raises(pytest.fail.Exception):  # the control
        folder.error()


def test_what_cannot_be_moved_aside_stays_that_run_s_error(no_root):
    """As in a folder of another user: the others that are to be tried again are."""
    folder = RunFolder(no_root, "r")
    folder.claim()
    folder.write_error("ValueError: x")
    folder.path.chmod(0o500)
    folder.archive_error()
    assert folder.error() == "ValueError: x"
    folder.path.chmod(0o700)
    folder.archive_error()
    assert folder.error() is None  # the control


def test_an_owner_that_cannot_be_read_is_nobody_else_and_not_us(tmp_path):
    folder = RunFolder(tmp_path, "r")
    folder.claim()
    owner = json.loads((folder.path / "attempts/1/owner.json").read_text())
    put(folder.path / "attempts/1/owner.json", json.dumps(owner | {"slurm": {"job": "7_0"}}))
    assert "owner.json: slurm.restart: field required" in (folder.error() or "")
    put(folder.path / "attempts/1/owner.json", '{"host": "here"}')
    with pytest.raises(ClaimedError, match="nobody can tell"):
        folder.finish(RESULT)
    with pytest.raises(RecordError, match="owner.json: pid: field required; action=retry"):
        RunFolder(tmp_path, "r").claim()
    folder.archive_error()
    RunFolder(tmp_path, "r").claim()
    assert folder.attempts() == [1, 2]


@pytest.mark.parametrize(
    "line", [DEEP, "[1]", "3", '{"loss": 1}', '{"step": "1"}', '{"step": NaN}', '{"step": 1', b'{"step": 1, "a": "\xe9"}']
)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    put(tmp_path / "norms.jsonl", b'{"step": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"step": 2}\n')
    with pytest.raises(RecordError, match="norms.jsonl, line 2: no row of JSON"):
        list(read_rows(tmp_path / "norms.jsonl"))


DAMAGES = {
    "result.json": NOT_A_RESULT["cut off"][0],
    "config.json": '{"model": ',
    "timing.json": '{"seconds": 1.0}',
    "norms.jsonl": DEEP + "\n",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damaged_run_stops_neither_the_plan_nor_the_analysis_of_the_others(tiny_overrides, tmp_path, undraw, caplog, name):
    undraw()
    argv, folder = [*tiny_overrides, "lr.adaptive=false", "rule=[spectral]"], tmp_path / "runs"
    runs = planned(argv)
    for run in runs:
        finish(run, folder)
    put(folder / runs[0].run_id / name, DAMAGES[name])
    before = snapshot(folder)
    lost = name in ("result.json", "config.json")
    code, out, err = call("launch", *argv, "action=plan")
    assert code == 0 and f"{len(runs) - lost} done, {int(lost)} to do" in out
    code, out, err = call("analyze", *argv)
    assert code == 0 and ("1 run to do" in out) == lost and snapshot(folder) == before
    assert (f"{runs[0].run_id}/{name}" in caplog.text) == (name != "timing.json")
    assert measured_durations(folder, runs, "cpu").run_count == 0 and Results(folder).seconds(runs[0]) == 0
    assert norm_reader(runs, folder)([run.run_id for run in runs]).empty


def test_a_file_in_place_of_the_folder_of_all_runs_is_no_runs_own_matter(tiny_overrides, tmp_path):
    (tmp_path / "runs").touch()
    code, out, err = call("launch", *tiny_overrides, "action=plan")
    assert (code, out) == (2, "") and err.startswith(f"error: {tmp_path}/runs is a file where a folder should be; move it away")


@pytest.mark.parametrize(
    "folder, said", [("/dev/null/x", "/dev/null is a file where a folder should be"), ("/proc/x", "paths.runs=")]
)
def test_a_folder_that_cannot_be_is_said_before_anything_is_trained(tiny_overrides, tmp_path, monkeypatch, folder, said):
    monkeypatch.setattr("spectral_mup.cluster.local.run_local", lambda *_: pytest.fail("it was trained"))
    code, _, err = call("launch", *tiny_overrides, f"paths.runs={folder}")
    assert code == 2 and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert err.endswith(("set paths.runs\n", "; give another path\n"))
    assert not (tmp_path / "results").exists()  # nor does the name stand for it


def test_a_damaged_run_alone_fails_and_retry_trains_it(tiny_overrides, tmp_path):
    """`why` names the file; what waits for the run in `retry` is one run."""
    argv, folder = [*tiny_overrides, "lr.adaptive=false", "rule=[spectral]"], tmp_path / "runs"
    runs = planned(argv)
    for run in runs:
        finish(run, folder)
    bury(RunFolder(folder, runs[0].run_id))
    damaged = folder / runs[0].run_id / "result.json"
    put(damaged, '{"val')
    code, out, _ = call("launch", *argv, "action=status")
    assert code == 0 and f"{len(runs)} runs: {len(runs) - 1} done, 1 failed" in out
    code, out, _ = call("launch", *argv, "action=why")
    assert code == 0 and f"RecordError: {damaged}: not JSON; action=retry moves it aside" in out
    RunFolder(folder, runs[0].run_id).archive_error()  # what retry does
    assert f"{len(runs) - 1} done, 1 planned" in call("launch", *argv, "action=status")[1]
