"""What is damaged costs itself alone: tasks of other runs and submissions start, train and submit on, and a line names the
file."""

import json

import pytest
from support.cli import finish
from support.runs import TINY, bury, composed
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster import slurm_commands as commands
from spectral_mup.cluster.slurm import job_states
from spectral_mup.cluster.slurm.pack import Pack
from spectral_mup.cluster.slurm.run_states import breaker, reconcile
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, submissions, take
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

DAMAGES = {"cut off": '{"val', "no result": '{"status": "done"}', "another's": None}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_that_runs_failure_alone(tmp_path, monkeypatch, damage):
    runs_dir, jobs = tmp_path / "runs", tmp_path / "jobs"
    config = composed(*TINY, *ON_SLURM, "lr.adaptive=false", f"paths.runs={runs_dir}", f"paths.jobs={jobs}")
    sweep = open_sweep(config)
    runs = make_plan(sweep, lambda run: None).runs
    bad = runs[0]
    finish(bad, runs_dir)
    folder = RunFolder(runs_dir, bad.run_id)
    bury(folder)
    if DAMAGES[damage] is None:
        (folder.path / "result.json").unlink()
        (folder.path / "result.json").mkdir()
    else:
        (folder.path / "result.json").write_text(DAMAGES[damage])
    packs = [[run for run in runs if run.width == width] for width in (32, 64)]
    submission = take(prepare(jobs, snapshot_config(config), packs, sweep.fingerprint, "code"), 1, lambda _: "")

    assert breaker(runs_dir, [run.run_id for run in runs]) is None
    for index, pack_runs in enumerate(packs):
        pack = Pack(submission, index)
        assert pack.todo() == [run for run in pack_runs if run != bad] and pack.progress() == 0

    def no_answer(*_):
        raise commands.NoAnswer("down")

    monkeypatch.setattr(job_states, "squeue", no_answer)
    monkeypatch.setattr(job_states, "sacct", no_answer)
    state = reconcile(runs_dir, jobs, runs).states[bad.run_id]
    assert state.name == "failed" and str(folder.path / "result.json") in state.detail
    assert not state.should_resubmit(9)
    assert make_plan(sweep, Results(runs_dir).loss).todo  # what a task that ends asks for
    folder.archive_error()  # what retry does
    assert bad in [run for index in (0, 1) for run in Pack(submission, index).todo()]


DAMAGED_FILES = {  # of a submission: what is in it, and what is said of it
    "submission.json": ('{"sweep', "not JSON; restore it, or cancel its job and move the folder away"),
    "submission.json ": ('{"sweep": "x"}', "name: field required; restore it"),
    "job.json": ('{"id": 7}', "should be a valid string; it is written again if SLURM still knows the job"),
    "cancelled.json": ('{"a": 1}', "should be a valid list; give action=cancel again"),
    "config.json": ("[]", "should be a valid dictionary; restore it, or cancel the job"),
    "tasks/0.json": ('{"kills": "two"}', "kills: input should be a valid integer; what it said is not known"),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_damaged_submission_costs_its_own_runs_alone(tmp_path, monkeypatch, caplog, name):
    runs_dir, jobs, (content, said) = tmp_path / "runs", tmp_path / "jobs", DAMAGED_FILES[name]
    config = composed(*TINY, *ON_SLURM, "lr.adaptive=false", f"paths.runs={runs_dir}", f"paths.jobs={jobs}")
    sweep = open_sweep(config)
    runs = make_plan(sweep, lambda run: None).runs
    made = []
    for number, pack in ((1, runs[:2]), (2, runs[2:4])):
        made.append(take(prepare(jobs, snapshot_config(config), [pack], sweep.fingerprint, "code"), number, lambda _: ""))
        made[-1].record_job(str(6 + number))
    queue = [f"8_0|{made[1].name}|PENDING|Priority|0|0||"]
    monkeypatch.setattr(commands, "_answer", lambda *command, **_: "\n".join(queue) if command[0] == "squeue" else "")
    (made[0].path / name.strip()).write_text(content)
    (jobs / "3").touch()  # a file in place of a submission

    for _ in range(2):
        states = reconcile(runs_dir, jobs, runs).states
    assert [states[run.run_id].name for run in runs[2:5]] == ["queued", "queued", "planned"]
    pack = Pack(submissions(jobs)[-1], 0)
    assert pack.todo() == runs[2:4] and made[0].task_record(0) == {} and made[0].read_cancelled() == set()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len({*lines}) == 2 and f"{jobs}/3 is a file where a folder should be" in lines[0] + lines[1]
    assert [line for line in lines if line.startswith(f"{made[0].path}/{name.strip()}: ") and said in line]


def test_what_a_later_version_writes_beside_is_ignored(tmp_path):
    config = composed(*TINY, *ON_SLURM, f"paths.jobs={tmp_path}")
    taken = take(prepare(tmp_path, snapshot_config(config), [], "", "code"), 1, lambda _: "")
    written = json.loads((taken.path / "submission.json").read_text())
    (taken.path / "submission.json").write_text(json.dumps(written | {"colour": "red"}))
    assert [(s.path, s.name) for s in submissions(tmp_path)] == [(taken.path, taken.name)]
