"""action=run: train what is missing, here or on SLURM."""

from __future__ import annotations

from spectral_mup.cli.actions._local import format_plan, nothing_to_do, train_here
from spectral_mup.cli.actions._slurm import submit_runs
from spectral_mup.cli.context import Context
from spectral_mup.cluster.slurm.run_states import State
from spectral_mup.cluster.slurm.submit import states_or_refuse
from spectral_mup.config.schema import SlurmConfig


def run(context: Context) -> int:
    """On SLURM submit what is planned, was cancelled, or failed for a passing cause; else train here until all is done."""
    config = context.config
    print(format_plan(context))
    if not context.plan.todo:
        return nothing_to_do(context)
    if not isinstance(config.cluster, SlurmConfig):
        return train_here(context)
    retries = config.cluster.retries

    def select(state: State) -> bool:
        return state.should_resubmit(retries) or state.name == "cancelled" and not state.live

    return submit_runs(context, states_or_refuse(config, context.plan), select)
