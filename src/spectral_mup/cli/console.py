"""The commands as a shell calls them: `spectral-mup`, `python -m spectral_mup`, launch.py and analyze.py."""

from __future__ import annotations

import sys
from pathlib import Path

from spectral_mup import __version__
from spectral_mup.cli.analyze import analyze, summarize
from spectral_mup.cli.command_line import CONSOLE, Program
from spectral_mup.cli.exit_codes import BAD_INPUT, OK
from spectral_mup.cli.help import CONSOLE_HELP, analyze_help, launch_help
from spectral_mup.cli.init import init
from spectral_mup.cli.main import guard, launch

SWITCHES = ("watch", "yes")  # may be given as bare words


def main(argv: list[str] | None = None, program: Program = CONSOLE) -> int:
    """Run `spectral-mup COMMAND …`; return the exit code."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command == "launch":
        return launch_command(rest, program)
    if command == "analyze":
        return analyze_command(rest, program)
    if command == "init" and len(rest) == 1 and not rest[0].startswith("-"):
        return guard(lambda: init(Path(rest[0]), program))
    if command == "--version":
        print(__version__)
        return OK
    if command in ("-h", "--help") or command == "init" and rest in (["-h"], ["--help"]):
        print(CONSOLE_HELP, end="")
        return OK
    problem = "init: give one folder, as in init demo" if command == "init" else f"{command}: unknown command"
    print(f"error: {problem}; commands: launch, analyze, init, --version, --help", file=sys.stderr)
    return BAD_INPUT


def launch_command(argv: list[str], program: Program) -> int:
    if "-h" in argv or "--help" in argv:
        print(launch_help(program), end="")
        return OK
    return guard(lambda: launch([f"{word}=true" if word in SWITCHES else word for word in argv], program))


def analyze_command(argv: list[str], program: Program) -> int:
    if "-h" in argv or "--help" in argv:
        print(analyze_help(program), end="")
        return OK
    check = "--check" in argv
    overrides = [word for word in argv if word not in ("--check", "--summary")]
    return guard(lambda: summarize(overrides, check) if "--summary" in argv else analyze(overrides, check, program))
