"""What is known of a run step by step, one flat row per step: its metrics, its norms, its speed. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from spectral_mup.errors import RecordError
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_rows

ABOUT = ("step", "name", "what", "kind", "fan_out", "fan_in", "multiplier")  # columns of norms.jsonl that are not quantities

Row = Mapping[str, Any]


def join(metrics: Iterable[Row], timing: Iterable[Row], norms: Iterable[Row]) -> list[dict[str, Any]]:
    """Join timing and norms to the rows of metrics.jsonl, by step; a norm becomes the column QUANTITY/TENSOR."""
    more: dict[int, dict[str, Any]] = {}
    for row in timing:
        more.setdefault(row["step"], {}).update(row)
    for row in norms:
        named = {f"{quantity}/{row['name']}": x for quantity, x in row.items() if quantity not in ABOUT}
        more.setdefault(row["step"], {}).update(named)
    return [{**row, **more.get(row["step"], {})} for row in metrics]


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Read these rows of a run. Timing that cannot be read is left out; raises RecordError if the rest cannot be read."""

    def rows(name: str) -> list[dict[str, Any]]:
        path = folder.path / name
        return list(read_rows(path)) if path.exists() else []

    try:
        timing = rows("timing.jsonl")
    except RecordError:
        timing = []
    return join(rows("metrics.jsonl"), timing, rows("norms.jsonl"))
