"""Commands called in this process, and finished runs that nobody trained."""

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path

from spectral_mup.cli.console import main
from spectral_mup.cli.context import command
from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

RESULT = {
    "status": "done", "seconds": 1.0, "steps": 12, "tokens": 768, "epochs": 0.1, "diverged_step": None,
    "corpus": {"sha256": "none"}, "parameters": 1000, "precision": "float32", "val_loss": 3.0,
}  # fmt: skip


DIVERGED = RESULT | {"status": "diverged", "diverged_step": 3, "val_loss": None}


def call(*argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `spectral-mup …`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(list(argv))
    return code, out.getvalue(), err.getvalue()


def transcript(*argv: str) -> str:
    """All that a command prints, stderr last, and its exit code; bars are left out, and OVERRIDES stands for its own."""
    code, out, err = call(*argv)
    own = command("", argv[1:]).strip()
    lines = [line for line in f"{out}{err}exit {code}\n".splitlines(keepends=True) if "━" not in line]
    return "".join(lines).replace(own, "OVERRIDES") if "=" in own else "".join(lines)


def planned(argv: list[str]) -> list[RunConfig]:
    """The first runs of a sweep, in the order of the plan."""
    return make_plan(open_sweep(load_config(argv)), lambda run: None).runs


def finish(run: RunConfig, runs: Path, best: Callable[[str, int], float] = lambda rule, width: -6.0, **result) -> None:
    """Write the folder of a run whose loss is a parabola of its lr with its minimum at best(rule, width)."""
    folder = RunFolder(runs, run.run_id)
    folder.write_config(run.to_json())
    folder.claim()
    folder.append("norms.jsonl", [])
    octaves = run.log2_lr - best(run.curve.rule, run.curve.width)
    folder.finish(RESULT | {"val_loss": 3 + 0.01 * octaves**2 - 0.1 * math.log2(run.curve.width)} | result)
