"""action=extend: submit what the results so far call for."""

from __future__ import annotations

from spectral_mup.cli.actions._slurm import submit_runs
from spectral_mup.cli.context import Context
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.submit import states_or_refuse


def extend(context: Context) -> int:
    """Submit what the results so far call for, but nothing that was cancelled."""
    retries = slurm_of(context.config).retries
    return submit_runs(context, states_or_refuse(context.config, context.plan), lambda s: s.should_resubmit(retries))
