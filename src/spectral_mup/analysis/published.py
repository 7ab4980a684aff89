"""Slopes that others published, to be drawn beside ours: the file published.csv in a folder of results."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from spectral_mup.analysis.results import ResultsError
from spectral_mup.runs.run_config import AXES

FILE_NAME = "published.csv"
QUOTE = "put a note that has commas in double quotes"


class Published(NamedTuple):
    """A published slope d log2 η* / d log2 size; its fields are the columns of the file."""

    optimizer: str  # as in conf/optimizer
    family: str  # as in conf/model
    axis: str  # one of AXES
    rule: str  # the one of ours that is nearest; standard* is a control
    slope: float
    source: str  # an arXiv id
    note: str  # how the slope was obtained; may be empty


def read_published(folder: Path) -> list[Published]:
    """Read the slopes in folder/published.csv; empty if the folder has no such file.

    Raises ResultsError on a missing or unknown column and on a cell that cannot be right; it names the column and the fix.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, restkey="", restval="", strict=True)
            head, found = list(table.fieldnames or []), []
            for column in Published._fields:
                if head.count(column) != 1:
                    problem = "occurs twice" if column in head else "is missing"
                    raise ResultsError(
                        f"{path}: column {column} {problem}; the first line must be {','.join(Published._fields)}"
                    )
            for row in table:
                if "" in row:  # where csv puts what is beyond the last column
                    raise ResultsError(f"{path}, line {table.line_num}: more cells than columns; {QUOTE}")
                cells = {column: row[column].strip() for column in Published._fields}
                for problem in _problems(cells):
                    raise ResultsError(f"{path}, line {table.line_num}: {problem}")
                optimizer, family, axis, rule, slope, source, note = cells.values()
                found.append(Published(optimizer, family, axis, rule, float(slope), source, note))
            return found
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise ResultsError(f"{path}: no CSV in UTF-8 ({error}); its columns are {','.join(Published._fields)}") from None


def _problems(cells: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with a line."""
    for column in Published._fields[:-1]:
        if not cells[column]:
            yield f"column {column} is empty; fill it in, or delete the line"
    for column in ("optimizer", "family"):
        if cells[column] != cells[column].lower():
            yield f"column {column} has {cells[column]}; write our lower-case name, {cells[column].lower()}"
    if cells["axis"] not in AXES:
        yield f"column axis has {cells['axis']}; write one of {', '.join(AXES)}"
    try:
        known = math.isfinite(float(cells["slope"]))
    except ValueError:
        known = False
    if not known:
        yield f"column slope has {cells['slope']}; write a number, as in -0.17"
