"""One damaged run of a sweep on SLURM is that run's failure: tasks of others start, train and submit on, and `why` names it."""

import pytest
from support.cli import finish
from support.runs import TINY, bury, composed
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster import slurm_commands as commands
from spectral_mup.cluster.slurm import job_states
from spectral_mup.cluster.slurm.pack import Pack
from spectral_mup.cluster.slurm.run_states import breaker, reconcile
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
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
