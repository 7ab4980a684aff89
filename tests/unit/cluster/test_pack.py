"""The runs of an array task, on a network disk that many tasks read."""

import pytest
from support.cli import finish
from support.runs import TINY, bury, composed
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster.slurm import pack as slurm_pack
from spectral_mup.cluster.slurm.pack import Pack
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
from spectral_mup.cluster.slurm_commands import JobStart
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan


@pytest.fixture
def pack(tmp_path):
    """A pack of four runs under tmp_path/runs, none of them trained."""
    config = composed(
        *TINY, *ON_SLURM, "lr.adaptive=false", f"paths.runs={tmp_path / 'runs'}", f"paths.jobs={tmp_path / 'jobs'}"
    )
    sweep = open_sweep(config)
    runs = make_plan(sweep, lambda run: None).runs[:4]
    submission = prepare(tmp_path / "jobs", snapshot_config(config), [runs], sweep.fingerprint, "code")
    return Pack(take(submission, 1, lambda _: ""), 0)


def test_a_run_that_has_ended_is_looked_at_once(pack, monkeypatch):
    """A task lists its runs every two seconds while it trains."""
    runs = pack.runs
    finish(runs[0], pack.runs_dir)
    assert pack.todo() == runs[1:]
    looked: list[str] = []
    for name in ("result", "error"):
        real = getattr(RunFolder, name)
        monkeypatch.setattr(RunFolder, name, lambda folder, real=real: [looked.append(folder.run_id), real(folder)][1])
    assert pack.todo() == runs[1:] and set(looked) == {run.run_id for run in runs[1:]}


def test_a_job_without_an_array_is_told_so(pack, monkeypatch):
    """As after `sbatch submit.sh` of a script without its options."""
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(SystemExit) as ended:
        Pack.of_this_task(str(pack.submission.path))
    assert ended.value.code == 2
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert Pack.of_this_task(str(pack.submission.path))[1] == JobStart("7_0", 0)  # the control


def test_a_task_whose_record_is_damaged_is_queued_again_at_its_time_limit(pack, monkeypatch):
    """The control is a task whose starts have saved no step: it is given up."""
    requeued: list[str] = []
    monkeypatch.setattr(slurm_pack.slurm, "is_cancelled", lambda task: False)
    monkeypatch.setattr(slurm_pack.slurm, "requeue", requeued.append)
    monkeypatch.setattr(slurm_pack, "why_stopped", lambda task, seconds: causes.TIME)
    monkeypatch.setattr(slurm_pack.time, "sleep", lambda seconds: None)
    pack.write_task(starts_without_progress=slurm_pack.STUCK_STARTS, progress=pack.progress())
    assert slurm_pack.stop(pack, JobStart("7_0", 0), []) == slurm_pack.FAILED and not requeued
    [record] = pack.submission.path.glob("tasks/*.json")
    record.write_text("damaged")
    assert slurm_pack.stop(pack, JobStart("7_0", 0), []) == slurm_pack.TEMPORARY_FAILURE and requeued == ["7_0"]


def test_a_run_with_a_result_has_not_failed_whatever_has_become_of_its_folder(pack, tmp_path, monkeypatch):
    """Moved to an archive, with a link in its place, through which nothing would be written."""
    monkeypatch.setattr(slurm_pack, "extend", lambda pack: None)
    for run in pack.runs:
        finish(run, pack.runs_dir)
    moved = pack.folder(pack.runs[0]).path
    moved.rename(tmp_path / "archive")
    moved.symlink_to(tmp_path / "archive")
    assert pack.folder(pack.runs[0]).error() is not None
    assert slurm_pack.finish(pack, JobStart("7_0", 0), {}, lambda: False) == slurm_pack.OK
    (moved / "result.json").unlink()
    assert slurm_pack.finish(pack, JobStart("7_0", 0), {}, lambda: False) == slurm_pack.FAILED  # the control


def test_a_run_that_another_task_resumes_already_has_not_failed(pack, monkeypatch):
    """Its worker here was killed, and who has it now is told nothing of that."""
    monkeypatch.setattr(slurm_pack, "extend", lambda pack: None)
    run, other = pack.runs[0], pack.runs[1]
    for one in (run, other):
        pack.folder(one).claim()
    bury(pack.folder(other))
    died = dict.fromkeys((run.run_id, other.run_id), "its worker died")
    assert slurm_pack.finish(pack, JobStart("7_0", 0), died, lambda: False) == slurm_pack.FAILED
    assert pack.folder(run).error() is None
    assert pack.folder(other).error() == "WorkerDied: its worker died\n"  # the control
