"""Nobody is let in, and nothing of others is touched: links, other users' folders, names, keys, and what is called."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cli import RESULT, call, finish, planned
from support.launches import snapshot
from support.runs import TINY, composed, first_point
from support.slurm_sweeps import ON_SLURM

from spectral_mup.cluster.slurm import submit
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
from spectral_mup.errors import ConfigError, RecordError
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.system import package_root

CANARY = "c0ffee" * 6 + "abcd"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")


@contextmanager
def root() -> Iterator[None]:
    """Root again, where `no_root` has put another user in its place."""
    user = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


# --- run folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r", "r/ckpt", "r/attempts"])
def test_nothing_is_written_or_deleted_through_a_link_in_place_of_a_folder(tmp_path, name):
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    for i in range(5):
        (models / f"{i:09d}.pt").write_text("somebody's")
    link = tmp_path / "runs" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(models)
    before, folder = snapshot(models), RunFolder(tmp_path / "runs", "r")
    for write in (folder.claim, lambda: folder.write_config({})):
        with pytest.raises(RecordError, match=f"{link}: a link") as error:
            write()
    assert snapshot(models) == before and folder.error() == f"RecordError: {error.value}"
    link.unlink()
    shutil.rmtree(tmp_path / "runs")
    folder.claim()  # the control


@needs_root
@pytest.mark.parametrize("name", ["", "ckpt", "attempts"])
def test_a_folder_of_another_user_is_not_written_to_even_where_that_is_allowed(no_root, name):
    folder = RunFolder(no_root, "r")
    for made in (folder.path, folder.path / "ckpt", folder.path / "attempts"):
        made.mkdir()
        made.chmod(0o777)
    with root():
        os.chown(folder.path / name, 4242, 4242)
    with pytest.raises(RecordError, match=r"belongs to another user \(uid 4242\).*as in paths.runs=my_runs"):
        folder.claim()
    assert not list((folder.path / "attempts").iterdir())
    with root():
        os.chown(folder.path / name, os.stat(no_root).st_uid, -1)
    folder.claim()  # the control


@needs_root
def test_what_others_have_locked_stops_nothing_else(no_root, monkeypatch):
    monkeypatch.chdir(no_root)
    argv = [*TINY, "paths.runs=runs", "paths.results=results", "lr.adaptive=false", "rule=[spectral]"]
    with root():  # who can read all that Python imports
        runs = planned(argv)
        call("launch", *argv, "action=why")
        call("launch", *argv, "action=status")
    for run in runs:
        finish(run, Path("runs"))
    with root():
        os.chown(f"runs/{runs[0].run_id}", 0, 0)
        os.chmod(f"runs/{runs[0].run_id}", 0o700)
    for action, said in (("plan", f"{len(runs) - 1} done, 1 to do"), ("status", "1 failed"), ("why", "PermissionError")):
        code, out, err = call("launch", *argv, f"action={action}")
        assert code == 0 and said in out, err


# --- names ------------------------------------------------------------------------------------------------------------

WRITTEN_ELSEWHERE = ["../spectral", "/tmp/x", "..", ".", ".cache/x", "a/../../b", "a//b", "", "a\nb"]


@pytest.mark.parametrize("name", WRITTEN_ELSEWHERE)
@pytest.mark.parametrize("key", ["optimizer.name", "sweep.name"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything(tmp_path, monkeypatch, key, name):
    monkeypatch.chdir(tmp_path)
    before = snapshot(package_root() / "conf")
    code, out, err = call("launch", *TINY, "action=derive", f"{key}='{name}'")
    assert (code, out) == (2, "") and err.startswith(f"error: {key}={name}: must be a relative path")
    assert not list(tmp_path.iterdir()) and snapshot(package_root() / "conf") == before


@pytest.mark.parametrize(
    "override", ["rule=[../optimizer/adamw]", "optimizer=../../conf/optimizer/adamw", "sweep=../conf/config"]
)
def test_a_preset_lies_in_its_folder(override):
    with pytest.raises(ConfigError, match="no such file"):
        composed(override)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_batch_script_is_for_its_owner_alone(tmp_path, monkeypatch):
    """It has what cluster.extra says; the lines of a preamble are in a file of their own (unit/cluster/test_script.py)."""
    config = composed(*ON_SLURM, f"paths.jobs={tmp_path}")
    prepared = prepare(tmp_path, snapshot_config(config), [[first_point(config)]], "x", "code")
    taken = take(prepared, 1, lambda submission: f"#SBATCH --comment={CANARY}")
    assert stat.S_IMODE(taken.script.stat().st_mode) == 0o600
    seen = []
    monkeypatch.setattr(submit, "render", lambda *_: CANARY)
    monkeypatch.setattr(submit.slurm, "sbatch", lambda script, *_: seen.append(stat.S_IMODE(script.stat().st_mode)))
    submit.check_script(config, [[first_point(config)]], "x")
    assert seen == [0o600]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY not in path.read_text() or stat.S_IMODE(path.stat().st_mode) == 0o600


# --- what is called ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "spy.call", "__main__.x", "os.sep"])
def test_a_target_that_is_no_optimizer_is_refused_without_a_call(tmp_path, monkeypatch, target):
    called = []
    (tmp_path / "spy.py").write_text("import os\n\ndef call(*args, **_):\n    os.system(args)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("os.system", "subprocess.Popen.__init__"):
        monkeypatch.setattr(name, lambda *args, **_: called.append(args))
    code, _, err = call("launch", *TINY, f"paths.runs={tmp_path}", f"optimizer.algorithms.adamw.target={target}", "action=plan")
    assert code == 2 and not called and err.count("\n") == 1
    assert err.startswith(f"error: optimizer.algorithms.adamw.target={target}: ")


def test_only_what_can_be_called_stands_for_a_function():
    for override in ("probe.quantities=[os.sep]", "action=os.sep"):
        code, _, err = call("launch", *TINY, override)
        assert code == 2 and err.startswith(f"error: {override.partition('=')[0]}=os.sep: must be a function"), err


def test_results_written_by_nobody_in_particular_are_read(tmp_path):
    """Reading is free: of a finished run's folder, moved elsewhere with a link left in its place, the result counts."""
    folder = RunFolder(tmp_path / "archive", "r")
    folder.claim()
    folder.finish(RESULT)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r").symlink_to(folder.path)
    assert RunFolder(tmp_path / "runs", "r").result() == RESULT
