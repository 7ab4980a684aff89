"""Replay run folders into Weights & Biases, whenever and as often as one likes; W&B is never read.

    push(runs, points, project, mode, on_run) → Counts

Each row goes to the W&B run of the run's id at its own step, and W&B drops a step that it has. runs/<id>/wandb.json remembers
what was sent where, written after W&B took it: a push that was killed sends that run again, and a later one only what is new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_mup.errors import Unanswered
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder, read_rows
from spectral_mup.tracking.live import finish_run, import_wandb, log_row, open_run

FINISH_SECONDS = 120  # that W&B has for the rows of one run
SETTINGS = {  # a replay knows nothing of the machine that trained, and must not wait for ever
    "x_disable_stats": True,
    "x_disable_meta": True,
    "disable_git": True,
    "disable_code": True,
    "finish_timeout": FINISH_SECONDS,
    "finish_timeout_raises": True,
}


class PushError(Unanswered):
    """W&B gave no answer, or no to a key; the message is one line with the fix."""


@dataclass(frozen=True)
class Counts:
    """Runs that had something new and the rows they gave, runs that had nothing new, runs without a row yet."""

    pushed: int
    rows: int
    unchanged: int
    not_begun: int


def push(runs: Path, points: Sequence[RunConfig], project: str, mode: str, on_run: Callable[[], None]) -> Counts:
    """Send the rows and results of these runs that W&B has not got, `on_run` called after each run.

    `mode` is 'online', or 'offline' for folders that `wandb sync` takes later. Offline, a run that grew is written whole again:
    of two folders of one run, a sync lets the later overwrite the earlier. Raises PushError at the first refusal; what was
    pushed until then is remembered.
    """
    pushed = sent = unchanged = not_begun = 0
    target = _target(project, mode)
    for point in points:
        folder = RunFolder(runs, point.run_id)
        before = folder.pushed() or {}
        if any(before.get(key) != value for key, value in target.items()):
            before = {}
        if before.get("finished"):
            unchanged += 1
        else:
            result = folder.result()  # before the rows, which are complete if it is there
            rows = list(read_rows(folder.path / "metrics.jsonl")) if (folder.path / "metrics.jsonl").exists() else []
            last = before.get("step", 0)
            new = [row for row in rows if row["step"] > last]
            if not rows:
                not_begun += 1
            elif not new and result is None:
                unchanged += 1
            else:
                send = rows if mode == "offline" else new
                try:
                    _send(point, send, result, mode, project)
                except Exception as error:  # whatever W&B or the network raises
                    raise PushError(_refusal(error, pushed)) from error
                folder.write_pushed(target | {"step": max(last, rows[-1]["step"]), "finished": result is not None})
                pushed, sent = pushed + 1, sent + len(send)
        on_run()
    return Counts(pushed, sent, unchanged, not_begun)


def _target(project: str, mode: str) -> dict[str, Any]:
    """Where to: server, entity (null: the key's own) and project. Raises PushError if no key is known, never asks for one."""
    wandb = import_wandb(mode)
    try:
        known = wandb.setup(wandb.Settings(silent=True, mode=mode)).settings
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PushError(_refusal("no key is known", 0))
    except wandb.Error as error:
        raise PushError(_refusal(error, 0)) from error
    return {"mode": mode, "base_url": str(known.base_url), "entity": known.entity, "project": project}


def _send(point: RunConfig, rows: list[dict[str, Any]], result: dict[str, Any] | None, mode: str, project: str) -> None:
    run = open_run(point.run_id, point.to_json(), mode, project, **SETTINGS)
    for row in rows:
        log_row(run, row)
    log = Path(run.settings.log_internal)
    finish_run(run, result)
    _check_uploaded(log)


def _check_uploaded(log: Path) -> None:
    """Raise PushError if W&B's client gave up on the rows, which it tells its own log alone."""
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        if "filestream: fatal error" in line:
            raise PushError(json.loads(line)["msg"])


def _refusal(error: Exception | str, pushed: int) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    if key := os.environ.get("WANDB_API_KEY"):
        said = said.replace(key, "…")
    return (
        f"W&B: {said}; `wandb login` or WANDB_API_KEY gives it a key, wandb.mode=offline needs neither key nor network; "
        f"{pushed} runs were pushed before, and the same command goes on"
    )
