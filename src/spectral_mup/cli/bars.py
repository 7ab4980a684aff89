"""Progress bars and tables of single commands. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def ladder_progress() -> Iterator[Callable[[float, float, float], None]]:
    """A bar with ETA for work of known size, on a terminal or not: call it with (done, total, seconds so far)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("measuring"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn()) as bar:
        task = bar.add_task("measuring")
        yield lambda done, total, _seconds: bar.update(task, completed=done, total=total)


@contextmanager
def prepare_progress() -> Iterator[Callable[[str, int, int, int], None]]:
    """A bar with ETA for work on a text, and a line when its kind changes: call it with (work, bytes done, of, tokens)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tokens]}"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    bar = Progress(*columns)

    def show(work: str, done: int, total: int, tokens: int) -> None:
        if work not in tasks:
            bar.start()
            tasks[work] = bar.add_task(work, tokens="")
        bar.update(tasks[work], completed=done, total=total or None, tokens=f"{tokens / 1e6:.1f}M tokens" if tokens else "")

    try:
        yield show
    finally:
        if tasks:
            bar.stop()


def prepared_table(meta: Mapping[str, Any]) -> Any:
    """What a prepared text is: a row a split."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("split", "documents", "tokens", "bytes/token", "shards", "MB"):
        table.add_column(title, justify="left" if title == "split" else "right")
    for split, name in (("train", "training"), ("val", "validation")):
        shards = [shard for shard in meta["shards"] if shard["split"] == split]
        tokens = meta["n_tokens"][split]
        table.add_row(
            name,
            f"{meta['documents'][split]:,}",
            f"{tokens:,}",
            f"{meta['n_bytes'][split] / tokens:.2f}",
            f"{len(shards)}",
            f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f}",
        )
    return table
