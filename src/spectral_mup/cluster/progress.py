"""What workers report to their launcher, and what is shown of it: live on a terminal, lines elsewhere. Imports no torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectral_mup.cluster.durations import Durations
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.search.curve_state import BRACKETED, CurveState
from spectral_mup.search.outlook import Outlook
from spectral_mup.search.plan import Plan
from spectral_mup.util.text import format_duration, format_span, pluralize

ENDS = ("done", "failed", "stopped", "claimed")  # after which the worker is idle
REDRAW_SECONDS = 0.25


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    `kind` is started, step, died, one of ENDS (claimed: another process has the run), or unfit: its worker cannot begin and
    ends, so that the run is given out again.
    """

    kind: str
    run: RunConfig
    payload: dict[str, Any] = field(default_factory=dict)


class Progress:
    """A view of events, and of how far the plan is that `look` was last given.

    `show_line` gets each line and the id of its run ('' if it is about a curve); on a terminal lines pass above a live view.
    The time left is estimated from runs timed before and now.
    """

    def __init__(self, show_line: Callable[[str, str], None], durations: Durations) -> None:
        self.show_line, self.durations = show_line, durations
        self.running: dict[str, dict[str, Any]] = {}
        self.curves: Sequence[CurveState] | None = None
        self.later_curves = 0
        self.live: Any = None
        self._drawn = 0.0
        self._ended: set[str] = set()  # ids, since the plan was made
        self._claimed: set[str] = set()

    def look(
        self, plan: Plan, workers: int, outlook: Outlook | None = None, curves: Sequence[CurveState] = (), later_curves: int = 0
    ) -> None:
        """Continue with this plan; `outlook` is what follows until the verdicts, by default what the plan lists."""
        listed = [(run, 1.0) for run in plan.todo]
        least, usual = (outlook.least, outlook.usual) if outlook else (listed, listed)
        self._totals = [len(plan.runs) - len(plan.todo) + round(sum(n for _, n in runs)) for runs in (least, usual)]
        self._coming = least, usual
        self._seconds = self._expected()
        self.plan, self.workers, self.later_curves, self._ended = plan, workers, later_curves, set()
        before = {state.curve for state in (curves if self.curves is None else self.curves) if state.ended}
        self.curves = curves
        for state in curves:
            if state.ended and state.curve not in before:
                self._note(f"{state}", "green" if state.state == BRACKETED else "yellow", "")

    def __enter__(self) -> Progress:
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            from rich.live import Live

            from spectral_mup.cluster.live_view import LiveView

            # drawn by this thread alone: a second one that draws meanwhile leaves lines behind, as rich does not lock both
            self.live = Live(LiveView(self), auto_refresh=False)
            self.live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.live:
            self.live.renderable.whole = True
            self.live.__exit__(*exc)

    @property
    def done(self) -> int:
        return len(self.plan.runs) - len(self.plan.todo) + len(self._ended_since())

    def _expected(self) -> list[float]:
        """Return how long what the plan was given with takes one worker, by all that was timed until now."""
        return [self.durations.total(runs) for runs in self._coming]

    def _ended_since(self) -> list[RunConfig]:
        """Return the runs that have ended since the plan was made; it may know of one already whose event comes only now."""
        return [run for run in self.plan.todo if run.run_id in self._ended]

    @property
    def total(self) -> int:
        """How many runs it will be in all, as searches usually go."""
        return max(self._totals)

    def counts(self) -> str:
        """Return '12 of about 34 to 60 runs done; about 3 to 5 min left', with one number where the plan lists all runs."""
        least, usual = self._totals
        of = pluralize(usual, "run") if least == usual else f"about {least} to {pluralize(usual, 'run')}"
        return f"{self.done} of {of} done" + (f"; about {left} left" if (left := self.time_left()) else "")

    def time_left(self) -> str:
        """Return the time until the verdicts; '' while no run was timed, and once all are done."""
        if not self.durations.run_count or self.done >= self.total:
            return ""
        left = {run.run_id: self.durations.seconds(run) for run in self.plan.todo if run.run_id not in self._ended}
        begun = {run_id: r["step"] / r["steps"] * left.get(run_id, 0.0) for run_id, r in self.running.items()}
        spent = sum(map(self.durations.seconds, self._ended_since())) + sum(begun.values())
        longest = max((seconds - begun.get(run_id, 0.0) for run_id, seconds in left.items()), default=0.0)
        return format_span(*(max(longest, (seconds - spent) / self.workers) for seconds in self._seconds))

    def on_event(self, event: Event) -> None:
        run = event.run
        if event.kind == "started":
            self.running[run.run_id] = {"run": run, "step": 0, "steps": 1, "loss": None}
        elif event.kind == "step":
            if run.run_id in self.running:
                self.running[run.run_id] |= event.payload
        elif event.kind not in ("claimed", "unfit"):
            self.running.pop(run.run_id, None)
            if event.kind == "done":
                self._ended.add(run.run_id)
                self._learn(run, event.payload)
            self._note(*_ending(event), run.run_id)
        elif event.kind == "claimed" and run.run_id not in self._claimed:
            self._claimed.add(run.run_id)
            self._note(f"{run}: {event.payload['why']}; waiting for it", "", run.run_id)
        if self.live and time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.live.refresh()
            self._drawn = time.monotonic()

    def _learn(self, run: RunConfig, result: Mapping[str, Any]) -> None:
        """Learn how long runs take from one that is done, unless it was done already, and estimate anew."""
        if result["trained"] > 0:
            self.durations.learn(run, result["seconds"] / result["trained"] * run.train.steps)
            self._seconds = self._expected()

    def _note(self, line: str, style: str, run_id: str) -> None:
        if self.live:
            from rich.text import Text

            self.live.console.print(Text(line, style))
        else:
            self.show_line(f"[{self.counts()}] {line}", run_id)


def _ending(event: Event) -> tuple[str, str]:
    """Return a line on how a run ended, and its style."""
    run, payload = event.run, event.payload
    if event.kind == "done" and payload["status"] == "diverged":
        return f"{run}: diverged at step {payload['diverged_step']}", "yellow"
    if event.kind == "done":
        return f"{run}: loss {payload['val_loss']:.4f} in {format_duration(payload['seconds'])}", ""
    if event.kind == "failed":
        return f"{run}: FAILED, {payload['error']}", "bold red"
    if event.kind == "died":
        return f"{run}: {payload['why']}" + "; another resumes it" * payload["retried"], "red"
    return f"{run}: stopped; the next launch resumes it", ""
