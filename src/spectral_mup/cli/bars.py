"""Progress bars for work of known size, on a terminal or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float, float, str], None]]:
    """Show a bar with the time left for each kind of work: call with (work, done, total, note); none before the first call."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}

    def show(work: str, done: float, total: float, note: str) -> None:
        if work not in tasks:
            bars.start()
            tasks[work] = bars.add_task(work, note=note)
        bars.update(tasks[work], completed=done, total=total or None, note=note)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()
