"""The results of a sweep that analyze.py wrote, read back as tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from spectral_mup.analysis.collect import KEY, as_judged, norms_of
from spectral_mup.analysis.own_runs import Judged
from spectral_mup.analysis.report import notes_on, table_of
from spectral_mup.analysis.results import ResultsError, read_folder
from spectral_mup.analysis.verdict import loss_name
from spectral_mup.util.text import html_table, pluralize

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """Results of a sweep as they were judged then; nothing is judged anew. Prints a summary.

    Attributes:
        folder: Where they are.
        name: Name of the sweep.
        command: What judged it.
        commit: Of the code that judged it.
        runs: One row per run of a rule, those of the base size under each (curves.csv).
        features: Slopes of norms of modules and tensors against size, one row per step (features.csv); empty if none were
            judged.
        judged: The verdicts, as `judge` returns them.
        runs_folder: Where its runs are; None: not found.
    """

    folder: Path
    name: str
    command: str  # that judged it
    commit: str
    runs: pd.DataFrame
    features: pd.DataFrame
    judged: Judged
    runs_folder: Path | None  # where its runs are; None: not found

    @property
    def verdicts(self) -> pd.DataFrame:
        """One row per rule: verdict, slope and regret with the bounds of their intervals, runs by status."""
        return self.judged.to_frame()

    @property
    def optima(self) -> pd.DataFrame:
        """One row per rule and size: the best log2 value with its interval, the loss there, each seed's own best."""
        return self.judged.optima

    @cached_property
    def norms(self) -> pd.DataFrame:
        """One row per probed step and module or tensor of every run, read on first use; empty, and warns, if none exists.

        Runs that several rules share are there under each of them.
        """
        found = norms_of(self.runs["run_id"].unique(), self.runs_folder) if self.runs_folder else pd.DataFrame()
        if found.empty:
            warnings.warn(self._norms_text, stacklevel=2)
            return pd.DataFrame(columns=KEY)
        return self.judged.points[KEY].merge(found, on="run_id")

    @property
    def _norms_text(self) -> str:
        if self.runs_folder is not None:
            here = self.runs_folder.relative_to(Path.cwd()) if self.runs_folder.is_relative_to(Path.cwd()) else self.runs_folder
            return f"norms: of its runs under {here}/, read when asked for"
        return f"norms: none, as the runs of {self.folder} are not beside it; give their folder, as in load(…, runs='runs')"

    @property
    def _notes(self) -> list[str]:
        return [
            f"{self.name}: {pluralize(len(set(self.runs['run_id'])), 'run')}, judged by {self.command} (commit {self.commit})",
            self._norms_text,
        ]

    def __str__(self) -> str:
        return "\n".join([str(self.judged), *self._notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        verdicts = self.judged.verdicts
        return html_table(table_of(verdicts), [*notes_on(verdicts), *self._notes])

    def plot(self, ax: Axes | None = None, *, rule: str | None = None) -> Axes:
        """Draw into `ax` and return it: see `plot_lr_transfer`."""
        return self.judged.plot(ax, rule=rule)


def load(folder: str | Path, runs: str | Path | None = None) -> Loaded:
    """Read a folder that analyze.py wrote, as results/default: curves.csv, features.csv and verdicts.json.

    Args:
        folder: The folder of one sweep's results.
        runs: The folder of its training runs, for `norms`; by default runs/ beside results/.

    Returns:
        The results as they were judged then.

    Raises:
        ResultsError: `folder` holds no results, or `runs` none of their runs; a ValueError.
    """
    folder = Path(folder)
    if not (folder / "verdicts.json").is_file():
        raise ResultsError(f"{folder}: {_instead(folder)}")
    w = read_folder(folder)
    about = {name: w.about[name] for name in ("name", "command", "commit")}
    judged = Judged(as_judged(w.runs), w.verdicts, loss_name(w.runs))
    runs_folder = _runs_folder(folder, w.runs["run_id"], runs)
    return Loaded(folder, **about, runs=w.runs, features=w.features, judged=judged, runs_folder=runs_folder)


def _instead(folder: Path) -> str:
    """Say what to do about a folder without verdicts.json."""
    below = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("verdicts.json"))
    if below:
        return f"holds no verdicts.json itself; give a folder below it: {', '.join(below[:5])}{' …' * (len(below) > 5)}"
    missing = "holds no verdicts.json" if folder.is_dir() else "is not a folder"
    return f"{missing}; python analyze.py sweep=NAME writes a sweep's results under results/NAME"


def _runs_folder(folder: Path, run_ids: Iterable[str], given: str | Path | None) -> Path | None:
    """Return the folder that holds some of the runs. Raises ResultsError if the one given does not."""
    near = [parent / "runs" for parent in folder.resolve().parents]
    for runs in near if given is None else [Path(given)]:
        if any((runs / run_id).is_dir() for run_id in run_ids):
            return runs
    if given is not None:
        raise ResultsError(f"runs={given}: holds none of the runs of {folder}; give the folder that paths.runs named")
    return None
