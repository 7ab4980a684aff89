"""README and docs/: what they show is what the program does."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import call
from support.own_model import LANGUAGE_MODEL
from support.readme import ROOT

from spectral_mup.analysis.load import load
from spectral_mup.theory.growth import Growth
from spectral_mup.theory.rules import Multipliers, UpdateScaling, spectral_scaling

PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = (  # commands that other tests run, or that set up a machine
    "python3 -m venv", "pip install", "spectral-mup init", "eval ", "python tests/", "bash .ci/run",
)  # fmt: skip
SHORT = {  # what a command is given besides, so that it does not train for minutes, nor call a server
    "derive": ["derive.width=[16,32,64]", "model.head_size=8", "derive.steps=8", "derive.seed=[0,1]", "data=pydoc"],
    "wandb_push": ["wandb.mode=offline"],
}
PLANNED = {"run": "plan"}  # actions that train or submit: their plan is made instead


def commands() -> list[str]:
    """Every line of a bash block, without its comment."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [re.sub(r"\s+#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(ELSEWHERE)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with what the commands speak of."""
    folder = tmp_path_factory.mktemp("docs")
    text = " ".join(str(i) for i in range(40_000))
    (folder / "book.txt").write_text(text)
    (folder / "stories.jsonl").write_text('{"text": "' + text + '"}\n')
    (folder / "my_module.py").write_text(
        LANGUAGE_MODEL + "\n\ndef build(width, depth, vocab_size, context):\n    return LM(width, vocab_size)\n"
    )
    shutil.copytree(ROOT / "sweeps" / "results" / "grid" / "width", folder / "results" / "mini" / "width")
    shutil.copytree(ROOT / "sweeps" / "results" / "default", folder / "results" / "default")
    shutil.copytree(ROOT / "examples" / "image_classifier", folder / "examples" / "image_classifier")
    return folder


def test_there_are_commands():
    assert len(commands()) >= 30


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line, folder, monkeypatch, undraw):
    """Launches are planned in place of being trained; the rest is done, and may say that there are no runs yet."""
    undraw()
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda *_: None)  # of --summary
    monkeypatch.chdir(folder)
    if (parts := line.split(" && "))[0].startswith("cd "):
        monkeypatch.chdir(folder / parts.pop(0).removeprefix("cd "))
    for part in parts:
        program, script, *argv = shlex.split(part.replace("$PWD", os.getcwd()))
        assert program == "python", part
        name = Path(script).stem
        assert name in ("launch", "analyze"), part
        action = next((word.removeprefix("action=") for word in argv if word.startswith("action=")), "run")
        argv = [word for word in argv if not word.startswith(("action=", "watch"))] + SHORT.get(action, [])
        if name == "launch":
            argv.append(f"action={PLANNED.get(action, action)}")
        code, out, err = call(name, *argv)
        assert code == 0 or re.search(r"no run is done|nothing|controller", out + err), out + err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", ["README.md", "docs/verdicts.md"])
def test_the_verdicts_shown_are_what_is_printed(page):
    (shown,) = re.findall(r"```text\n(rule .*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert str(load(ROOT / "sweeps/results/default").judged).startswith(shown)


def test_pages_show_figures_that_load_quickly():
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    }
    assert len(shown) >= 10
    assert {path.name: path.stat().st_size for path in shown if path.stat().st_size >= 200_000} == {}


GROWN = {  # of README's table: a model four times as wide
    "embedding": Growth("embedding", (256, 1), (64, 1)),
    "hidden": Growth("hidden", (256, 256), (64, 64)),
    "readout": Growth("readout", (65, 256), (65, 64)),
    "bias, gain": Growth("vector", (256, 1), (64, 1)),
}
SIZE = {
    "AdamW, ADOPT, Sophia, Lion": {"m_out": 0.5, "m_in": 0.5},
    "LAMB": {"s": 1, "m_out": 0.5, "m_in": 0.5},
    "Muon, Shampoo": {},
    "SGD": {"c": 1, "a": 1, "m_in": 0.5, "m_out": -0.5},
}
VALUE = {"1": 1.0, "m": 4.0, "1/m": 0.25, "m^-1/2": 0.5}


def table_of(heading: str) -> list[dict[str, str]]:
    """The first table after a heading of README, a dict a row."""
    section = (ROOT / "README.md").read_text("utf-8").split(f"\n{heading}\n")[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = cells[2 : 2 + len(GROWN)]
    return [dict(zip(cells[0], row, strict=True)) for row in rows]


def test_the_table_of_multipliers_is_the_formulas():
    forward = Multipliers(attention=1.0, logits=0.25)
    rows = table_of("### What `rule=spectral` does")
    assert [row["tensor"] for row in rows] == list(GROWN)
    for row in rows:
        growth = GROWN[row["tensor"]]
        adam = spectral_scaling(
            growth, UpdateScaling("adamw", SIZE["AdamW, ADOPT, Sophia, Lion"], {"c": 1, "a": 1, "m_out": -1}), forward
        )
        assert adam.init_std == VALUE[row["init std"]]
        assert adam.eps == VALUE[row["ε of Adam"]]
        assert row["weight decay λ"] == "1/lr" and adam.weight_decay == 1 / adam.lr
        for names, size in SIZE.items():
            said = row[f"lr: {names}"]
            if said == "AdamW's":
                continue
            law = SIZE["AdamW, ADOPT, Sophia, Lion"] if names == "LAMB" and growth.kind == "vector" else size
            assert spectral_scaling(growth, UpdateScaling(names, law), forward).lr == VALUE[said], (row["tensor"], names)


def test_docs_are_built_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        assert not os.environ.get("CI")
        pytest.skip("pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
    assert "set_multipliers_" in page
    built = [path for path in (tmp_path / "site").rglob("*.html")]
    assert (tmp_path / "site" / "results" / "grid" / "forest.png").stat().st_size > 10_000  # which lies outside of docs/
    assert not [path for path in built if re.search(r'(src|href)="https?://(fonts|cdn|unpkg)', path.read_text("utf-8"))]
