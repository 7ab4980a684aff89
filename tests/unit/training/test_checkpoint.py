"""Laws of checkpoints: what cannot be read now is tried again, what is damaged counts for nothing, others' files are let be."""

import pickle
import zipfile

import pytest
import torch

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.training import checkpoint
from spectral_mup.training.checkpoint import load_checkpoint, save_checkpoint
from spectral_mup.training.trainer import Trainer

AUTO = {"precision": "float32"}


def trainer(step: int = 0) -> Trainer:
    made = Trainer(torch.nn.Linear(2, 2), [], lambda step: [], lambda *_: torch.zeros(()))
    made.step_number = step
    return made


def folder_at(runs, *steps: int) -> RunFolder:
    """A claimed folder with checkpoints of these steps."""
    folder = RunFolder(runs, "r")
    folder.claim()
    save(folder, *steps)
    return folder


def save(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, trainer(step), AUTO)


def resumed(folder: RunFolder) -> int:
    """The step from which it goes on."""
    fresh = trainer()
    load_checkpoint(folder, fresh, AUTO)
    return fresh.step_number


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def raising(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


UNREADABLE = {
    PermissionError: lambda newest, patch: newest.chmod(0),
    IsADirectoryError: lambda newest, patch: (newest.unlink(), newest.mkdir()),
    MemoryError: lambda newest, patch: patch(torch, "load", raising(MemoryError())),
    torch.OutOfMemoryError: lambda newest, patch: patch(torch, "load", raising(torch.OutOfMemoryError("CUDA out of memory"))),
    TimeoutError: lambda newest, patch: patch(zipfile.ZipFile, "testzip", raising(TimeoutError(110, "NFS"))),
}


@pytest.mark.parametrize("error", UNREADABLE)
def test_what_cannot_be_read_now_ends_this_start_and_nothing_else(no_root, monkeypatch, error):
    folder = folder_at(no_root, 3, 8725)
    UNREADABLE[error](folder.checkpoints / "000008725.pt", monkeypatch.setattr)
    with pytest.raises(error):
        load_checkpoint(folder, trainer(), AUTO)
    assert names(folder) == ["000000003.pt", "000008725.pt"]


def test_a_damaged_checkpoint_counts_for_nothing_beside_those_that_follow(tmp_path, caplog):
    folder = folder_at(tmp_path, 8724, 8725)
    for path in folder.checkpoint_files():
        path.write_bytes(path.read_bytes()[:-50])
    assert resumed(folder) == 0 and "000008725.pt is damaged and was moved aside" in caplog.text
    assert folder.newest_checkpoint() == 0
    save(folder, 5, 6, 7)
    assert resumed(folder) == 7 and names(folder)[:2] == ["000000006.pt", "000000007.pt"]


def test_the_checkpoint_just_written_is_kept_whatever_else_is_there(tmp_path):
    folder = folder_at(tmp_path, 5, 9)
    save(folder, 6)
    assert "000000006.pt" in names(folder)


NOT_OURS = ["best.pt", "9.pt", "0000000099.pt", "٣٣٣٣٣٣٣٣٣.pt", "000000099.pt.old", "model.safetensors"]


def test_files_of_others_are_neither_read_nor_deleted(tmp_path):
    folder = folder_at(tmp_path, 3)
    for name in NOT_OURS:
        (folder.checkpoints / name).write_text("mine")
    assert (resumed(folder), folder.newest_checkpoint()) == (3, 3)
    save(folder, 4, 5, 6)
    assert [path.name for path in folder.checkpoint_files()] == ["000000005.pt", "000000006.pt"]
    assert all((folder.checkpoints / name).read_text() == "mine" for name in NOT_OURS)


def write_zip(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", b"c")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"a": 1}, path),
        lambda path: torch.save([1], path),
        lambda path: torch.save({"step": 5, "auto": {}}, path),  # of another step than its name says
        lambda path: torch.save({"step": 9, "auto": {}, "x": pytest}, path, pickle_module=ByName),
        write_zip,
        lambda path: path.write_bytes(pickle.dumps({"step": 9})),
    ],
)
def test_a_whole_file_that_is_no_checkpoint_of_ours_is_moved_aside(tmp_path, write, caplog):
    folder = folder_at(tmp_path, 3)
    write(folder.checkpoints / "000000009.pt")
    assert resumed(folder) == 3 and "000000009.pt is damaged" in caplog.text
    assert names(folder) == ["000000003.pt", "000000009.pt.damaged"]


class ByName:
    """A pickle module that writes a call which no checkpoint has."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            return (print, ("called",)) if value is pytest else NotImplemented


def test_wherever_a_file_is_damaged_it_is_noticed_or_was_of_no_weight(tmp_path):
    """Cut off or changed at each of many places, a file loads to the same state or is moved aside."""
    folder = folder_at(tmp_path, 9)
    path = folder.checkpoints / "000000009.pt"
    whole, noticed = path.read_bytes(), 0
    state = checkpoint._load(path, torch.device("cpu"))
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            found = checkpoint._load(path, torch.device("cpu"))
            noticed += found is None
            assert found is None or str(found) == str(state)
    assert noticed > 150
    path.write_bytes(whole)
    assert resumed(folder) == 9
