"""One run over two processes of a SLURM task: the losses of one process, and what happens when one of the two is lost."""

import json
import re
import signal
from pathlib import Path

import pytest
from support import teams
from support.launches import kill, until
from support.runs import first_point
from support.slurm_sweeps import Site
from support.teams import alone, close, losses

from spectral_mup.config.compose import load_config

PAIR = [*teams.PAIR, "cluster.cpus=1"]
LONG = [*teams.LONG, "cluster.cpus=1"]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer, kind", [("adamw", ()), ("shampoo", ("train.shard=true", "cluster.nodes=2"))])
def test_two_processes_train_as_one(slurm, tmp_path, corpus, optimizer, kind):
    """DDP on one node and FSDP2 over two nodes, a task each; all optimizers both ways are in test_team.py."""
    overrides = [*PAIR, "train.steps=20", f"optimizer={optimizer}"]
    site = Site(tmp_path, slurm)
    assert site.call([*overrides, *kind]).code == 0
    site.until([*overrides, *kind], "the end", lambda s: s == {"done": 1})
    run_id, whole = alone(overrides, tmp_path, corpus)
    assert close(losses(site.runs / run_id), whole)
    assert not close(losses(site.runs / run_id), whole[1:] + whole[:1])
    assert json.loads((site.runs / run_id / "provenance.json").read_text())["devices"] == 2


def ranks(slurm) -> list[int]:
    """Pids of the two training processes."""
    found = []
    for pid in slurm.job_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"array_task" in words and b"srun" not in words[0]:
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def unbroken(slurm_cluster, tmp_path_factory):
    """Run id and losses of LONG, trained by two processes that nothing happened to."""
    site = Site(tmp_path_factory.mktemp("unbroken"), slurm_cluster)
    assert site.call(LONG).code == 0
    site.until(LONG, "the end", lambda s: s == {"done": 1})
    site.until_idle()
    (run,) = site.runs.iterdir()
    return run.name, losses(run)


@pytest.mark.slow
def test_a_lost_rank_ends_the_task_which_is_queued_again_and_resumes(slurm, tmp_path, unbroken):
    site = Site(tmp_path, slurm)
    assert site.call(LONG).code == 0
    until(lambda: list(site.runs.glob("*/ckpt/*.pt")), "a checkpoint")
    pair = ranks(slurm)
    assert len(pair) == 2, pair
    kill(max(pair))
    until(lambda: "peer lost" in site.log() and "queued again, time 1 of 5" in site.log(), "the batch script's word")
    site.until(LONG, "the end", lambda s: s == {"done": 1})
    run_id, whole = unbroken
    assert losses(site.runs / run_id) == whole
    first, second = site.attempts()[run_id]
    assert (first["slurm"]["restart"], second["slurm"]["restart"]) == (0, 1) and len(site.numbered()) == 1
    log = site.log()
    assert "rank 0 on" in log and "Traceback" in log  # whose peer was gone
    assert (site.runs / run_id / "attempts/1/error.txt").exists() and not (site.runs / run_id / "error.txt").exists()


@pytest.mark.slow
def test_a_rank_that_raises_names_its_traceback_and_is_not_begun_again(slurm, tmp_path):
    """The disk of rank 1 is no obstacle to it: it writes nothing. So rank 0's is, and what both end with is rank 0's error."""
    site = Site(tmp_path, slurm)
    run_id = first_point(load_config([*PAIR, "cluster=slurm", "cluster.gpus=0"])).run_id
    (site.runs / run_id / "norms.jsonl").mkdir(parents=True)
    assert site.call(PAIR).code == 0
    site.until(PAIR, "the failure", lambda s: s == {"failed": 1})
    site.until_idle()
    error = (site.runs / run_id / "error.txt").read_text()
    assert error.startswith("rank 0 on ") and "IsADirectoryError" in error
    why = site.call([*PAIR, "action=why"])
    assert re.search(r"^exception \(1 \w+, not ", why.out, re.M) and "IsADirectoryError" in why.out
    (site.runs / run_id / "norms.jsonl").rmdir()
    assert site.call(PAIR).code == 0 and len(site.numbered()) == 1  # a plain launch leaves it alone
    assert site.call([*PAIR, "action=retry"]).code == 0
    site.until(PAIR, "the end", lambda s: s == {"done": 1})


@pytest.mark.slow
def test_a_warning_to_a_team_saves_and_queues_it_again(slurm, tmp_path, unbroken):
    site = Site(tmp_path, slurm)
    assert site.call(LONG).code == 0
    until(lambda: list(site.runs.glob("*/ckpt/*.pt")), "a checkpoint")
    (job,) = [json.loads((p / "job.json").read_text())["id"] for p in site.numbered()]
    slurm.run("scancel", f"--signal={signal.SIGUSR2.name[3:]}", f"{job}_0")
    until(lambda: "all is saved; queued again" in site.log(), "the stop")
    site.until(LONG, "the end", lambda s: s == {"done": 1})
    run_id, whole = unbroken
    assert losses(site.runs / run_id) == whole and len(site.attempts()[run_id]) == 2
