"""What is left to train: the runs of every curve, how many more may follow, and how long that takes."""

import math
from collections.abc import Callable

from spectral_mup.cli.context import Context
from spectral_mup.cluster.durations import Durations
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.search.outlook import Counted, Outlook, outlook
from spectral_mup.util.text import format_duration, pluralize


def format_plan(context: Context) -> str:
    """Return the counts of a plan, one line per curve, and notes."""
    plan, later, adaptive = context.plan, context.later_curves, context.config.lr.adaptive
    todo, total = set(plan.todo), len(plan.runs)
    text = f"{context.config.sweep.name}: {pluralize(total, 'run')}{' so far' * adaptive}: "
    text += f"{total - len(todo)} done, {len(todo)} to do"
    if later:
        text += f"; {pluralize(later, 'more curve')} to follow, each around the optimum of the one before"
    lines = [text]
    for curve, runs in plan.curves.items():
        values = ", ".join(f"{value:g}" for value in sorted({run.value for run in runs}))
        missing, seeds = len(todo.intersection(runs)), pluralize(len({run.seed for run in runs}), "seed")
        mark = f", not bracketed{' within lr.budget' * adaptive}" if curve in plan.unbracketed else ""
        lines.append(f"  {curve}: {curve.tuned} 2^[{values}] × {seeds}, {len(runs) - missing} done, {missing} to do{mark}")
    return "\n".join([*lines, *(f"note: {line}" for line in [*context.sweep.warnings(), *_without_weights(context)])])


def _without_weights(context: Context) -> list[str]:
    """Return, with train.keep, a line about the runs that ended without it and left no weights."""
    runs = context.plan.runs if context.config.train.keep else []
    ended = [run.run_id for run in runs if math.isfinite(context.outcome(run) or math.inf)]
    bare = [run_id for run_id in ended if not RunFolder(context.runs, run_id).has_weights()]
    if not bare:
        return []
    return [
        f"{pluralize(len(bare), 'run')} ended without train.keep=last and left no weights, as {context.runs}/{bare[0]}; to get "
        "them, move such folders away and launch again, which trains the same runs to the same numbers"
    ]


def still_to_train(context: Context, durations: Durations) -> Outlook:
    """Return what follows until the verdicts, cut to what sweep.budget allows if that is in hours."""
    found, budget = outlook(context.sweep, context.plan), context.config.sweep.budget
    if not isinstance(budget, str):
        return found
    left = 3600 * float(budget.removesuffix("h")) - sum(map(context.results.seconds, context.plan.runs))
    left = max(left, durations.total([(run, 1.0) for run in context.plan.todo]))

    def cut(runs: Counted) -> Counted:
        return [(run, n * min(1.0, left / max(left, durations.total(runs)))) for run, n in runs] if runs else runs

    return Outlook(*map(cut, found))


def format_outlook(context: Context, durations: Durations, cost: Callable[[Counted], str], source: str) -> str:
    """Return how many runs a search takes in all and what those to come cost: at least, as a rule, at most."""
    coming, done = still_to_train(context, durations), len(context.plan.runs) - len(context.plan.todo)
    least, usual, most = (done + n for n in coming.counts)
    shortest, usually, longest = (f" ({said})" if (said := cost(runs)) else "" for runs in coming)
    return (
        f"Until the verdicts, in all: at least {pluralize(least, 'run')}{shortest.replace(')', ' from now)')}, "
        f"as a rule up to {usual}{usually}, at most {most}{longest}; {source}"
    )


def format_time(context: Context, durations: Durations, workers: int) -> str:
    """Return how long this machine takes: of a fixed grid for all runs to do, of a search until its verdicts."""

    def time(runs: Counted) -> str:
        return format_duration(durations.total(runs) / workers)

    if context.config.lr.adaptive:
        return format_outlook(context, durations, time, f"times are {durations.source}")
    return f"That takes about {time([(run, 1.0) for run in context.plan.todo])} ({durations.source})"
