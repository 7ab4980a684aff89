"""A run records the code that its numbers follow from, and no other."""

import pytest
import torch
from support.runs import composed, first_point

from spectral_mup.runs import provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules; `code` is asked anew each time."""
    for name in ("training/run.py", "util/seeds.py", "cli/help.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("loss = 1")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    monkeypatch.setattr(provenance, "code", provenance.code.__wrapped__)
    return tmp_path


def recorded(*overrides: str) -> str | None:
    return provenance.code_of(provenance.provenance(first_point(composed("data=pydoc", *overrides)), torch.device("cpu")))


def test_an_edit_of_what_is_trained_is_another_code_and_one_of_what_is_said_is_not(package):
    before = recorded()
    (package / "cli/help.py").write_text("said = 2")
    assert recorded() == before
    for name in ("training/run.py", "util/seeds.py"):
        (package / name).write_text("loss = 2")
        assert recorded() != before
        (package / name).write_text("loss = 1")
        assert recorded() == before
    (package / "training/run.py").rename(package / "training/walk.py")
    assert recorded() != before


def test_so_is_an_edit_of_an_optimizer_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, target = tmp_path / "mine_edited.py", "optimizer.algorithms.adamw.target=mine_edited.Mine"
    file.write_text("import torch\nclass Mine(torch.optim.AdamW): pass\n")
    before = recorded(target)
    assert "mine_edited.Mine" in before and "mine_edited" not in recorded()
    file.write_text(file.read_text() + "# edited\n")
    assert recorded(target) != before


def test_records_that_older_versions_left_are_told_apart_by_their_commit():
    assert provenance.code_of({"commit": "12ab"}) != provenance.code_of({"commit": "12ab+"})
    assert provenance.code_of({}) is None and provenance.code_of(None) is None
