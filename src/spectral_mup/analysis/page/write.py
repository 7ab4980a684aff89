"""From folders of results to the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from spectral_mup import __version__
from spectral_mup.analysis.collect import as_judged
from spectral_mup.analysis.figures import FigureSpec
from spectral_mup.analysis.joint_regret import format_joint_regret
from spectral_mup.analysis.names import printed
from spectral_mup.analysis.page.cards import MINUS, cards, number
from spectral_mup.analysis.page.chart import chart
from spectral_mup.analysis.page.formula import HEADINGS, Formula
from spectral_mup.analysis.page.svg import Symbols, inline
from spectral_mup.analysis.page.tables import features_table, optima_table, runs_table, verdict_table
from spectral_mup.analysis.results import Written, read_folder
from spectral_mup.analysis.verdict import what_was_run
from spectral_mup.config.tune import LR

TEMPLATES = Path(__file__).with_name("templates")
PARTS = {"report.css": "style", "report.js": "script"}


@dataclass(frozen=True)
class About:
    """What folders of results do not say of a sweep."""

    name: str
    launch: str  # the command that trains it
    config: str  # YAML
    formulas: Sequence[Formula] = ()
    labels: Mapping[str, str] | None = None  # the user's own names of rules and optimizers
    hours: float | None = None  # of training, of all runs that ended, each once; None where that is not known


def write_page(path: Path, folders: Sequence[Path], figures: Mapping[str, FigureSpec], about: About) -> None:
    """Write the page of a sweep: one section per folder of results, with the `figures` that lie in it.

    The same files give the same bytes. Raises ResultsError where a folder cannot be read.
    """
    found = {folder: read_folder(folder) for folder in folders}
    symbols = Symbols()
    sections = [_section(folder, written, figures, symbols, about) for folder, written in found.items()]
    several = len(sections) > 1
    of_axes = {v.axis for written in found.values() for v in written.verdicts}
    joint = (
        [_joint(folder, written, figures, symbols) for folder, written in found.items()]
        if {"width", "depth"} <= of_axes
        else []
    )
    every = pd.concat([written.runs for written in found.values()]).drop_duplicates("run_id")
    first = next(iter(found.values())).about
    verdicts = [v for written in found.values() for v in _ordered(written)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {name: (TEMPLATES / file).read_text("utf-8") for file, name in PARTS.items()}
    environment.filters |= {"number": number, "fraction": _fraction}
    page = environment.get_template("report.html").render(
        about=about,
        version=__version__,
        command=first["command"],
        commit=first["commit"],
        hours=about.hours,
        facts=_facts(every, about),
        said=what_was_run(every),
        sections=sections,
        several=several,
        joint=[part for part in joint if part],
        summary=verdict_table(verdicts, lambda rule: printed(rule, about.labels)),
        headings=HEADINGS,
        symbols=symbols.markup,
        charts={section["id"]: section["chart"] for section in sections},
    )
    path.write_text(page, "utf-8")


def _fraction(x: float) -> str:
    """Return an exponent: −1/2 rather than −0.5."""
    return str(Fraction(x).limit_denominator(12)).replace("-", MINUS)


def _ordered(written: Written) -> list[Any]:
    """Return the verdicts, controls last."""
    return sorted(written.verdicts, key=lambda v: v.is_control)


def _section(
    folder: Path, written: Written, figures: Mapping[str, FigureSpec], symbols: Symbols, about: About
) -> dict[str, Any]:
    """Return what the template shows of one folder."""

    def called(rule: str) -> str:
        return printed(rule, about.labels)

    verdicts = _ordered(written)
    axis, tuned, points = verdicts[0].axis, verdicts[0].tuned, as_judged(written.runs)
    of_axis = axis.replace("_", " ")
    others = [
        f"{other} {points[other].iloc[0]}" for other in ("width", "depth") if other != axis and len(points[other].unique()) == 1
    ]
    parts = {v.rule: part for v, part in zip(written.verdicts, written.parts, strict=True)}
    return {
        "id": f"{tuned}-{axis}".replace(".", "-").replace("_", "-"),
        "title": f"Over {of_axis}, at {' and '.join(others)}{f': {tuned}' * (tuned != LR)}" if others else f"Over {of_axis}",
        "axis": of_axis,
        "base": verdicts[0].base,
        "tuned": "learning rate" if tuned == LR else tuned,
        "cards": cards(verdicts, called),
        "chart": chart(verdicts, parts, called),
        "optima": optima_table(verdicts, called),
        "runs": runs_table(points, axis, tuned, called),
        "features": features_table(written.features, called),
        "figures": _figures(folder, axis, figures, symbols),
    }


def _joint(folder: Path, written: Written, figures: Mapping[str, FigureSpec], symbols: Symbols) -> dict[str, Any] | None:
    """Return what is said of width and depth together, in the folder that holds it."""
    if not (folder / "joint_regret.csv").exists():
        return None
    lines = format_joint_regret(pd.read_csv(folder / "joint_regret.csv"), written.verdicts[0].tuned).splitlines()
    return {"lines": lines, "figures": _figures(folder, "joint", figures, symbols)}


def _figures(folder: Path, axis: str, figures: Mapping[str, FigureSpec], symbols: Symbols) -> list[dict[str, str]]:
    """Title, drawing and caption of the figures over an axis that were drawn."""
    found = []
    for name, spec in figures.items():
        drawn, caption = folder / f"{name}.svg", folder / f"{name}.txt"
        if axis in spec.axes and drawn.exists():
            title = (spec.help.strip().splitlines() or [name])[0]
            said = caption.read_text("utf-8").strip() if caption.exists() else ""
            markup = inline(drawn.read_text("utf-8"), symbols, title)
            found.append({"name": name, "title": title[:1].upper() + title[1:], "drawing": markup, "caption": said})
    return found


def _facts(points: pd.DataFrame, about: About) -> dict[str, str]:
    """Return what was run, in a few words each."""

    def listed(column: str) -> str:
        return ", ".join(map(str, sorted({int(x) for x in points[column].dropna()})))

    counts = points["status"].value_counts()
    lrs = points["log2_lr"].to_numpy(float)
    facts = {
        "model": ", ".join(printed(str(x), about.labels) for x in points["family"].unique()),
        "optimizer": ", ".join(printed(str(x), about.labels) for x in points["optimizer"].unique()),
        "widths": listed("width"),
        "depths": listed("depth"),
        "steps": listed("steps"),
        "log2 lr": f"{number(lrs.min(), '{:g}')} to {number(lrs.max(), '{:g}')}",
        "seeds": listed("seed"),
        "runs": ", ".join(f"{counts[status]} {status}" for status in ("done", "diverged", "missing") if status in counts),
    }
    return {name: value for name, value in facts.items() if value}
