"""One task of a job array: train its runs from the snapshot, checkpoint when SLURM sends a warning, record why it stopped.

Run as `python -m spectral_mup.cluster.slurm.array_task JOBS/<n>`.
"""

from __future__ import annotations

import os
import sys

from spectral_mup.cluster.local import run_local
from spectral_mup.cluster.progress import Event, Progress
from spectral_mup.cluster.slurm.distributed_task import train_together
from spectral_mup.cluster.slurm.pack import Pack, StopSignals, begin, finish
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.log import configure_logging, log_run


def main(path: str) -> int:
    """Train the pack of this array task of the submission at `path`; return an exit code of pack.py."""
    configure_logging()
    stopping = StopSignals()
    pack, task = Pack.of_this_task(path)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return train_together(pack, stopping, task)
    begin(pack, task)
    return finish(pack, task, train_apart(pack, stopping), stopping)


def train_apart(pack: Pack, stopping: StopSignals) -> dict[str, str]:
    """Train several runs at once, each in a worker of its own; return {run id: error} of those that failed."""
    c = pack.cluster
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    workers = min(c.workers or gpus or max(1, cores // c.threads), max(1, len(pack.runs)))
    progress = Progress(pack.plan(), workers, 0, log_run)

    def on_event(event: Event) -> None:
        pack.on_event(event)
        progress.on_event(event)

    def todo() -> list[RunConfig]:
        progress.plan = pack.plan()
        return pack.todo()

    return run_local(
        pack.config.model_copy(update={"cluster": c.model_copy(update={"workers": workers})}), todo, on_event, stopping,
        max_first_failures=len(pack.runs) + 1,  # the breaker counts those of the whole sweep
        patience=c.signal_seconds / 2,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
