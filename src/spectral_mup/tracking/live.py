"""Copy runs to Weights & Biases while they train, in the background; nothing is read back.

Training puts rows in a queue and never waits. If W&B cannot be reached, one warning is logged and the rest is dropped;
action=wandb_push replays it later. A run resumed offline needs that as well: in `wandb sync` its later start overwrites the
earlier one.
"""

import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.log import log

INIT_SECONDS = 20
CLOSE_SECONDS = 10
LONGEST_TAG = 64  # characters that W&B accepts
SHORT = {"width": "w", "depth": "d", "lr": "lr", "seed": "s"}


def import_wandb(mode: str) -> Any:
    """Import wandb; offline, turn off its error reports, which at exit would wait for a server that never answers."""
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def describe(run: RunConfig, sweep: str) -> dict[str, Any]:
    """Return how W&B lists a run, as arguments of wandb.init: named 'spectral w256 d2 lr2^-6 s0', grouped by sweep.

    Its config has the few keys by which runs are sorted and filtered, and under `run` the whole RunConfig.
    """
    about = {"sweep": sweep, "optimizer": run.optimizer.name, "rule": run.rule.name, "width": run.width, "depth": run.depth}
    about |= {"lr": 2.0**run.log2_lr, "seed": run.seed, "run": run.to_json()}
    return {
        "name": re.sub(rf"\b({'|'.join(SHORT)}) ", lambda found: SHORT[found[1]], str(run)),
        "group": sweep,
        "job_type": run.rule.name,
        "tags": [tag[:LONGEST_TAG] for tag in (run.optimizer.name, run.model.label)],
        "config": about,
    }


def open_run(run_id: str, about: Mapping[str, Any], mode: str, project: str, **settings: Any) -> Any:
    """Start or resume the W&B run of this id, with the training step as axis. Raises whatever W&B raises."""
    wandb = import_wandb(mode)
    run = wandb.init(
        project=project, id=run_id, mode=mode, resume="allow", reinit="finish_previous", **about,
        settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off", **settings),
    )  # fmt: skip
    run.define_metric("train_step")
    run.define_metric("*", step_metric="train_step")
    return run


def log_row(run: Any, row: Mapping[str, Any]) -> None:
    """Log a row (see runs.metrics) at its own step, so that W&B drops the steps that a resumed run repeats."""
    values = {name: value for name, value in row.items() if name != "step" and value is not None}
    run.log({"train_step": row["step"]} | values, step=row["step"])


def finish_run(run: Any, result: Mapping[str, Any] | None) -> None:
    """Wait until W&B has the run's rows; a result becomes its summary. Raises whatever W&B raises."""
    if result is not None:
        run.summary.update({name: value for name, value in result.items() if isinstance(value, int | float | str)})
    run.finish()


def end_service(seconds: float = CLOSE_SECONDS) -> None:
    """End W&B's own process, killing it if it does not end: on exit of this one, W&B would wait for it for ever."""
    if "wandb" not in sys.modules:
        return
    ending = threading.Thread(target=import_wandb("").teardown, daemon=True)
    ending.start()
    ending.join(seconds)
    for pid in _services() if ending.is_alive() else ():
        with suppress(ProcessLookupError):  # it has ended just now
            os.kill(pid, signal.SIGKILL)
    ending.join(seconds)


def _services() -> list[int]:
    """Return the ids of W&B's processes that this one has started, found by name in /proc; none without /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            program = Path(os.fsdecode((folder / "cmdline").read_bytes().partition(b"\0")[0]))
            if int(parent) == os.getpid() and program.name.startswith("wandb"):
                found.append(int(folder.name))
    return found


class WandbLogger:
    """A daemon thread that copies runs to W&B, one after the other, each under its run_id; mode 'disabled' does nothing."""

    def __init__(self, mode: str, project: str) -> None:
        self.mode, self.project = mode, project
        self.broken: str | None = None
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        if mode != "disabled":
            self._thread.start()

    def start(self, run_id: str, about: dict[str, Any]) -> None:
        """Start the run of this id; `about` is what `describe` returns."""
        self._put("start", (run_id, about))

    def log(self, rows: list[dict[str, Any]]) -> None:
        self._put("log", rows)

    def finish(self, result: dict[str, Any]) -> None:
        self._put("finish", result)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for what is queued, then for W&B to end, each for a bounded time."""
        if self.mode != "disabled":
            self._put("close", None)
            self._thread.join(seconds)
            end_service(seconds)

    def _put(self, verb: str, value: Any) -> None:
        if self.mode != "disabled" and self.broken is None:
            self._queue.put((verb, value))

    def _copy(self) -> None:
        run, run_id = None, "-"
        try:
            for verb, value in iter(self._queue.get, ("close", None)):
                if verb == "start":
                    run_id, about = value
                    run = open_run(run_id, about, self.mode, self.project)
                elif verb == "log":
                    for row in value:
                        log_row(run, row)
                else:
                    finish_run(run, value)
        except Exception as error:  # whatever W&B or the network raises: training must not notice
            self.broken = f"{type(error).__name__}: {error}"
            message = "W&B cannot be reached, training continues without it (%s); action=wandb_push sends the runs later"
            log.warning(message, self.broken, extra={"run": run_id})
