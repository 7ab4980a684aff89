"""The commands as a shell calls them: `spectral-mup`, `python -m spectral_mup`, launch.py and analyze.py."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from spectral_mup import __version__
from spectral_mup.cli.actions import ACTIONS, Action
from spectral_mup.cli.analyze import analyze, check_figures, summarize
from spectral_mup.cli.context import BAD_INPUT, CONSOLE, FAILED, INTERRUPTED, OK, REFUSED, SCRIPTS
from spectral_mup.cli.help import CONSOLE_HELP, help_of
from spectral_mup.cli.names import FLAGS, TRAINING, check_name, context_of, note_name
from spectral_mup.cli.streams import open_outputs
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.errors import ConfigError, RecordError, Refusal, Unanswered, fix_of
from spectral_mup.util.registry import did_you_mean, lookup

HELP = ("-h", "--help")
TEMPLATES = Path(__file__).with_name("templates")
RENAMED = {"gitignore": ".gitignore"}  # a .gitignore among the templates would apply to this repository
COMMANDS = ("launch", "analyze", "ls", "init")


def main(argv: list[str] | None = None, program: str = CONSOLE) -> int:
    """Run `spectral-mup COMMAND …`; return its exit code, which is FAILED too if only its output could not be written."""
    outputs = open_outputs()
    code = run(*((sys.argv[1:] if argv is None else argv) or ["--help"]), program=program)
    sys.stdout.flush()
    lost = [output.lost for output in outputs if output.lost and not isinstance(output.lost, BrokenPipeError)]
    for error in lost:
        print(f"error: what was printed is not complete: {error.strerror}", file=sys.stderr)
    return code or FAILED * bool(lost)


def run(command: str, *rest: str, program: str) -> int:
    """Run one of the commands; return its exit code."""
    if command in ("launch", "analyze") and any(word in HELP for word in rest):
        print(help_of(command, program), end="")
    elif command in HELP or command == "init" and len(rest) == 1 and rest[0] in HELP:
        print(CONSOLE_HELP, end="")
    elif command == "--version" or command in COMMANDS and "--version" in rest:
        print(__version__)
    elif command == "launch":
        return guard(lambda: launch(rest, program))
    elif command == "ls":
        return guard(lambda: launch(["ls", *rest], program))
    elif command == "analyze":
        overrides, check = [word for word in rest if word not in FLAGS], "--check" in rest
        return guard(lambda: summarize(overrides, check) if "--summary" in rest else analyze(overrides, check, program))
    elif command == "init" and len(rest) == 1 and not rest[0].startswith("-"):
        return guard(lambda: init(Path(rest[0]), program))
    else:
        known = [*COMMANDS, "--version", "--help"]
        problem = "give one folder, as in init demo" if command == "init" else "unknown command"
        print(f"error: {command}: {problem}; {did_you_mean(command, known)}commands: {', '.join(known)}", file=sys.stderr)
        return BAD_INPUT
    return OK


def launch(argv: Sequence[str], program: str = SCRIPTS) -> int:
    """Run the action of a command line; return its exit code. Raises what `guard` catches."""
    context = context_of(argv, program, actions=ACTIONS)
    check_figures(context.config.figures)
    action = lookup(ACTIONS, context.config.action, "action")
    if not isinstance(action, Action):  # the user's own, by its import path
        return action(context)
    if action.needs == "slurm":
        slurm_of(context.config)
    if action.needs != "config":
        _ = context.sweep  # a missing corpus is reported before anything is printed
        (check_name if context.config.action in TRAINING else note_name)(context)
    return action.run(context)


def init(folder: Path, program: str) -> int:
    """Write the templates into a new or empty folder. Raises ConfigError if anything is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists and is not an empty folder; choose a new one")
    for template in sorted(path for path in TEMPLATES.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        target = folder / template.relative_to(TEMPLATES)
        target = target.with_name(RENAMED.get(target.name, target.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(template.read_bytes())
        print(target)
    print(f"Next: cd {folder} && {program.format('launch')} sweep=mine && {program.format('analyze')} sweep=mine")
    return OK


def guard(run: Callable[[], int]) -> int:
    """Turn expected failures into one line on stderr and an exit code; anything else keeps its traceback."""
    try:
        return run()
    except (ValueError, RecordError, Refusal, Unanswered) as error:
        ours = type(error).__module__.partition(".")[0] == "spectral_mup"
        if not ours and not isinstance(error, ConfigError | RecordError | Refusal | Unanswered):
            raise  # a ValueError of Python's own is a bug
        code = getattr(error, "exit_code", BAD_INPUT)
        print(f"{'refused' if code == REFUSED else 'error'}: {error}", file=sys.stderr)
        return code
    except OSError as error:
        what = f"{error.filename or type(error).__name__}: {error.strerror or error}"
        print(f"error: {what}; {fix_of(error)}, then run the same command again", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
