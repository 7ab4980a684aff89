"""Call an action of `launch` and turn expected failures into exit codes. Imports neither torch nor pandas."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable

from spectral_mup.cli.actions import ACTIONS, Action
from spectral_mup.cli.command_line import SCRIPTS, Program
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, OK, REFUSED
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.config.compose import load_config
from spectral_mup.errors import ConfigError, RecordError, Refusal, Unanswered
from spectral_mup.util.registry import lookup


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
    except BrokenPipeError:  # head and its like read what they want and close the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        what = f"{error.filename or 'disk'}: {error.strerror or error}"
        print(f"error: {what}; free up or repair the disk, then run the same command again", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def launch(argv: list[str], program: Program = SCRIPTS) -> int:
    """Run the action that these overrides ask for; return its exit code. Raises what `guard` catches."""
    context = Context(load_config(argv), argv, program)
    action = lookup(ACTIONS, context.config.action, "action")
    if not isinstance(action, Action):  # the user's own, by its import path
        return action(context)
    if action.needs == "slurm":
        slurm_of(context.config)
    if action.needs != "config":
        _ = context.sweep  # a missing corpus is reported before anything is printed
    return pkgutil.resolve_name(action.run)(context)
