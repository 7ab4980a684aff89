"""Replay run folders into Weights & Biases, any time and any number of times; W&B is never read.

Each row goes at its own step to the W&B run of the run's id, and W&B drops steps that it already has. runs/<id>/wandb.json
records what was sent where, once W&B has taken it: after a kill the next push sends that run again, later ones only what is
new.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_mup.errors import RecordError, Unanswered
from spectral_mup.runs.metrics import read_metrics
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.tracking.live import describe, finish_run, import_wandb, log_row, open_run
from spectral_mup.util.log import log
from spectral_mup.util.text import pluralize

FINISH_SECONDS = 120  # for W&B to take the rows of one run: a replay must not wait for ever
SWITCHED_OFF = ("x_disable_stats", "x_disable_meta", "disable_git", "disable_code")  # else W&B would describe this machine
SETTINGS: dict[str, Any] = dict.fromkeys(SWITCHED_OFF, True) | {"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}


class PushError(Unanswered):
    """W&B did not answer, or rejected a key; the message is one line with the fix."""


@dataclass
class Counts:
    """Numbers of runs pushed and of their rows; of runs with nothing new, without a row yet, and damaged."""

    pushed: int = 0
    rows: int = 0
    unchanged: int = 0
    not_begun: int = 0
    damaged: int = 0


def push(runs_dir: Path, runs: Sequence[RunConfig], sweep: str, project: str, mode: str, on_run: Callable[[], None]) -> Counts:
    """Send the rows and results of these runs of a sweep that W&B does not have; call `on_run` after each run.

    `mode` is 'online', or 'offline' for folders that `wandb sync` takes later. Of two folders of a run it keeps the later one,
    so offline a run that grew is written whole. Raises PushError at the first refusal; what was pushed until then is recorded.
    """
    counts = Counts()
    target = target_of(project, mode)
    for run in runs:
        folder = RunFolder(runs_dir, run.run_id)
        before = folder.peek("wandb.json") or {}
        if not target.items() <= before.items():
            before = {}
        result = folder.result()  # read before the rows: if there is one, they are complete
        try:
            rows = [] if before.get("finished") else read_metrics(folder)
        except (RecordError, OSError) as error:
            log.warning("%s; its rows are not sent", error, extra={"run": run.run_id})
            counts.damaged += 1
            on_run()
            continue
        last = before.get("step", 0)
        new = [row for row in rows if row["step"] > last]
        if before.get("finished") or rows and not new and result is None:
            counts.unchanged += 1
        elif not rows:
            counts.not_begun += 1
        else:
            sent = rows if mode == "offline" else new
            try:
                _send(run, sweep, sent, result, mode, project)
            except Exception as error:  # whatever W&B or the network raises
                raise PushError(refusal(error, counts.pushed)) from error
            folder.write("wandb.json", target | {"step": max(last, rows[-1]["step"]), "finished": result is not None})
            counts.pushed, counts.rows = counts.pushed + 1, counts.rows + len(sent)
        on_run()
    return counts


def target_of(project: str, mode: str) -> dict[str, Any]:
    """Return mode, server, entity (None: the key's own) and project. Raises PushError if no key is known; never prompts."""
    wandb = import_wandb(mode)
    try:
        settings = wandb.setup(wandb.Settings(silent=True, mode=mode)).settings
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PushError(refusal("no key is known", 0))
    except wandb.Error as error:
        raise PushError(refusal(error, 0)) from error
    return {"mode": mode, "base_url": str(settings.base_url), "entity": settings.entity, "project": project}


def _send(
    run: RunConfig, sweep: str, rows: list[dict[str, Any]], result: dict[str, Any] | None, mode: str, project: str
) -> None:
    target = open_run(run.run_id, describe(run, sweep), mode, project, **SETTINGS)
    for row in rows:
        log_row(target, row)
    finish_sent(target, result)


def finish_sent(target: Any, result: Mapping[str, Any] | None) -> None:
    """Do as finish_run does, but raise PushError also if W&B's client gave up on the rows."""
    client_log = Path(target.settings.log_internal)
    finish_run(target, result)
    for line in client_log.read_text("utf-8").splitlines() if client_log.exists() else ():
        if "filestream: fatal error" in line:  # shown in the client's own log alone
            raise PushError(json.loads(line)["msg"])


def refusal(error: Exception | str, pushed: int | None = None) -> str:
    """Format what W&B refused, how many runs were pushed before, and the fix in one line, which never repeats the key."""
    message = " ".join(str(error).split()) or type(error).__name__
    if key := os.environ.get("WANDB_API_KEY"):
        message = message.replace(key, "…")
    before = "" if pushed is None else f"{pluralize(pushed, 'run')} pushed before; "
    return (
        f"W&B: {message}; `wandb login` or WANDB_API_KEY gives it a key, wandb.mode=offline needs neither key nor network; "
        f"{before}run the same command again"
    )
