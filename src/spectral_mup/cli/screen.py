"""Text for a terminal, with verdicts in their colours; elsewhere, and under NO_COLOR, the same text without colours."""

import re

COLOURS = {
    "transfers": "bold green", "drifts": "bold red", "costs": "bold red", "undecided": "bold yellow",
    "passed": "green", "failed": "red",
}  # fmt: skip
SAID = re.compile(rf"(?<=  |: )({'|'.join(COLOURS)})(?=  |:|$| after | \()", re.M)
"""A verdict in a cell of its own or after a colon, not the same word within a sentence."""


def show(text: str) -> None:
    """Print text with its verdicts coloured, never wrapped."""
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    for found in SAID.finditer(text):
        shown.stylize(COLOURS[found[1]], *found.span())
    Console(force_jupyter=False).print(shown, soft_wrap=True)
