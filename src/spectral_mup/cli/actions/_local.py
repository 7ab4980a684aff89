"""What the actions that plan and train on this machine share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import FAILED, INTERRUPTED, OK
from spectral_mup.util.text import pluralize


def format_plan(context: Context) -> str:
    """Counts first, then a line a curve."""
    config, plan, later = context.config, context.plan, context.later_curves
    seeds = pluralize(len(config.sweep.seed), "seed")
    todo = {run.run_id for run in plan.todo}
    text = (
        f"{config.sweep.name}: {pluralize(len(plan.runs), 'run')} so far: {len(plan.runs) - len(todo)} done, {len(todo)} to do"
    )
    if later:
        text += f"; {pluralize(later, 'more curve')} to follow, each around the optimum of the one before"
    lines = [text]
    for curve in (curve for chain in context.sweep.curves() for curve in chain if plan.curves.get(curve)):
        runs = plan.curves[curve]
        lrs = ", ".join(f"{lr:g}" for lr in sorted({run.log2_lr for run in runs}))
        missing = sum(run.run_id in todo for run in runs)
        mark = ", not bracketed within lr.budget" if curve in plan.unbracketed else ""
        lines.append(
            f"  {curve.rule} width {curve.width} depth {curve.depth}: lr 2^[{lrs}] × {seeds}, "
            f"{len(runs) - missing} done, {missing} to do{mark}"
        )
    return "\n".join(lines)


def nothing_to_do(context: Context) -> int:
    print(f"Nothing to do. Next: {context.analyze_command()}")
    return OK


def train_here(context: Context) -> int:
    """Train on this machine until the plan is empty, Ctrl-C, or only failed runs are left."""
    from spectral_mup.cluster.local import run_local, worker_count
    from spectral_mup.cluster.progress import Progress
    from spectral_mup.data import load

    config = context.config
    note = load(config.data.source, config.data.path, config.data.vocab_size).note
    if note:
        print(f"note: {note}")
    progress = Progress(context.plan, worker_count(config), context.later_curves, lambda line, _run: print(line, flush=True))

    def todo() -> list[Any]:
        context.refresh()
        progress.plan, progress.later_curves = context.plan, context.later_curves
        return context.plan.todo

    with stop_requests() as stopping, progress:
        failed = run_local(config, todo, progress.on_event, stopping)
    context.refresh()
    total = len(context.plan.runs)
    done = pluralize(total - len(context.plan.todo), "run")
    if stopping():
        print(f"Stopped with {done} done. Resume with: {context.launch_command()}")
        return INTERRUPTED
    if failed:
        print(f"{len(failed)} of {pluralize(total, 'run')} failed:", file=sys.stderr)
        for run_id, error in failed.items():
            print(f"  {config.paths.runs}/{run_id}: {error} (traceback in error.txt)", file=sys.stderr)
        print(f"Once the cause is removed, resume with: {context.launch_command()}", file=sys.stderr)
        return FAILED
    print(f"All {done} done. Next: {context.analyze_command()}")
    return OK


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM only make the function given return True."""
    asked: list[int] = []
    previous = {s: signal.signal(s, lambda number, _frame: asked.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
