"""Log lines of workers and cluster tasks: time, level, run id, message."""

from __future__ import annotations

import logging


def configure_logging() -> None:
    """Log to stderr; `extra={"run": run_id}` says which run a message is about."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(run)s %(message)s", defaults={"run": "-"}))
    package = logging.getLogger("spectral_mup")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
