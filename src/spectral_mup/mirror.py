"""Weights & Biases as a mirror: runs are copied there in the background and never read back.

Training hands rows to a queue and never waits. If W&B cannot be reached the mirror says so once and drops the rest; the run
folder has everything.
"""

from __future__ import annotations

import queue
import sys
import threading
from typing import Any

INIT_SECONDS = 20
CLOSE_SECONDS = 10


class Mirror:
    """Copies runs to W&B under id = run_id, one after the other, from a daemon thread. mode 'disabled' does nothing."""

    def __init__(self, mode: str, project: str) -> None:
        self.mode, self.project = mode, project
        self.broken: str | None = None
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._thread: threading.Thread | None = None
        if mode != "disabled":
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()

    def start(self, run_id: str, config: dict[str, Any]) -> None:
        self._put("start", (run_id, config))

    def log(self, rows: list[dict[str, Any]]) -> None:
        self._put("log", rows)

    def finish(self, result: dict[str, Any]) -> None:
        self._put("finish", result)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait a bounded time for what is queued."""
        if self._thread is not None:
            self._put("close", None)
            self._thread.join(seconds)

    def _put(self, verb: str, value: Any) -> None:
        if self._thread is not None and self.broken is None:
            self._queue.put((verb, value))

    def _copy(self) -> None:
        run: Any = None
        try:
            import wandb

            while True:
                verb, value = self._queue.get()
                if verb == "start":
                    run_id, config = value
                    settings = wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off")
                    run = wandb.init(
                        project=self.project, id=run_id, name=run_id, config=config, mode=self.mode,  # type: ignore[arg-type]
                        resume="allow", settings=settings, reinit="finish_previous",
                    )  # fmt: skip
                    run.define_metric("train_step")
                    run.define_metric("*", step_metric="train_step")
                elif verb == "log":
                    for row in value:
                        run.log({"train_step": row["step"]} | {k: v for k, v in row.items() if k != "step" and v is not None})
                elif verb == "finish":
                    run.summary.update({k: v for k, v in value.items() if isinstance(v, int | float | str)})
                    run.finish()
                else:
                    return
        except Exception as error:  # whatever W&B or the network raises: the run must not notice
            self.broken = f"{type(error).__name__}: {error}"
            print(f"W&B is not reachable, going on without it ({self.broken})", file=sys.stderr)
