"""Log lines of workers and cluster tasks: time, level, run id, message. `extra={"run": run_id}` names the run."""

import functools
import logging

log = logging.getLogger("spectral_mup")  # one for all, as the modules that jobs start are called __main__


def configure_logging() -> None:
    """Log to stderr, from level INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(run)s %(message)s", defaults={"run": "-"}))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def log_run(message: str, run_id: str) -> None:
    """Log a message about a run."""
    log.info(message, extra={"run": run_id})


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning that would be repeated whenever the same file is read again."""
    log.warning("%s", message)
