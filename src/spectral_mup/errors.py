"""What goes wrong without being a bug: one line on stderr and an exit code, never a traceback."""


class ConfigError(ValueError):
    """Bad input, found before anything was started or written. The message is one line: key, what is wrong, fix."""

    exit_code = 2


class RecordError(RuntimeError):
    """A file that contradicts itself or its folder; the message names it and the fix."""

    exit_code = 2


class Refusal(RuntimeError):
    """Not done because a rule forbids it, as with a sweep whose first runs all failed. The message says what allows it."""

    exit_code = 3


class Unanswered(RuntimeError):
    """A service that was needed (SLURM, W&B) refused or did not answer. The message says what was done until then."""

    exit_code = 4
