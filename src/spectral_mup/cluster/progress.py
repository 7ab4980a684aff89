"""What workers report to their launcher, and the view made of it: live on a terminal, lines elsewhere. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.search.plan import Plan
from spectral_mup.util.text import format_duration, pluralize

ENDS = ("done", "failed", "stopped", "claimed")  # after which the worker is idle


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: started, step, one of ENDS (claimed: another process has the run), died, or unfit (its
    worker cannot begin and ends, so that the run is given back)."""

    kind: str
    run: RunConfig
    payload: dict[str, Any] = field(default_factory=dict)


class Progress:
    """Shows events. `plan` is the latest plan; the time left comes from the speed of the runs seen so far.

    `show_line` gets each line and the id of its run; on a terminal the last lines are part of the live view instead.
    """

    def __init__(self, plan: Plan, workers: int, later_curves: int, show_line: Callable[[str, str], None]) -> None:
        self.plan, self.workers, self.later_curves, self.show_line = plan, workers, later_curves, show_line
        self.running: dict[str, dict[str, Any]] = {}
        self.seconds = self.cost = 0.0  # of the runs that ended
        self.notes: list[str] = []
        self.live: Any = None
        self._claimed: set[str] = set()

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(get_renderable=self._table, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.live:
            self.live.__exit__(*exc)

    def counts(self) -> str:
        """'12/40 done, 1 curve still to be planned; about 3 min left'; the total grows while curves are open."""
        total, todo = len(self.plan.runs), len(self.plan.todo)
        later = f", {pluralize(self.later_curves, 'curve')} still to be planned" if self.later_curves else ""
        eta = f"; about {format_duration(self.eta())} left" if self.cost and todo else ""
        return f"{total - todo}/{total} done{later}{eta}"

    def eta(self) -> float:
        """Seconds to train what is listed, at the speed seen so far."""
        left = sum(run.cost for run in self.plan.todo)
        left -= sum(r["run"].cost * r["step"] / r["steps"] for r in self.running.values())
        return max(0.0, left) * self.seconds / self.cost / self.workers

    def on_event(self, event: Event) -> None:
        run = event.run
        if event.kind == "started":
            self.running[run.run_id] = {"run": run, "step": 0, "steps": 1, "loss": None}
        elif event.kind == "step":
            if run.run_id in self.running:
                self.running[run.run_id] |= event.payload
        elif event.kind not in ("claimed", "unfit"):
            self.running.pop(run.run_id, None)
            self._note(self._ended(event), run)
        elif event.kind == "claimed" and run.run_id not in self._claimed:
            self._claimed.add(run.run_id)
            self._note(f"{run}: {event.payload['why']}; waiting for it", run)

    def _ended(self, event: Event) -> str:
        run, payload = event.run, event.payload
        if event.kind == "done":
            self.seconds += payload["seconds"]
            self.cost += run.cost * payload["steps"] / run.train.steps
            if payload["status"] == "diverged":
                return f"{run}: diverged at step {payload['diverged_step']}"
            return f"{run}: loss {payload['val_loss']:.4f} in {format_duration(payload['seconds'])}"
        if event.kind == "failed":
            return f"{run}: FAILED, {payload['error']}"
        if event.kind == "died":
            return f"{run}: {payload['why']}" + "; another resumes it" * payload["retried"]
        return f"{run}: stopped; the next launch resumes it"

    def _note(self, line: str, run: RunConfig) -> None:
        if self.live:
            self.notes = (self.notes + [line])[-8:]
        else:
            self.show_line(f"[{self.counts()}] {line}", run.run_id)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        total = max(1, len(self.plan.runs))
        right = (Column(title, justify="right") for title in ("step", "loss"))
        table = Table("running", *right, box=None, padding=(0, 2, 0, 0))
        for row in self.running.values():
            loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
            table.add_row(str(row["run"]), f"{row['step']}/{row['steps']}" if row["step"] else "", loss)
        bar = ProgressBar(total=total, completed=total - len(self.plan.todo), width=60)
        return Group(*[Text(n) for n in self.notes], bar, Text(self.counts()), table)
