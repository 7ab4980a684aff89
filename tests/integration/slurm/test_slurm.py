"""The main path on a real SLURM: launch, walk away, and find the bytes of a local sweep."""

import re
from pathlib import Path

import pytest
from support.launches import Launch, contents
from support.runs import TINY
from support.slurm_sweeps import FIXED, Site

import analyze

CANARY = "0123456789abcdef0123456789abcdef76543210"  # a secret in the environment that must be in no file
THIRTY = [*FIXED, "sweep.lr=[-8,-6,-4]", "sweep.width=[32,64]", "sweep.seed=[0,1,2,3,4]", "rule=[spectral]"]


def local(tmp_path_factory, overrides: list[str]) -> Path:
    """Folder of the same sweep with cluster=local, unbroken."""
    tmp = tmp_path_factory.mktemp("local")
    launch = Launch(tmp, overrides)
    assert launch.wait() == 0, launch.err
    return tmp


def analyzed(tmp: Path, capsys) -> str:
    """What analyze.py says of THIRTY in this folder."""
    assert analyze.main([*THIRTY, f"paths.runs={tmp / 'runs'}", f"paths.results={tmp / 'results'}"]) == 0
    return capsys.readouterr().out.replace(str(tmp), "")


@pytest.mark.slow
def test_thirty_runs_are_trained_without_a_launcher_to_the_bytes_of_a_local_sweep(
    slurm, tmp_path, tmp_path_factory, capsys, undraw
):
    site = Site(tmp_path, slurm)
    launch = site.call([*THIRTY, "cluster.pack_minutes=1"], env={"WANDB_API_KEY": CANARY})
    assert launch.code == 0, launch.err
    assert re.search(r"^To submit: 30 \w+ in ", launch.out, re.M) and "task-hours unknown (no earlier runs)" in launch.out
    states = site.until(THIRTY, "the end", lambda s: s == {"done": 30})
    assert states == {"done": 30}
    site.until_idle()
    shown = site.call([*THIRTY, "action=status"])
    assert ": 30 done\n" in shown.out and "All done. Next: python analyze.py" in shown.out
    where = local(tmp_path_factory, THIRTY)
    assert site.contents() == contents(where / "runs")
    assert all(len(owners) == 1 for owners in site.attempts().values())
    logged = re.findall(r"^\S+ \S+ INFO (\w{16}) \[\d+ of \d+ runs? done.* loss \d", site.log(), re.M)
    assert sorted(logged) == sorted(site.attempts())
    undraw()
    assert "spectral" in (said := analyzed(tmp_path, capsys)) and said == analyzed(where, capsys)
    for name in ("curves.csv", "optima.csv", "features.csv"):
        assert (tmp_path / "results/tiny" / name).read_bytes() == (where / "results/tiny" / name).read_bytes()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    again = site.call(THIRTY)
    assert again.code == 0 and "Nothing to do" in again.out and len(site.numbered()) == 1
    wider = site.call([*THIRTY, "sweep.width=[32,64,96]", "action=plan"])
    assert re.search(r"^To submit: 15 \w+ in ", wider.out, re.M) and "(from 30 earlier runs)" in wider.out


@pytest.mark.slow
def test_an_adaptive_sweep_continues_by_itself(slurm, tmp_path, tmp_path_factory):
    """Later learning rates and widths depend on results that come when no launcher is there: the tasks submit them.
    Their two GPUs train two runs at once."""
    declared = [*TINY, "lr.resolution=1.0", "rule=[spectral]"]
    overrides = [*declared, "cluster.gpus=2", "cluster.device=cpu"]
    site = Site(tmp_path, slurm)
    assert site.call(overrides).code == 0
    site.until(overrides, "the end", lambda s: set(s) == {"done"} and s["done"] > 6)
    site.until_idle()
    whole = contents(local(tmp_path_factory, declared) / "runs")
    assert site.contents() == whole and len(site.numbered()) > 2
    by_task: dict[str, set[int]] = {}
    for owners in site.attempts().values():
        by_task.setdefault(owners[0]["slurm"]["job"], set()).add(owners[0]["pid"])
    assert max(map(len, by_task.values())) == 2
