"""The action that lists sweeps by name: ls."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spectral_mup.cli.context import OK, Context
from spectral_mup.cli.names import recorded_context
from spectral_mup.errors import RecordError
from spectral_mup.runs.records import RECORDS
from spectral_mup.runs.results import file_state
from spectral_mup.runs.sweep_record import FILE, read_record, recorded_names
from spectral_mup.util.files import read_json
from spectral_mup.util.text import COLUMNS, format_duration, table

HEAD = ("sweep", "runs", "last active", "verdicts")
OUTDATED = " *"


class Listed(NamedTuple):
    """A sweep as it is listed: runs done of those planned so far, the time of its last sign of life, verdicts as words."""

    name: str
    runs: str
    active: float
    verdicts: list[str]


def ls(context: Context) -> int:
    """Print the sweeps that were launched, the last active first: a row each, and a line a verdict."""
    results = Path(context.config.paths.results)
    listed = sorted(_listed(context, results), key=lambda sweep: (-sweep.active, sweep.name))
    if not listed:
        print(f"No sweep was launched into {results}/ so far. Start with: {context.program.format('launch')} sweep=smoke")
        return OK
    print("\n".join(_format(listed)))
    notes = {
        "+": "+ more runs follow from these",
        OUTDATED: f"{OUTDATED.strip()} runs have ended since; analyze NAME judges again",
    }
    text = " ".join(cell for sweep in listed for cell in (sweep.runs, *sweep.verdicts))
    print(*(note for mark, note in notes.items() if mark in text), sep="\n", end="\n" * any(mark in text for mark in notes))
    return OK


def _format(listed: list[Listed]) -> list[str]:
    """Lines of at most COLUMNS characters; a name that does not fit beside the rest has a line of its own."""
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
    """'3 min ago'."""
    seconds = max(0.0, time.time() - then)
    return f"{seconds / 86400:.0f} days ago" if seconds > 2 * 86400 else f"{format_duration(seconds)} ago"


def _listed(context: Context, results: Path) -> Iterator[Listed]:
    """What the records say and the runs show; what cannot be read is said on stderr, and stops no other sweep."""
    for name in recorded_names(results):
        try:
            record = read_record(results, name)
            assert record is not None
            own = recorded_context(name, record, context)
            done = len(own.plan.runs) - len(own.plan.todo)
            runs = f"{done}/{len(own.plan.runs)}{'+' * bool(own.later_curves or own.config.lr.adaptive and own.plan.open)}"
            ends = [file_state(f"{own.runs}/{run.run_id}") for run in own.plan.runs]
            yield _shown(own, runs, [state[1] / 1e9 for state in ends if state])
        except (ValueError, RecordError, OSError) as error:
            print(f"note: {name}: {error}", file=sys.stderr)


def _shown(own: Context, runs: str, changes: list[float]) -> Listed:
    verdicts, last, axes = [], max(changes, default=0), own.sweep.axes
    for axis in axes:
        path = own.folder / ("" if axis == axes[0] else axis) / "verdicts.json"
        found = read_json(path, RECORDS["verdicts.json"], "write it again with analyze")
        over = f" over {axis.replace('_', ' ')}" * (len(axes) > 1)
        mark = OUTDATED * bool(found and path.stat().st_mtime < last)
        verdicts += [f"{v['rule']} {v['verdict']}{over}{mark}" for v in found["verdicts"]] if found else []
    launched = (own.folder / FILE).stat().st_mtime
    return Listed(own.config.sweep.name, runs, max(last, launched), verdicts or ["not analysed"])
