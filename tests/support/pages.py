"""A report page over width and depth whose truth is known."""

from pathlib import Path
from typing import Any

from spectral_mup.analysis.figures import choose_figures
from spectral_mup.analysis.page.formula import formula
from spectral_mup.analysis.page.write import About, write_page
from spectral_mup.analysis.report import report
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.sweep import open_sweep
from support.analysis_data import data
from support.runs import composed

SIZES = {"width": (64, 128, 256, 512), "depth": (2, 4, 8, 16)}


def largest(rule: str = "spectral", *overrides: str) -> RunConfig:
    """A run of a model four times as wide and twice as deep as its base."""
    sizes = ["sweep.width=[32,64,128]", "sweep.base_width=32", "sweep.depth=[2,4]", "sweep.base_depth=2"]
    config = composed("data=pydoc", f"rule=[{rule}]", *sizes, *overrides)
    return open_sweep(config).run(Curve(rule, 128, 4), -6.0, 0)


def write_results(folder: Path, figures: list[str], axes: tuple[str, ...] = ("width", "depth")) -> list[Path]:
    """Results of two rules over each axis; return their folders."""
    folders = [folder if axis == axes[0] else folder / axis for axis in axes]
    for axis, out in zip(axes, folders, strict=True):
        points, norms = data(sizes=SIZES[axis], axis=axis)
        said: Any = {"command": "python analyze.py sweep=demo", "commit": "abc", "train_hours": 0.5}
        report(points, norms, name="demo", out_dir=out, axis=axis, base={axis: SIZES[axis][0]}, figures=figures, **said)
    return folders


def page_of(path: Path, folders: list[Path], figures: list[str], **about: Any) -> str:
    """Write the page; return its text."""
    given: Any = {"name": "demo", "launch": "python launch.py sweep=demo", "config": "sweep:\n  name: demo\n"} | about
    write_page(path, folders, choose_figures(figures), About(**given, formulas=[formula(largest())]))
    return path.read_text("utf-8")
