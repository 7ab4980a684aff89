"""The tutorial as a reader runs it, in a kernel of its own; README opens its part on one's own model with the same lines."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "examples" / "tutorial.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> str:
    return "".join(str(o.get("text", "")) + str(o.get("data", "")) for o in cell.outputs)


def test_its_first_cell_is_readmes_example():
    nbformat = pytest.importorskip("nbformat", reason="pip install -c requirements.lock -e '.[test]'")
    section = (ROOT / "README.md").read_text("utf-8").partition("### Your own model\n")[2]
    example = re.search(r"```python\n(.*?)\n```", section, re.DOTALL)
    assert example and code_cells(nbformat.read(TUTORIAL, 4))[0].source == example[1]


def test_it_is_committed_as_it_ran():
    nbformat = pytest.importorskip("nbformat", reason="pip install -c requirements.lock -e '.[test]'")
    cells = code_cells(nbformat.read(TUTORIAL, 4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)) and all(cell.outputs for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or "/tmp" in str(o)]
    assert re.search(r"standard +drifts", shown(cells[3])) and re.search(r"spectral +transfers", shown(cells[3]))


@pytest.mark.slow
def test_it_runs_to_its_verdicts(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="pip install -c requirements.lock -e '.[test]'")
    from nbclient import NotebookClient

    notebook = nbformat.read(TUTORIAL, 4)
    sweep = code_cells(notebook)[3]
    assert "steps=100," in sweep.source
    sweep.source = sweep.source.replace("steps=100,", "steps=40,")  # for a third of the time
    NotebookClient(notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    of_cells = [shown(cell) for cell in code_cells(notebook)]
    assert "control standard: failed, as it should" in of_cells[1]
    assert re.search(r"standard +drifts", of_cells[3])
    assert sum("image/png" in text for text in of_cells) == 2
    assert (tmp_path / "results/tutorial/lr_transfer.png").is_file()
