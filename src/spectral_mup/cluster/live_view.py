"""The live view of a sweep on a terminal of any size: how far it is, one row per curve, one row per run in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spectral_mup.config.tune import LR
from spectral_mup.search.curve_state import BRACKETED, UNBRACKETED, CurveState
from spectral_mup.util.text import pluralize

if TYPE_CHECKING:
    from spectral_mup.cluster.progress import Progress

STYLES = {BRACKETED: "green", UNBRACKETED: "yellow"}  # of states of curves; others are dim
LEAST_BAR = 8  # columns; a shorter one is left out
HEADS = 4  # lines besides the rows: the first, one over each table, and one about curves that are not shown


class LiveView:
    """A view as wide as the terminal and no higher; the first rows to be left out are those of curves that have ended."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.whole = False  # whether it may be higher than the terminal, as when it is drawn for the last time

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        p, width, height = self.progress, options.max_width, 10_000 if self.whole else console.size.height - 1
        text = Text(p.counts(), "bold", no_wrap=True, overflow="ellipsis")
        room = width - text.cell_len - 1
        first = Table.grid(padding=(0, 1, 0, 0))
        first.add_row(
            text,
            *[ProgressBar(total=max(1, p.total), completed=p.done, width=room, complete_style="cyan")] * (room >= LEAST_BAR),
        )
        yield first
        curves, running = list(p.curves or ()), [*p.running.values()]
        half = max(2, (height - HEADS) // 2)
        yield from curve_rows(curves, p.later_curves, max(1, height - HEADS - min(half, len(running))))
        if running:
            yield running_rows(running, half)


def curve_rows(curves: list[CurveState], later: int, room: int) -> RenderResult:
    """Yield a table of at most `room` rows, and a line about curves that are not in it."""
    ended = [state for state in curves if state.ended]
    hidden = {state.curve for state in ended[: max(0, len(curves) - room)]}
    shown = [state for state in curves if state.curve not in hidden][-room:]
    apart = {"more, not shown": len(curves) - len(shown), "to follow": later}
    about = "; ".join(f"{pluralize(n, 'curve')} {where}" for where, n in apart.items() if n)
    if shown:
        axes = [axis for axis in ("width", "depth", "steps", "batch_size") if len({getattr(s.curve, axis) for s in curves}) > 1]
        axes = axes or ["width"]
        keys = len({state.curve.tuned for state in curves}) > 1
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("rule", overflow="ellipsis", no_wrap=True, max_width=24)
        for title in [*(axis.replace("_", " ") for axis in axes), "runs"]:
            table.add_column(title, justify="right", no_wrap=True)
        if keys:
            table.add_column("tuned", overflow="ellipsis", no_wrap=True, max_width=16)
        for title in ("best lr" if not keys and curves[0].curve.tuned == LR else "best", "loss"):
            table.add_column(title, no_wrap=True)
        table.add_column("", no_wrap=True)
        for s in shown:
            cells: list[Any] = [s.curve.rule, *(f"{getattr(s.curve, axis) or ''}" for axis in axes), f"{s.done}/{s.runs}"]
            cells += [s.curve.tuned] * keys
            cells += ["", ""] if s.best is None else [f"2^{s.best:g}", f"{s.loss:.4f}"]
            said = Text(s.state, STYLES.get(s.state, "dim"))
            if s.diverged:
                said += Text(f", {s.diverged} diverged", "yellow")
            table.add_row(*cells, said)
        yield table
    if about:
        yield Text(about, "dim")


def running_rows(running: list[dict[str, Any]], room: int) -> Table:
    """Return a table of the runs in training, of at most `room` lines: step and loss."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("running", overflow="ellipsis", no_wrap=True)
    for title in ("step", "loss"):
        table.add_column(title, justify="right", no_wrap=True)
    shown = running if len(running) <= room else running[: room - 1]
    for row in shown:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        table.add_row(f"{row['run']}", f"{row['step']}/{row['steps']}" if row["step"] else "begins", loss)
    if len(shown) < len(running):
        table.add_row(f"and {len(running) - len(shown)} more")
    return table
