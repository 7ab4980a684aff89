"""action=wandb_push: results to Weights & Biases. Imports wandb only when it is needed."""

import itertools
import os
from pathlib import Path

from spectral_mup.cli.context import OK, Context
from spectral_mup.util.text import pluralize, progress_bars


def wandb_push(context: Context) -> int:
    """Push what W&B does not have yet. Raises PushError. wandb.mode=disabled means online here."""
    from spectral_mup.tracking.live import end_service
    from spectral_mup.tracking.push import push

    config, runs = context.config, context.plan.runs
    mode = "offline" if config.wandb.mode == "offline" else "online"
    print(f"W&B: pushing {pluralize(len(runs), 'run')} {mode}, project {config.wandb.project}", flush=True)
    total, ended = len(runs), itertools.count(1)
    try:
        with progress_bars() as show:
            counts = push(
                context.runs, runs, config.wandb.project, mode, lambda: show("pushing", n := next(ended), total, f"{n}/{total}")
            )
    finally:
        end_service()
    rest = f"{counts.unchanged} had nothing new, {counts.not_begun} have no row yet"
    rest += f", {counts.damaged} cannot be read" * bool(counts.damaged)
    print(f"{pluralize(counts.pushed, 'run')} pushed ({pluralize(counts.rows, 'row')}), {rest}")
    if mode == "offline" and counts.pushed:
        print(f"Next: wandb sync {Path(os.environ.get('WANDB_DIR') or '.') / 'wandb'}/offline-run-*")
    return OK
