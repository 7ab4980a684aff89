"""The actions that decide what is trained, here or on SLURM: run, plan, retry, extend."""

from spectral_mup.cli.context import OK, Context, format_counts, nothing_to_do, print_notes
from spectral_mup.cli.local_launch import durations_on, machine_of, print_workers, train_here
from spectral_mup.cli.outlook import format_plan
from spectral_mup.cli.slurm_launch import format_submission, submit_runs
from spectral_mup.cluster.failure_causes import CAUSES
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submit import plan_submission, states_or_refuse
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.errors import ConfigError

RETRIED = ("failed", "lost", "paused", "cancelled", "preempted")


def run(context: Context) -> int:
    """Submit to SLURM what is planned, cancelled, or failed for a passing cause; without SLURM train here until all is done."""
    cluster = context.config.cluster
    context.check_own_code()
    print(format_plan(context))
    if not context.plan.todo:
        return nothing_to_do(context)
    if not isinstance(cluster, SlurmConfig):
        return train_here(context)
    report = states_or_refuse(context.config, context.plan)
    return submit_runs(context, report, lambda s: s.should_resubmit(cluster.retries) or s.name == "cancelled" and not s.live)


def plan(context: Context) -> int:
    """Print the runs so far, those to do, and what would train them; on SLURM the tasks. Starts nothing."""
    context.check_own_code()
    print(format_plan(context))
    if not context.plan.todo:
        return nothing_to_do(context)
    if isinstance(context.config.cluster, SlurmConfig):
        report = states_or_refuse(context.config, context.plan)
        print_notes(report)
        print(format_counts(report))
        runs = [s.run for s in report.states.values() if s.should_resubmit(context.config.cluster.retries)]
        submission = plan_submission(context.config, context.plan, runs) if runs else None
        print(format_submission(submission, context) if submission else "Nothing to submit.")
    else:
        placement = machine_of(context).place(context.config, context.plan.todo)
        print_workers(context, placement, durations_on(context, placement))
    return OK


def extend(context: Context) -> int:
    """Submit what the results so far call for, but nothing that was cancelled."""
    retries = slurm_of(context.config).retries
    return submit_runs(context, states_or_refuse(context.config, context.plan), lambda s: s.should_resubmit(retries))


def retry(context: Context) -> int:
    """Run failed, lost, paused, cancelled and preempted runs again; with cause=NAME or run=ID only those."""
    cause = context.config.cause
    if cause is not None and cause not in CAUSES:
        raise ConfigError(f"cause={cause}: must be one of {', '.join(CAUSES)}; quote it, as in 'cause=out of memory'")
    states = context.matching()
    ended = [s for s in states if not s.live and s.name in RETRIED]
    chosen = {s.run.run_id for s in ended if cause in (None, s.cause and s.cause.name)}
    planned = {s.run.run_id for s in states if s.name == "planned" and cause is None}
    if not chosen:
        print_notes(context.report)
        print(f"{format_counts(context.report)}\nNothing to retry{f' with cause={cause}' if cause else ''}.")
        return OK
    if isinstance(context.config.cluster, SlurmConfig):
        return submit_runs(context, context.report, lambda s: s.run.run_id in chosen | planned, chosen)
    return train_here(context, chosen)
