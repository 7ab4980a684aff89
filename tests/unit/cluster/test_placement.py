"""How many workers a machine takes, on which GPU each, and why; the GPUs are made up, the processes are real."""

import os

import pytest
from support.cli import call, planned
from support.gpus import nvidia_smi, pretend_to_work
from support.runs import TINY, composed, first_point

from spectral_mup.cluster.local import run_local
from spectral_mup.cluster.placement import Machine, memory_of
from spectral_mup.cluster.slurm.submit import plan_submission
from spectral_mup.config.compose import load_config
from spectral_mup.errors import ConfigError
from spectral_mup.runs.memory import RunMemory
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan
from spectral_mup.util.gpus import Gpu

SMALL = ("data=pydoc", "sweep.width=[64]", "sweep.base_width=64")
LARGE = ("data=pydoc", "sweep.width=[2048]", "sweep.base_width=2048", "sweep.depth=[8]", "sweep.base_depth=8",
         "model.context=1024", "train.batch_size=8")  # fmt: skip


def machine(config, cores: int, gpus: int, gigabytes: float = 80) -> Machine:
    return Machine(cores, [Gpu(f"GPU-{i}", gigabytes * 1e9) for i in range(gpus)], memory_of(config))


def place(overrides, cores: int, gpus: int, gigabytes: float = 80):
    config = composed(*overrides)
    return machine(config, cores, gpus, gigabytes).place(config, [first_point(config)])


@pytest.mark.parametrize(
    ("model", "gpus", "cores", "workers", "why"),
    [
        (SMALL, 0, 4, 4, "4 cores"),
        (SMALL, 0, 64, 64, "64 cores"),
        (SMALL, 1, 4, 4, "4 cores"),
        (SMALL, 1, 64, 8, "at most 8 a GPU"),
        (SMALL, 8, 4, 8, "4 cores"),  # one a GPU at least
        (SMALL, 8, 64, 64, "at most 8 a GPU"),
        (LARGE, 1, 4, 2, "GB a run, estimated"),
        (LARGE, 1, 64, 2, "GB a run, estimated"),
        (LARGE, 8, 4, 8, "4 cores"),
        (LARGE, 8, 64, 16, "GB a run, estimated"),
    ],
)
def test_as_many_as_fit_by_memory_and_cores(model, gpus, cores, workers, why):
    placement = place(model, cores, gpus)
    assert placement.workers == workers and why in placement.why
    found = [placement.gpus_of(i) for i in range(workers)]
    assert found == [[f"GPU-{i % gpus}" if gpus else ""] for i in range(workers)]
    assert placement.per_gpu == workers // max(1, gpus)


def test_threads_and_what_a_gpu_has_left_count():
    assert place([*SMALL, "cluster.threads=4"], 16, 1).workers == 4
    assert place([*SMALL, "cluster.threads=4"], 16, 0).workers == 4
    assert place(SMALL, 64, 1, gigabytes=2).workers == 3
    assert place(SMALL, 64, 2, gigabytes=0).workers == 2  # memory unknown: one a GPU
    assert place(LARGE, 64, 1, gigabytes=10).workers == 1
    mixed = Machine(64, [Gpu("0", 80e9), Gpu("1", 1.5e9)], RunMemory("nowhere", 256))
    assert mixed.place(composed(*SMALL), [first_point(composed(*SMALL))]).workers == 4  # by the fuller one


def test_what_the_user_says_holds():
    assert str(place([*SMALL, "cluster.per_gpu=3"], 4, 2)) == "6 workers on 2 GPUs (cluster.per_gpu=3)"
    assert str(place([*LARGE, "cluster.per_gpu=12"], 4, 1)) == "12 workers on 1 GPU (cluster.per_gpu=12)"
    assert str(place([*SMALL, "cluster.workers=5", "cluster.per_gpu=3"], 4, 2)) == "5 workers on 2 GPUs (cluster.workers=5)"
    assert str(place([*SMALL, "cluster.workers=5"], 4, 0)) == "5 workers on the CPU (cluster.workers=5)"
    assert str(place([*SMALL, "cluster.per_gpu=3"], 4, 0)) == "4 workers on the CPU (4 cores)"
    config = composed(*SMALL, "cluster.per_gpu=3")
    crowded = machine(config, 4, 2).place(config, [first_point(config)], at_most=1)
    assert str(crowded) == "2 workers on 2 GPUs (more have run out of memory)"


def test_the_neediest_of_the_runs_decides_until_it_is_measured(tmp_path):
    both = composed("data=pydoc", "sweep.width=[64,2048]", *LARGE[3:])
    small, large = first_point(both, width=64), first_point(both, width=2048)
    here = Machine(64, [Gpu("0", 80e9)], RunMemory(tmp_path, 256))
    assert here.place(both, [small]).workers == 8 > here.place(both, [small, large]).workers
    timing = {"seconds": 1.0, "steps": 1, "device": "cuda", "devices": 1, "memory": {"allocated": 1e9, "reserved": 11e9}}
    RunFolder(tmp_path, large.run_id).write("timing.json", timing)
    here.memory.learn([large])
    placement = here.place(both, [small, large])
    assert placement.workers == 6 and placement.why == "11.6 GB a run, measured"


def test_a_team_has_a_gpu_for_each_process():
    team = ("train.devices=2", *SMALL)
    assert str(place(team, 4, 8)) == "4 workers of 2 processes on 8 GPUs (train.devices=2)"
    assert [place(team, 4, 8).gpus_of(i) for i in (0, 3)] == [["GPU-0", "GPU-1"], ["GPU-6", "GPU-7"]]
    assert place(["train.devices=4", *SMALL], 64, 7).workers == 1
    assert place(["cluster.per_gpu=2", *team], 64, 4).workers == 4
    assert place(team, 64, 2).per_gpu == 1 and place(["cluster.workers=3", *team], 64, 2).per_gpu == 3
    assert place(["cluster.threads=4", *team], 64, 0).workers == 8 and place(team, 1, 0).workers == 1
    with pytest.raises(ConfigError, match="train.devices=2: only 1 GPU here; .*cluster.device=cpu"):
        place(team, 64, 1)


# --- the machine that this is -----------------------------------------------------------------------------------------


def test_cluster_device_cpu_leaves_gpus_alone_and_asks_nobody(monkeypatch):
    nvidia_smi(monkeypatch, 2)
    assert len(Machine.here(composed(*SMALL), cores=3).gpus) == 2
    monkeypatch.setattr("spectral_mup.util.gpus.ask_nvidia_smi", lambda: pytest.fail("asked"))
    config = composed(*SMALL, "cluster.device=cpu")
    here = Machine.here(config, cores=3)
    assert str(here.place(config, [first_point(config)])) == "3 workers on the CPU (3 cores)"


def test_the_plan_says_how_many_and_why(monkeypatch, tmp_path):
    nvidia_smi(monkeypatch, 2)
    argv = [*TINY, f"paths.runs={tmp_path / 'runs'}", "cluster.workers=null", "cluster.threads=1", "cluster.per_gpu=4"]
    out = call("launch", *argv, "action=plan")[1]
    assert out.splitlines()[-2] == "To train them: 8 workers on 2 GPUs (cluster.per_gpu=4)"
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_not_there_is_one_line_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr("spectral_mup.util.gpus.ask_nvidia_smi", lambda: "")
    argv = [*TINY, f"paths.runs={tmp_path / 'runs'}", "cluster.device=cuda"]
    for action in ("run", "plan"):
        code, _, err = call("launch", *argv, f"action={action}")
        assert code == 2 and err.startswith("error: cluster.device=cuda: ") and err.count("\n") == 1
    with pytest.raises(ConfigError, match="cluster.device=cuda: cluster.gpus=0"):
        load_config([*TINY, "cluster=slurm", "cluster.gpus=0", "cluster.device=cuda"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["runs", "results"])
@pytest.mark.parametrize("where", ["under a file", "a file", "read-only"])
def test_folders_that_cannot_be_written_are_one_line_before_anything_starts(monkeypatch, tmp_path, key, where):
    monkeypatch.setattr("spectral_mup.cluster.local.run_local", lambda *_: pytest.fail("started"))
    (tmp_path / "file").write_text("mine")
    path = {"under a file": tmp_path / "file" / "deep" / "er", "a file": tmp_path / "file", "read-only": "/proc/of/mine"}[where]
    paths = [f"paths.{name}={path if name == key else tmp_path / name}" for name in ("runs", "results")]
    code, _, err = call("launch", *TINY, *paths)
    assert code == 2 and err.count("\n") == 1 and str(path).split("/deep")[0] in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


# --- SLURM ------------------------------------------------------------------------------------------------------------


def submission(*overrides: str):
    config = load_config([*TINY, "cluster=slurm", "cluster.workers=null", "lr.adaptive=false", *overrides])
    plan = make_plan(open_sweep(config), lambda run: None)
    return plan_submission(config, plan, plan.todo)


@pytest.fixture
def no_slurm(monkeypatch):
    monkeypatch.setattr("spectral_mup.cluster.slurm_commands.max_array_size", lambda: 1001)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "4 workers on 1 GPU (4 cores)"),
        (["cluster.cpus=64"], "8 workers on 1 GPU (at most 8 a GPU)"),
        (["cluster.cpus=64", "cluster.gpus=8"], "64 workers on 8 GPUs (at most 8 a GPU)"),
        (["cluster.per_gpu=2", "cluster.gpus=8"], "16 workers on 8 GPUs (cluster.per_gpu=2)"),
        (["cluster.workers=3"], "3 workers on 1 GPU (cluster.workers=3)"),
        (["cluster.gpus=0"], "4 workers on the CPU (4 cores)"),
        (["cluster.gpus=2", "cluster.device=cpu"], "4 workers on the CPU (4 cores)"),
        (["train.devices=4", "cluster.gpus=2", "cluster.nodes=2"], "1 worker of 4 processes on 4 GPUs (train.devices=4)"),
    ],
)
def test_a_task_has_workers_by_the_same_rule(no_slurm, overrides, said):
    planned = submission(*overrides)
    assert {str(p) for p in planned.placements.values()} == {said}
    assert planned.placements.keys() == {(32, 2, 4), (64, 2, 4)}


def test_a_pack_holds_runs_for_all_workers_of_its_task(no_slurm):
    few, many = (submission(f"cluster.per_gpu={n}", "sweep.seed=[0,1,2,3]", "sweep.width=[32]") for n in (1, 8))
    assert [len(pack) for pack in few.packs] == [4, 4, 4] and [len(pack) for pack in many.packs] == [12]


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(monkeypatch, tmp_path):
    """Function of (GPUs, runs that a GPU can hold, overrides) to (failures, events by kind, {run: what its worker saw})."""

    def train(gpus: int, capacity: int, workers: int, *overrides: str):
        monkeypatch.setattr("spectral_mup.cluster.worker_process.work", pretend_to_work)
        monkeypatch.setenv("CAPACITY", str(capacity))
        monkeypatch.setenv("WORKERS", str(workers))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # of the launcher, not of its workers
        argv = [
            *TINY,
            "cluster.workers=null",
            "sweep.width=[32]",
            "lr.adaptive=false",
            f"paths.runs={tmp_path / 'runs'}",
            *overrides,
        ]
        config, runs = load_config(argv), planned(argv)
        events: dict[str, int] = {}

        def todo():
            return [run for run in runs if RunFolder(tmp_path / "runs", run.run_id).result() is None]

        def note(event):
            events[event.kind] = events.get(event.kind, 0) + 1

        failed = run_local(config, todo, note, machine=machine(config, 64, gpus), max_first_failures=99)
        results = [RunFolder(tmp_path / "runs", run.run_id).result() for run in runs]
        return failed, events, [r for r in results if r]

    return train


def test_each_worker_sees_one_gpu_before_torch_is_imported(crowd):
    failed, events, seen = crowd(2, 2, 4, "cluster.per_gpu=2", "sweep.seed=[0,1,2]")
    assert not failed and events == {"done": 9}
    by_pid = {r["pid"]: r["gpu"] for r in seen}
    assert sorted(by_pid.values()) == ["GPU-0", "GPU-0", "GPU-1", "GPU-1"] and not any(r["torch"] for r in seen)


def test_each_process_of_a_team_sees_a_gpu_of_its_own(crowd, tmp_path):
    failed, events, _ = crowd(4, 1, 4, "train.devices=2", "sweep.seed=[0,1,2]")
    assert not failed and events == {"done": 9}
    there = sorted(name.rpartition(".")[0] for name in os.listdir(tmp_path / "there"))
    assert there == ["0.GPU-0", "0.GPU-2", "1.GPU-1", "1.GPU-3"]


def test_out_of_memory_beside_others_means_fewer_workers_and_alone_a_failure(crowd, tmp_path):
    failed, events, seen = crowd(1, 2, 4, "cluster.per_gpu=4", "sweep.seed=[0,1,2]")
    assert not failed and events["died"] >= 1 and events["done"] == len(seen) == 9
    assert not list((tmp_path / "runs").glob("*/error.txt"))


def test_out_of_memory_alone_is_a_failure(crowd):
    failed, events, seen = crowd(1, 0, 1, "cluster.per_gpu=1")
    assert len(failed) == events["failed"] == 3 and "died" not in events and not seen
    assert all("CUDA out of memory" in error for error in failed.values())
