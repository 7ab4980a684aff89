"""The command line to copy next, in the form in which this one was given."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

ABOUT_THIS_COMMAND = ("action=", "yes=", "watch=", "run=", "cause=")  # not part of the sweep, so not of the next command


@dataclass(frozen=True)
class Program:
    """How the user starts the two commands."""

    launch: str
    analyze: str


SCRIPTS = Program("python launch.py", "python analyze.py")
CONSOLE = Program("spectral-mup launch", "spectral-mup analyze")
MODULE = Program("python -m spectral_mup launch", "python -m spectral_mup analyze")


def command(start: str, overrides: Sequence[str], action: str | None = None) -> str:
    """A command line of these overrides, quoted for a shell, with another action than they have."""
    kept = [override for override in overrides if not override.startswith(ABOUT_THIS_COMMAND)]
    return f"{start} {shlex.join([*kept, *([f'action={action}'] if action else [])])}".rstrip()
