"""action=plan: what would be trained."""

from __future__ import annotations

from spectral_mup.cli.actions._local import format_plan, nothing_to_do
from spectral_mup.cli.actions._slurm import format_counts, format_submission, print_notes
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.submit import look, order
from spectral_mup.config.schema import SlurmConfig


def plan(context: Context) -> int:
    """Print the runs so far and those to do; on SLURM also the tasks that they would make. Starts nothing."""
    print(format_plan(context))
    if not context.plan.todo:
        return nothing_to_do(context)
    if isinstance(context.config.cluster, SlurmConfig):
        report = look(context.config, context.plan)
        print_notes(report)
        print(format_counts(report))
        runs = [s.point for s in report.states.values() if s.again(context.config.cluster.retries)]
        print(format_submission(order(context.config, context.plan, runs), context.config) if runs else "Nothing to submit.")
    return OK
