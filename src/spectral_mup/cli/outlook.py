"""What is left to train: the runs of every curve, how many more may follow, and how long that takes."""

from spectral_mup.cli.context import Context
from spectral_mup.cluster.durations import guessed_seconds, measured_durations
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.search.plan import outlook
from spectral_mup.util.text import format_duration, pluralize


def format_plan(context: Context) -> str:
    """Counts first, then one line per curve."""
    plan, later = context.plan, context.later_curves
    todo, total = set(plan.todo), len(plan.runs)
    text = f"{context.config.sweep.name}: {pluralize(total, 'run')} so far: {total - len(todo)} done, {len(todo)} to do"
    if later:
        text += f"; {pluralize(later, 'more curve')} to follow, each around the optimum of the one before"
    lines = [text]
    for curve, runs in plan.curves.items():
        values = ", ".join(f"{value:g}" for value in sorted({run.value for run in runs}))
        missing, seeds = len(todo.intersection(runs)), pluralize(len({run.seed for run in runs}), "seed")
        mark = ", not bracketed within lr.budget" if curve in plan.unbracketed else ""
        lines.append(f"  {curve}: {curve.tuned} 2^[{values}] × {seeds}, {len(runs) - missing} done, {missing} to do{mark}")
    return "\n".join([*lines, *(f"note: {line}" for line in context.sweep.warnings())])


def format_outlook(context: Context, workers: int, device: str) -> str:
    """How many runs the search takes until its verdicts, and how long: at least and at most."""
    config, plan = context.config, context.plan
    measured = measured_durations(context.runs, plan.runs, device)

    def seconds(run: RunConfig) -> float:
        known = measured.seconds(run)
        return guessed_seconds(run, device) if known is None else known

    def total(runs: list[tuple[RunConfig, int]]) -> tuple[int, float]:
        return sum(n for _, n in runs), sum(n * seconds(run) for run, n in runs)

    (least, shortest), (most, longest) = map(total, outlook(context.sweep, plan))
    if isinstance(config.sweep.budget, int):
        within = max(least, min(config.sweep.budget, most))
        most, longest = within, longest * within / most
    spent = sum(map(seconds, plan.runs)) - sum(map(seconds, plan.todo))
    shortest, longest = (max(0.0, x - spent) / workers for x in (shortest, longest))
    if isinstance(config.sweep.budget, str):
        longest = min(longest, 3600 * float(config.sweep.budget.removesuffix("h")) / workers)
    times = f"{format_duration(shortest)} to {format_duration(max(shortest, longest))}"
    source = measured.source if measured.runs else "a guess until a run has ended"
    return f"Until the verdicts: {least} to {most} runs in all, about {times} from now ({source})"
