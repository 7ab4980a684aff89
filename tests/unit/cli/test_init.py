"""`init` writes a project and never over anything. That the project runs is tests/integration/test_wheel.py."""

import ast

import pytest
import torch
import yaml
from support.cli import call

from spectral_mup.cli.console import TEMPLATES


@pytest.fixture
def demo(tmp_path):
    assert call("init", str(tmp_path / "new" / "demo"))[0] == 0
    return tmp_path / "new" / "demo"


def test_the_files(demo):
    files = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore", "README.md", "my_model.py", "my_optimizer.py", "sweeps/mine.yaml",
        "conf/model/my_model.yaml", "conf/optimizer/my_optimizer.yaml", "conf/rule/my_rule.yaml",
    }  # fmt: skip
    assert len((demo / "README.md").read_text().splitlines()) <= 12
    for path in (demo / f for f in files):
        if path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())
        elif path.suffix == ".py":
            ast.parse(path.read_text())


def test_an_empty_folder_is_taken_and_a_full_one_or_a_file_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert call("init", str(tmp_path / "empty"))[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        code, out, err = call("init", str(tmp_path / name))
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()


def test_the_optimizer_takes_steps_of_the_size_that_its_yaml_declares():
    """Entries of ±lr once the momentum is not zero, so ‖U‖₂ of a rank-one gradient is lr·√(fan_out·fan_in)."""
    names: dict = {}
    exec((TEMPLATES / "my_optimizer.py").read_text(), names)
    weight = torch.nn.Parameter(torch.zeros(8, 32))
    optimizer = names["SignMomentum"]([weight], lr=0.5)
    for sign in (1, -1):  # the momentum outweighs one gradient of the other sign
        weight.grad = sign * torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 33))
        before = weight.detach().clone()
        optimizer.step()
        assert torch.linalg.matrix_norm(weight.detach() - before, 2) == pytest.approx(0.5 * (8 * 32) ** 0.5)
    assert (weight <= 0).all()
