"""The action that lists sweeps by name: ls."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from spectral_mup.cli.context import OK, Context
from spectral_mup.cli.names import recorded_context
from spectral_mup.errors import ConfigError, RecordError
from spectral_mup.runs.records import RECORDS
from spectral_mup.runs.results import file_state
from spectral_mup.runs.sweep import Sweep
from spectral_mup.runs.sweep_record import FILE, read_record, recorded_names
from spectral_mup.util.files import read_json
from spectral_mup.util.text import COLUMNS, format_duration, table

HEAD = ("sweep", "runs", "last active", "verdicts")
OUTDATED = " *"


class Listed(NamedTuple):
    """A row of the list: runs done of those planned so far, the time of its last sign of life, verdicts as words."""

    name: str
    runs: str
    active: float
    verdicts: list[str]


def ls(context: Context) -> int:
    """Print the sweeps that were launched, the last active first: one row per sweep, and further lines for further verdicts."""
    results = Path(context.config.paths.results)
    listed = sorted(_listed(context, results), key=lambda sweep: (-sweep.active, sweep.name))
    if not listed:
        print(f"No sweep was launched into {results}/ so far. Start with: {context.program.format('launch')} sweep=smoke")
        return OK
    notes = {"+": "+ more runs follow from these", OUTDATED: "* runs have ended since; analyze NAME judges again"}
    text = " ".join(cell for sweep in listed for cell in (sweep.runs, *sweep.verdicts))
    print("\n".join([*_format(listed), *(note for mark, note in notes.items() if mark in text)]))
    return OK


def _format(listed: list[Listed]) -> list[str]:
    """Return lines of at most COLUMNS characters; a name that does not fit beside the rest has a line of its own."""
    lines = [[s.runs, _ago(s.active), verdict] for s in listed for verdict in s.verdicts]
    beside = sum(2 + max(map(len, column)) for column in zip(HEAD[1:], *lines, strict=True))
    cells, above = [], {}
    for sweep in listed:
        if len(sweep.name) + beside > COLUMNS:
            above[len(cells)] = sweep.name
        about = ["" if len(cells) in above else sweep.name, sweep.runs, _ago(sweep.active)]
        for verdict in sweep.verdicts:
            cells.append([*about, verdict])
            about = ["", "", ""]
    head, *rows = table(cells, header=HEAD, right=[1])
    return [head, *(line for i, row in enumerate(rows) for line in ([above[i], row] if i in above else [row]))]


def _ago(then: float) -> str:
    """Return '3 min ago'."""
    seconds = max(0.0, time.time() - then)
    return f"{seconds / 86400:.0f} days ago" if seconds > 2 * 86400 else f"{format_duration(seconds)} ago"


def _listed(context: Context, results: Path) -> Iterator[Listed]:
    """Yield what the records say and the runs show; what cannot be read is noted on stderr and hides no other sweep."""
    for name in recorded_names(results):
        try:
            record = read_record(results, name)
            assert record is not None  # there is a file
            own = recorded_context(name, record, context)
        except (ConfigError, RecordError, OSError) as error:
            print(f"note: {name}: {error}", file=sys.stderr)
            continue
        try:
            runs, last, ended = _runs(own)
        except (ValueError, RecordError, OSError) as error:  # as where its text is no longer here
            print(f"note: {name}: {error}", file=sys.stderr)
            runs, last, ended = "?", 0.0, 0.0
        launched = (own.folder / FILE).stat().st_mtime
        yield Listed(name, runs, max(last, launched), _verdicts(own, ended) or ["not analysed"])


def _runs(own: Context) -> tuple[str, float, float]:
    """Return '12/34', runs done of those planned, and the times of the last change in a run's folder and of the last result."""
    plan, adaptive = own.plan, own.config.lr.adaptive
    text = f"{len(plan.runs) - len(plan.todo)}/{len(plan.runs)}{'+' * bool(own.later_curves or adaptive and plan.open)}"
    folders = [own.runs / run.run_id for run in plan.runs]
    return text, _latest(folders), _latest([folder / "result.json" for folder in folders])


def _latest(paths: Iterable[Path]) -> float:
    """Return when the last of these changed, 0 without any."""
    return max((state[1] / 1e9 for state in map(file_state, paths) if state), default=0.0)


def _verdicts(own: Context, ended: float) -> list[str]:
    """Return the verdict of every rule over every axis and key, marked where runs have ended since."""
    sweep = Sweep(own.config, "")
    said, axes, keys = [], sweep.axes, [*own.config.sweep.tune]
    for (key, axis), part in sweep.parts.items():
        path = own.folder / part / "verdicts.json"
        try:
            found = read_json(path, RECORDS["verdicts.json"], "write it again with analyze")
        except RecordError as error:
            print(f"note: {error}", file=sys.stderr)
            continue
        over = f" over {axis.replace('_', ' ')}" * (len(axes) > 1) + f" of {key}" * (len(keys) > 1)
        mark = OUTDATED * bool(found and path.stat().st_mtime < ended)
        said += [f"{v['rule']} {v['verdict']}{over}{mark}" for v in found["verdicts"]] if found else []
    return said
