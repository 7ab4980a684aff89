"""What a sweep's name stands for: the words of its launch and the resulting config, in paths.results/NAME/sweep.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectral_mup.config.schema import Config, to_plain
from spectral_mup.runs.records import RECORDS
from spectral_mup.util.files import json_bytes, read_json, write_atomic

FILE = "sweep.json"


class SweepRecord(NamedTuple):
    """A launched sweep: `words`, its overrides but those that concern one command, and `config`, all of it as plain dicts."""

    words: list[str]
    config: dict[str, Any]


def read_record(results: Path, name: str) -> SweepRecord | None:
    """Read the record of a name, None if no sweep of this name was launched. Raises RecordError if it cannot be read."""
    found = read_json(results / name / FILE, RECORDS[FILE], "restore it, or move it away and launch with all words")
    return SweepRecord(found["words"], found["config"]) if found else None


def write_record(config: Config, words: Sequence[str]) -> None:
    """Record these words and this config under the sweep's name."""
    content = json_bytes({"words": [*words], "config": to_plain(config)}, sort_keys=False)  # sweep.tune has an order
    path = Path(config.paths.results, config.sweep.name, FILE)
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def recorded_names(results: Path) -> list[str]:
    """List the names of the sweeps that were launched into a folder of results."""
    return sorted(path.parent.relative_to(results).as_posix() for path in results.rglob(FILE)) if results.is_dir() else []
