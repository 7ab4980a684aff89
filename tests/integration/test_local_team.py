"""One run over two processes that the launcher starts: the losses of one, and nothing lost or left when one is killed."""

import json
import os
import re
import signal

import pytest
from support.launches import Launch, attempts, ended, kill, leftovers, newest_checkpoint, until, until_gone
from support.runs import first_point
from support.teams import LONG, PAIR, alone, close, losses

from spectral_mup.config.compose import load_config

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.slow]
TEAM = [*PAIR, "cluster.workers=1"]
SLOW = [*LONG, "cluster.workers=1"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Losses of SLOW, trained by two processes that nothing happened to."""
    tmp = tmp_path_factory.mktemp("unbroken")
    launch = Launch(tmp, SLOW)
    try:
        assert launch.wait() == 0, launch.err
    finally:
        assert not leftovers(tmp)
    (run,) = ended(tmp / "runs")
    return losses(run)


def mid_run(launch: Launch, past: int = 0) -> list[int]:
    """Pids of the team, once its run has a checkpoint after step `past`."""
    until(lambda: any(newest_checkpoint(p) > past for p in launch.runs.glob("*")), "a checkpoint")
    assert len(launch.workers()) == 2 and not ended(launch.runs), "too late: raise train.steps of LONG"
    return launch.workers()


def test_two_processes_train_as_one(tmp_path, corpus):
    """Two runs, one after the other by the same team, here by FSDP2; all optimizers both ways are in test_team.py."""
    overrides = [*TEAM, "train.steps=20", "optimizer=shampoo", "train.shard=true"]
    launch = Launch(tmp_path, [*overrides, "sweep.seed=[0,1]"])
    assert (launch.wait(), launch.err) == (0, "")
    assert "To train them: 1 worker of 2 processes on the CPU (cluster.workers=1)" in launch.out
    run_id, whole = alone(overrides, tmp_path, corpus)
    assert close(losses(launch.runs / run_id), whole)
    assert not close(losses(launch.runs / run_id), whole[1:] + whole[:1])
    for run in (found := ended(launch.runs)):
        assert json.loads((run / "provenance.json").read_text())["devices"] == 2 and attempts(run) == 1
    owners = {json.loads((run / "attempts/1/owner.json").read_text())["pid"] for run in found}
    assert len(found) == 2 and len(owners) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_ends_the_team_and_another_resumes(tmp_path, unbroken, rank):
    launch = Launch(tmp_path, SLOW)
    pair = mid_run(launch)
    owner = json.loads(next(launch.runs.glob("*/attempts/1/owner.json")).read_text())["pid"]
    kill(owner if rank == 0 else next(pid for pid in pair if pid != owner))
    assert launch.wait() == 0, launch.err
    (run,) = ended(launch.runs)
    assert losses(run) == unbroken and attempts(run) == 2 and not (run / "error.txt").exists()
    assert launch.out.count("its worker died (exit code -9); another resumes it") == 1


def test_ctrl_c_and_a_killed_launcher_leave_a_checkpoint_and_no_process(tmp_path, unbroken):
    launch = Launch(tmp_path, SLOW)
    mid_run(launch)
    os.killpg(launch.process.pid, signal.SIGINT)
    assert launch.wait() == 130 and "died" not in launch.out and "Traceback" not in launch.out + launch.err
    until_gone(tmp_path)
    (run,) = launch.runs.iterdir()
    saved = newest_checkpoint(run)
    assert saved == len(losses(run)) > 0

    launch = Launch(tmp_path, SLOW)
    mid_run(launch, saved)
    launch.kill()
    until_gone(tmp_path)
    assert newest_checkpoint(run) == len(losses(run)) > saved, "the team trained on, or did not save"

    assert Launch(tmp_path, SLOW).wait() == 0
    assert losses(run) == unbroken and attempts(run) == 3


def test_a_stop_or_a_kill_while_the_team_starts_leaves_nothing(tmp_path):
    for end in (lambda launch: os.killpg(launch.process.pid, signal.SIGINT), lambda launch: launch.kill()):
        launch = Launch(tmp_path, TEAM)
        until(lambda at=launch: len(at.workers()) == 2, "the team")
        end(launch)
        launch.wait()
        until_gone(tmp_path)


def test_a_run_that_fails_is_named_with_its_cause_and_the_next_is_trained(tmp_path):
    bad = first_point(load_config(TEAM), seed=0).run_id
    (tmp_path / "runs" / bad / "norms.jsonl").mkdir(parents=True)
    launch = Launch(tmp_path, [*TEAM, "sweep.seed=[0,1]"])
    assert launch.wait() == 1
    assert re.search(rf"^  {launch.runs}/{bad}: IsADirectoryError", launch.err, re.M) and "died" not in launch.out
    assert (launch.runs / bad / "error.txt").read_text().startswith("rank 0 on ") and len(ended(launch.runs)) == 1
