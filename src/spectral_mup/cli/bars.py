"""What a launch shows: a live view on a terminal, plain lines elsewhere. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spectral_mup.cluster.worker import Event
from spectral_mup.runs.sweep import Plan

if TYPE_CHECKING:
    from rich.progress import TaskID


def pluralize(n: int, noun: str) -> str:
    """'1 point', '2 points'."""
    return f"{n} {noun}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


class Progress:
    """Shows events. `plan` is the latest plan; ETA comes from the speed of the runs seen so far."""

    def __init__(self, plan: Plan, workers: int, later_curves: int) -> None:
        self.plan, self.workers, self.later_curves = plan, workers, later_curves
        self.running: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self.cost = 0.0
        self.notes: list[str] = []
        self.live: Any = None
        self._held: set[str] = set()
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.live:
            self.live.__exit__(*exc)

    def counts(self) -> str:
        """'12/40 done, about 3 min left'; the total grows while curves are open."""
        total, todo = len(self.plan.runs), len(self.plan.todo)
        more = f" (+ more for {self.later_curves} later curves)" if self.later_curves else ""
        eta = f", about {duration(self.eta())} left for these" if self.cost and todo else ""
        return f"{total - todo}/{total}{more} done{eta}"

    def eta(self) -> float:
        """Seconds to train what is listed, at the speed seen so far."""
        left = sum(p.cost for p in self.plan.todo)
        left -= sum(r["point"].cost * r["step"] / r["steps"] for r in self.running.values())
        return max(0.0, left) * self.seconds / self.cost / self.workers

    def on_event(self, event: Event) -> None:
        point = event.point
        if event.kind == "started":
            self.running[point.run_id] = {"point": point, "step": 0, "steps": 1, "loss": None}
        elif event.kind == "step" and point.run_id in self.running:
            self.running[point.run_id] |= event.payload
        elif event.kind == "held":
            if point.run_id not in self._held:
                self._held.add(point.run_id)
                self._say(f"{point}: {event.payload['why']}; waiting for it")
        elif event.kind != "step":
            self.running.pop(point.run_id, None)
            self._say(self._ended(event))

    def _ended(self, event: Event) -> str:
        point, payload = event.point, event.payload
        if event.kind == "done":
            self.seconds += payload["seconds"]
            self.cost += point.cost * payload["steps"] / point.train.steps
            if payload["status"] == "diverged":
                return f"{point}: diverged at step {payload['diverged_step']}"
            return f"{point}: loss {payload['val_loss']:.4f} in {duration(payload['seconds'])}"
        if event.kind == "failed":
            return f"{point}: FAILED, {payload['error']}"
        if event.kind == "died":
            return f"{point}: its worker died (exit code {payload['exitcode']})" + ", it goes to another" * payload["again"]
        return f"{point}: stopped, goes on with the next launch"

    def _say(self, line: str) -> None:
        if self.live:
            self.notes = (self.notes + [line])[-8:]
        else:
            print(f"[{self.counts()}] {line}", flush=True)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total = max(1, len(self.plan.runs))
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("running", "step", "loss"):
            table.add_column(title, justify="left" if title == "running" else "right")
        for run in self.running.values():
            loss = "" if run["loss"] is None else f"{run['loss']:.3f}"
            table.add_row(str(run["point"]), f"{run['step']}/{run['steps']}" if run["step"] else "", loss)
        bar = ProgressBar(total=total, completed=total - len(self.plan.todo), width=60)
        return Group(*[Text(n) for n in self.notes], bar, Text(self.counts()), table)
