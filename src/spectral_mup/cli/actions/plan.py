"""action=plan: what would be trained."""

from __future__ import annotations

from spectral_mup.cli.actions._local import format_plan, nothing_to_do
from spectral_mup.cli.actions._slurm import format_counts, format_submission, print_notes
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.cluster.slurm.submit import plan_submission, states_or_refuse
from spectral_mup.config.schema import SlurmConfig


def plan(context: Context) -> int:
    """Print the runs so far and those to do; on SLURM also the tasks that they would make. Starts nothing."""
    print(format_plan(context))
    if not context.plan.todo:
        return nothing_to_do(context)
    if isinstance(context.config.cluster, SlurmConfig):
        report = states_or_refuse(context.config, context.plan)
        print_notes(report)
        print(format_counts(report))
        runs = [s.run for s in report.states.values() if s.should_resubmit(context.config.cluster.retries)]
        submission = plan_submission(context.config, context.plan, runs) if runs else None
        print(format_submission(submission, context.config) if submission else "Nothing to submit.")
    return OK
