"""Two processes train a run as one does (DDP and FSDP2): losses, norms, checkpoints, stops; and what happens when one fails.

All cases are trained by one pair of processes, which leaves run folders and what each rank saw; the tests read those.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import reaped
from support.runs import first_point, run_point

from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup, init_process_group
from spectral_mup.util.files import read_rows

TESTS = Path(__file__).parents[2]
STEPS = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> "Trained":
    """What the pair left."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "support.team_worker", str(folder)]
    pair = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, cwd=TESTS) for rank in (0, 1)]
    with reaped(*pair):
        errors = [process.communicate(timeout=250)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, -9], errors[0] + errors[1]  # rank 1 kills itself in the end
    return Trained(folder)


class Trained:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, case: str, name: str = "metrics.jsonl") -> list[dict]:
        (path,) = (self.folder / case).glob(f"*/{name}")
        return list(read_rows(path))

    def losses(self, case: str) -> list[float]:
        return [row["loss"] for row in self.rows(case)]

    def result(self, case: str) -> dict:
        (path,) = (self.folder / case).glob("*/result.json")
        return json.loads(path.read_text())

    def seen(self, case: str) -> list[dict]:
        """What each rank saw of a case."""
        return [json.loads((self.folder / f"{case}.{rank}.json").read_text()) for rank in (0, 1)]

    def weights(self, case: str) -> dict[str, torch.Tensor]:
        (path,) = (self.folder / case).glob("*/weights.pt")
        return torch.load(path, weights_only=True)

    def gradients(self, case: str) -> list[float]:
        """The gradient's norm, at the steps that have one."""
        return [row["grad_norm"] for row in self.rows(case) if "grad_norm" in row]


def close(a: dict, b: dict) -> bool:
    """Two rows of norms.jsonl tell the same: numbers to a thousandth."""
    if a.keys() != b.keys():
        return False
    return all(x == pytest.approx(b[key], rel=1e-3, abs=1e-5) if isinstance(x, float) else x == b[key] for key, x in a.items())


TOGETHER = [
    f"{optimizer} {way}" for optimizer in ("adamw", "muon", "shampoo") for way in ("ddp", "fsdp2")
] + ["sophia ddp", "lamb ddp", "tied fsdp2", "tied large ddp", "tied large fsdp2"]  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_two_processes_train_as_one(trained, case):
    alone = f"{case.split()[0]} alone"
    assert len(trained.losses(case)) == STEPS
    assert trained.losses(case) == pytest.approx(trained.losses(alone), rel=1e-5)
    assert trained.gradients(case) == pytest.approx(trained.gradients(alone), rel=1e-3) and len(trained.gradients(case)) == 3
    norms, theirs = (trained.rows(c, "norms.jsonl") for c in (case, alone))
    assert len(norms) == len(theirs) > 100 and all(close(a, b) for a, b in zip(norms, theirs, strict=True))
    assert trained.result(case)["val_loss"] == pytest.approx(trained.result(alone)["val_loss"], rel=1e-5)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_what_several_keep_are_the_whole_weights_of_one(trained, way):
    alone, ours = trained.weights("muon alone"), trained.weights(f"muon {way}")
    assert ours.keys() == alone.keys() and all(type(w) is torch.Tensor for w in ours.values())
    for name, w in ours.items():
        torch.testing.assert_close(w, alone[name], rtol=1e-3, atol=1e-4)


def test_a_wrong_split_is_seen(trained):
    """The control: both ranks train on the same half of the batch."""
    wrong, alone = "adamw same half", "adamw alone"
    assert trained.losses(wrong) != pytest.approx(trained.losses(alone), rel=1e-3)
    assert trained.gradients(wrong) != pytest.approx(trained.gradients(alone), rel=1e-2)
    norms, theirs = (trained.rows(c, "norms.jsonl") for c in (wrong, alone))
    assert not all(close(a, b) for a, b in zip(norms, theirs, strict=True))


def test_ranks_agree_and_the_leader_alone_writes(trained):
    """Rank 1 could not have written: in it, each write was an error."""
    for case in (*TOGETHER, "diverged"):
        first, second = trained.seen(case)
        assert first["result"] == second["result"] == trained.result(case)
        assert second["rows"] == [] and [row["step"] for row in first["rows"]] == list(range(1, len(first["rows"]) + 1))
        assert [row["step"] for row in trained.rows(case)] == [row["step"] for row in first["rows"]][: first["result"]["steps"]]
        keys = [(row["step"], row["name"], row["what"]) for row in trained.rows(case, "norms.jsonl")]
        assert len(set(keys)) == len(keys)
    assert trained.seen("diverged")[1]["result"]["status"] == "diverged"
    assert "rank 1 wrote" in trained.seen("adamw ddp")[1]["write"]  # the control: what a write would have said


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_with_any_number_of_processes(trained, optimizer):
    """Stopped by rank 1 at 5 (DDP), alone at 9, by rank 1 at 13 (FSDP2) and 16 (DDP), and to the end alone."""
    case = f"{optimizer} broken"
    first, second = trained.seen(case)
    assert first["saved"] == second["saved"] == [5, 9, 13, 16]
    assert [row["step"] for row in trained.rows(case)] == list(range(1, STEPS + 1))
    assert trained.losses(case) == pytest.approx(trained.losses(f"{optimizer} alone"), rel=1e-5)
    norms, theirs = (trained.rows(c, "norms.jsonl") for c in (case, f"{optimizer} alone"))
    assert len(norms) == len(theirs) and all(close(a, b) for a, b in zip(norms, theirs, strict=True))
    forgot = trained.losses("adamw forgot")  # the control: FSDP2 resumed without the optimizer's state
    assert forgot[:5] == pytest.approx(trained.losses("adamw alone")[:5], rel=1e-5)
    assert forgot != pytest.approx(trained.losses("adamw alone"), rel=1e-4)


def test_all_ranks_take_the_checkpoint_that_the_leader_can_read(trained):
    """The newest was damaged: all go on with the one before, and only the leader looked for it."""
    assert trained.losses("damaged") == pytest.approx(trained.losses("adamw alone"), rel=1e-5)
    first, second = trained.seen("damaged")
    assert "is damaged and was moved aside" in first["warned"] and second["warned"] == ""


@pytest.mark.parametrize("case", ["raises", "silent", "killed"])
def test_when_one_fails_the_other_ends_and_the_run_can_go_on(trained, case):
    """Rank 1 fails before its seventh step: the other ends at once if that process is gone, else after the 4 s of timeout."""
    seen = json.loads((trained.folder / f"{case}.0.json").read_text())
    assert seen["error"] and seen["seconds"] < 15, seen
    assert case == "raises" or (seen["seconds"] > 4) == (case == "silent"), seen  # what it raised may keep connections open
    assert trained.losses(case) == pytest.approx(trained.losses("adamw alone"), rel=1e-5)
    assert seen["resumed at"] == 4


def test_a_batch_that_cannot_be_shared_is_refused(tiny, corpus, tmp_path):
    point = first_point(tiny())
    with pytest.raises(ValueError, match="batch_size=4: not a multiple of train.accumulate=1 times 3 processes"):
        run_point(point, tmp_path, corpus, processes=ProcessGroup(0, 3))


def test_ranks_draw_their_own_dropout():
    draws = {}
    for key in ((0, 0, 0), (0, 0, 1), (0, 5, 0), (1, 0, 0)):
        seed, step, rank = key
        for _ in range(2):
            ProcessGroup(rank, 2).seed(seed, step)
            draws.setdefault(key, []).append(float(torch.rand(())))
    assert all(first == second for first, second in draws.values())
    assert len({first for first, _ in draws.values()}) == 4
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SINGLE_PROCESS.seed(0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_alone_nothing_is_asked_of_torch_distributed():
    model, t = torch.nn.Linear(2, 2), torch.tensor([math.nan])
    with init_process_group(0, 1, "nowhere", 0, "cpu") as processes:
        assert (
            processes.wrap(model, torch.device("cpu"), True) is model
            and processes.mean(t) is t
            and processes.broadcast(model) is model
        )
        assert (processes.any(True), processes.any(False), processes.is_main) == (True, False, True)
    assert not torch.distributed.is_initialized()
