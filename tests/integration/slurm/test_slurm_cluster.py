"""The suite's SLURM is a SLURM: it runs, accounts, shares and breaks as told, comes back clean and leaves nothing behind."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import slurm_cluster
from support.processes import reaped
from support.slurm_cluster import SlurmCluster, require_slurm

PROGRAM = [sys.executable, slurm_cluster.__file__]


def submit(cluster: SlurmCluster, script: str, *options: str, out: Path | str = "/dev/null") -> str:
    """Job id of a batch job."""
    return cluster.run("sbatch", "--parsable", f"--output={out}", *options, f"--wrap={script}").strip()


def states(cluster: SlurmCluster, job: str) -> list[str]:
    return cluster.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", job).split()


def queued(cluster: SlurmCluster, *options: str) -> list[str]:
    """Ids of the jobs that wait, run or end."""
    return cluster.run("squeue", "-h", "-o", "%A", *options).split()


def node_states(cluster: SlurmCluster) -> dict[str, str]:
    return dict(line.split() for line in cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines())


def started(cluster: SlurmCluster) -> list[int]:
    """Ids of its daemons that run."""
    return [pid for name, (pid, _) in cluster.pids().items() if cluster.alive(name)]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if slurm_cluster.started_at(pid) >= 0]


def heirs(cluster: SlurmCluster) -> list[int]:
    """Ids of all processes with its conf in their environment, recorded or not."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SLURM_CONF={cluster.conf}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def test_both_nodes_run_a_step(slurm):
    said = slurm.run("srun", "-N2", "bash", "-c", "echo $SLURMD_NODENAME").split()
    assert sorted(said) == slurm.nodes
    with pytest.raises(RuntimeError, match="Unable to allocate resources"):
        slurm.run("srun", "-N3", "--immediate=1", "hostname")


def test_jobs_on_a_shared_node_see_different_gpus(slurm, tmp_path):
    here, out = ("-w", slurm.nodes[0]), tmp_path / "%j"
    script = "echo gpus ${CUDA_VISIBLE_DEVICES-unset}; sleep 60"
    requests = ["--gres=gpu:1", "--gres=gpu:3", "--gres=gpu:0"]
    jobs = [submit(slurm, script, request, *here, out=out) for request in requests]
    slurm.until("jobs", lambda: all((tmp_path / job).is_file() and (tmp_path / job).read_text() for job in jobs), 20)
    one, three, none = (set((tmp_path / job).read_text().split()[1].split(",")) for job in jobs)
    assert (one | three, one & three, none) == ({"0", "1", "2", "3"}, set(), {"unset"})
    fifth = submit(slurm, script, "--gres=gpu:1", *here)
    slurm.until("reason", lambda: "Resources" in slurm.run("squeue", "-h", "-j", fifth, "-o", "%r"), 10)


@pytest.mark.slow
def test_a_lost_node_is_noticed_and_comes_back(slurm):
    kept, lost = slurm.nodes
    job, other = (submit(slurm, "sleep 300", "-w", node) for node in (lost, kept))
    slurm.until("jobs", lambda: len(slurm.job_pids(lost)) == len(slurm.job_pids(kept)) == 3, 10)
    slurm.kill_node(lost)
    assert (slurm.job_pids(lost), len(slurm.job_pids(kept))) == ([], 3)
    slurm.until("requeue", lambda: queued(slurm, "-t", "PD") == [job], 60)
    assert node_states(slurm) == {kept: "mixed", lost: "down*"} and queued(slurm, "-t", "R") == [other]
    slurm.run("scancel", job)
    slurm.start_node(lost)
    slurm.until("return", lambda: node_states(slurm) == {kept: "mixed", lost: "idle"}, 20)


def test_an_array_is_accounted_element_by_element(slurm):
    job = submit(slurm, "test $SLURM_ARRAY_TASK_ID != 1", "--array=0-2")
    slurm.until("accounts", lambda: states(slurm, job) == ["COMPLETED", "FAILED", "COMPLETED"], 20)


def test_accounting_can_go_and_come_back(slurm):
    slurm.run("sacct")
    slurm.stop_slurmdbd()
    with pytest.raises(RuntimeError, match="sacct ended with 1"):
        slurm.run("sacct")
    job = submit(slurm, "true")
    slurm.until("end", lambda: not queued(slurm), 20)
    slurm.start_slurmdbd()
    slurm.until("accounts", lambda: states(slurm, job) == ["COMPLETED"], 30)


def test_jobs_outlive_the_controller_and_clean_mends_all(slurm):
    job = submit(slurm, "sleep 300")
    slurm.until("job", lambda: len(slurm.job_pids()) == 3, 10)
    before = slurm.job_pids()
    slurm.stop_controller()
    with pytest.raises(RuntimeError, match="is DOWN"):
        slurm.run("scontrol", "ping")
    slurm.start_controller()
    slurm.until("job", lambda: queued(slurm, "-t", "R") == [job], 10)
    slurm.run("scontrol", "update", f"nodename={slurm.nodes[0]}", "state=drain", "reason=test")
    slurm.stop_slurmdbd()
    slurm.kill_node(slurm.nodes[1])
    slurm.stop_controller()
    assert len(started(slurm)) == 3 and slurm.job_pids() == before
    slurm.clean()
    assert set(node_states(slurm).values()) == {"idle"} and not queued(slurm) and not slurm.job_pids()
    slurm.run("sacct")


def test_clean_ends_and_reports_a_process_that_outlived_its_job(slurm):
    submit(slurm, "setsid --fork sleep 300")
    slurm.until("job", slurm.job_pids, 10)
    slurm.until("end", lambda: not queued(slurm), 20)
    with pytest.raises(RuntimeError, match="outlived their jobs"):
        slurm.clean()
    assert not slurm.job_pids()


def test_settings_reach_a_second_cluster_beside_the_first(slurm, slurm_with):
    other = slurm_with(nodes=1, max_array=11, grace=15, min_job_age=20)
    assert "MinJobAge = 20 sec" in " ".join(other.run("scontrol", "show", "config").split())
    assert "GraceTime=15" in other.run("scontrol", "show", "partition", "main")
    with pytest.raises(RuntimeError, match="array"):
        submit(other, "true", "--array=0,11")
    submit(other, "sleep 300", "--array=0,10")
    other.until("jobs", lambda: len(other.job_pids()) == 6, 10)
    assert len(queued(other)) == 2 and not queued(slurm) and not slurm.job_pids()
    submit(slurm, "true", "--array=0,11")


def flawed_controller(folder: Path, script: str, monkeypatch) -> None:
    """Let this shell script be called for slurmctld."""
    (folder / "slurmctld").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "slurmctld").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_the_second_attempt_starts_and_stop_leaves_nothing(short_folder, tmp_path, monkeypatch):
    require_slurm()
    first = tmp_path / "first"
    flawed_controller(tmp_path, f"mkdir {first} && exit 3; exec /usr/sbin/slurmctld -D", monkeypatch)
    with SlurmCluster(short_folder(), nodes=1) as cluster:
        assert first.exists()
        submit(cluster, "env -i sleep 300")
        cluster.until("job", lambda: len(cluster.job_pids()) == 3, 10)
        pids, files = [*started(cluster), *cluster.job_pids()], [cluster.root, cluster.database]
        assert alive(pids) == pids and len(pids) == 8 and all(file.is_dir() for file in files)
        # The daemons' helpers, too: all but the sleep without an environment.
        assert set(heirs(cluster)) >= set(pids[:-1])
        with pytest.raises(FileExistsError, match="not empty"):
            cluster.start()
    assert not alive(pids) and not heirs(cluster) and not any(file.exists() for file in files)
    with pytest.raises(FileNotFoundError, match="no cluster"):
        cluster.stop()


def test_by_hand_and_ended_by_another_process(short_folder):
    require_slurm()
    root = short_folder()
    said = subprocess.run([*PROGRAM, "start", root, "--nodes", "3"], capture_output=True, text=True, timeout=60, check=True)
    shell = f"{said.stdout}\nsinfo -h -N -p main -o %N; srun -N3 true; sbatch -o /dev/null -N3 --wrap 'sleep 300'"
    assert subprocess.run(["bash", "-ec", shell], capture_output=True, text=True, timeout=60).stdout.split()[2] == "127.0.0.3"
    other = SlurmCluster(root)
    other.until("job", lambda: len(other.job_pids()) == 3, 10)
    pids = [*started(other), *other.job_pids()]
    assert len(pids) == 7 + 3
    subprocess.run([*PROGRAM, "stop", root], timeout=60, check=True)
    assert not alive(pids) and not root.exists()
    again = subprocess.run([*PROGRAM, "stop", root], capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stderr) == (1, f"root: no cluster was started in {root}\n")


def test_a_killed_start_is_cleaned_up_from_outside(short_folder):
    require_slurm()
    cluster = SlurmCluster(short_folder())
    starter = subprocess.Popen([*PROGRAM, "start", cluster.root])
    written = cluster.root / "state" / "clustername"  # by the controller, maybe before its start is recorded
    with reaped(starter):  # by SIGKILL
        cluster.until("controller", lambda: written.exists() and len(started(cluster)) >= 4, 30)
        assert starter.poll() is None
    pids = started(cluster)
    assert cluster.database.exists()
    subprocess.run([*PROGRAM, "stop", cluster.root], timeout=60, check=True)
    assert not alive(pids) and not cluster.root.exists() and not cluster.database.exists()


def test_a_failed_start_tells_why_and_leaves_nothing(short_folder, tmp_path, monkeypatch):
    require_slurm()
    cluster, calls = SlurmCluster(short_folder()), tmp_path / "calls"
    flawed_controller(tmp_path, f"cat pids.json >> {calls}; echo lost the disk; exit 3", monkeypatch)
    with pytest.raises(RuntimeError, match=r"slurmctld ended with 3\n(.*\n)*lost the disk"):
        cluster.start()
    attempts = [json.loads(line) for line in calls.read_text().replace("}{", "}\n{").splitlines()]
    pids = [pid for attempt in attempts for pid, _ in attempt.values()]
    assert len(attempts) == 2 and len(pids) >= 6 and not alive(pids)
    assert not cluster.root.exists() and not cluster.database.exists()


def test_a_daemon_that_had_ended_before_it_was_recorded_is_not_signalled(short_folder):
    """As on a busy machine, where the start is recorded late."""
    cluster = SlurmCluster(short_folder())
    daemon = subprocess.Popen(["true"])
    daemon.wait()
    cluster._record.write_text(json.dumps({"slurmctld": (daemon.pid, slurm_cluster.started_at(daemon.pid))}))
    assert not started(cluster)
    cluster.stop()
    assert not cluster.root.exists()


def test_missing_packages_skip_or_fail_but_never_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="sbatch.*apt-get install .*slurmctld"):
        require_slurm()
    monkeypatch.setenv("REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="sbatch.*apt-get install .*slurmctld"):
        require_slurm()
    with pytest.raises(FileNotFoundError, match="sbatch.*apt-get install .*slurmctld"):
        SlurmCluster(tmp_path / "x").start()
