"""Numbers, durations, tables and progress bars as a person reads them. Imports no torch."""

import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO

COLUMNS = 80  # of what is to be read on any terminal


def pluralize(n: int, noun: str) -> str:
    """Return '1 run', '2 runs'."""
    return f"{n} {noun}{'s' * (n != 1)}"


def format_duration(seconds: float) -> str:
    """Format seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_span(low: float, high: float) -> str:
    """Return two durations (s) as one: '3 to 5 min', '40 s to 3 min', or '3 min' where both read the same."""
    (number, unit), longest = format_duration(low).split(), format_duration(high)
    if longest == f"{number} {unit}":
        return longest
    return f"{number}{'' if longest.endswith(f' {unit}') else f' {unit}'} to {longest}"


def wrap(text: str, indent: int = 0, columns: int = COLUMNS) -> list[str]:
    """Wrap text to lines of at most `columns` characters, those after the first indented by two more; no word is broken."""
    whole = textwrap.TextWrapper(columns, break_long_words=False, break_on_hyphens=False)
    whole.initial_indent, whole.subsequent_indent = " " * indent, " " * (indent + 2)
    return whole.wrap(text)


def table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None, right: Collection[int] = (), indent: int = 0, gap=2
) -> list[str]:
    """Lay out a table in lines: cells padded to columns of equal width with `gap` spaces between, never wrapped or cut.

    Columns whose index is in `right` are aligned to the right. Plain text, but for a bold header where stdout is a terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=None, padding=(0, gap, 0, 0), show_header=header is not None, header_style="bold")
    for i, title in enumerate(header or (rows[0] if rows else ())):
        lines.add_column(Text(title), justify="right" if i in right else "left", no_wrap=True)
    for row in rows:
        lines.add_row(*[Text(cell) for cell in row])
    shown = StringIO()
    width = 1_000_000  # so that rich wraps nothing
    terminal = sys.stdout.isatty()
    Console(file=shown, width=width, force_terminal=terminal, force_jupyter=False, highlight=False).print(lines)
    return [(" " * indent + line).rstrip() for line in shown.getvalue().splitlines()] if lines.columns else []


def html_table(rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Lay out a table in HTML, the head first, and lines of text below it."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    head, *body = rows
    lines = [line(head, "th"), *(line(cells, "td") for cells in body)]
    return f"<table>{''.join(lines)}</table>" + "".join(f"<div>{escape(note)}</div>" for note in notes)


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
