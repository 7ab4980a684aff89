"""action=wandb_push: run folders replayed into Weights & Biases. Imports wandb only when it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.text import pluralize

OK = 0


def wandb_push(config: Config, points: Sequence[RunConfig]) -> int:
    """Push what W&B has not got of these runs. Raises PushError. wandb.mode=disabled means online here."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from spectral_mup.tracking.push import push

    project = config.wandb.project
    mode = "offline" if config.wandb.mode == "offline" else "online"
    print(f"W&B: pushing {pluralize(len(points), 'point')} {mode}, project {project}", flush=True)
    columns = (TextColumn("pushing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("pushing", total=len(points))
        counts = push(Path(config.paths.runs), points, project, mode, lambda: bar.advance(task))
    rest = f"{counts.unchanged} had nothing new, {counts.not_begun} have no row yet"
    print(f"{counts.pushed} runs pushed ({counts.rows} rows), {rest}")
    if mode == "offline" and counts.pushed:
        print(f"Next: wandb sync {Path(os.environ.get('WANDB_DIR') or '.') / 'wandb'}/offline-run-*")
    return OK
