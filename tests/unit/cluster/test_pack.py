"""The runs of an array task, on a network disk that many tasks read."""

from support.cli import finish
from support.runs import TINY, composed
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster.slurm.pack import Pack
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan


def test_a_run_that_has_ended_is_looked_at_once(tmp_path, monkeypatch):
    """A task lists its runs every two seconds while it trains."""
    config = composed(
        *TINY, *ON_SLURM, "lr.adaptive=false", f"paths.runs={tmp_path / 'runs'}", f"paths.jobs={tmp_path / 'jobs'}"
    )
    sweep = open_sweep(config)
    runs = make_plan(sweep, lambda run: None).runs[:4]
    submission = prepare(tmp_path / "jobs", snapshot_config(config), [runs], sweep.fingerprint, "code")
    pack = Pack(take(submission, 1, lambda _: ""), 0)
    finish(runs[0], tmp_path / "runs")
    assert pack.todo() == runs[1:]
    looked: list[str] = []
    for name in ("result", "error"):
        real = getattr(RunFolder, name)
        monkeypatch.setattr(RunFolder, name, lambda folder, real=real: [looked.append(folder.run_id), real(folder)][1])
    assert pack.todo() == runs[1:] and set(looked) == {run.run_id for run in runs[1:]}
