"""action=wandb_push: runs, and the verdict on them, to Weights & Biases. Imports wandb only when it is needed."""

import itertools
import os
from pathlib import Path

from spectral_mup.cli.context import OK, Context
from spectral_mup.util.text import pluralize, progress_bars


def wandb_push(context: Context) -> int:
    """Push what W&B does not have yet. Raises PushError. wandb.mode=disabled means online here."""
    from spectral_mup.tracking.live import end_service
    from spectral_mup.tracking.push import push
    from spectral_mup.tracking.verdict import SENT, push_verdict

    config, runs, results = context.config, context.plan.runs, Path(context.config.paths.results)
    name, project = config.sweep.name, config.wandb.project
    mode = "offline" if config.wandb.mode == "offline" else "online"
    print(f"W&B: pushing {pluralize(len(runs), 'run')} {mode}, project {project}", flush=True)
    total, ended = len(runs), itertools.count(1)
    try:
        with progress_bars() as show:
            counts = push(
                context.runs, runs, name, project, mode, lambda: show("pushing", n := next(ended), total, f"{n}/{total}")
            )
            parts = [part for part in context.sweep.parts.values() if part]
            judged = push_verdict(results / name, parts, name, project, mode, context.cache / "wandb")
    finally:
        end_service()
    rest = f"{counts.unchanged} had nothing new, {counts.not_begun} have no row yet"
    rest += f", {counts.damaged} cannot be read" * bool(counts.damaged)
    print(f"{pluralize(counts.pushed, 'run')} pushed ({pluralize(counts.rows, 'row')}), {rest}")
    print(f"{name}/verdict: {judged.format(analyze=context.analyze_command())}")
    if mode == "offline" and (counts.pushed or judged is SENT):
        print(f"Next: wandb sync {Path(os.environ.get('WANDB_DIR') or '.') / 'wandb'}/offline-run-*")
    return OK
