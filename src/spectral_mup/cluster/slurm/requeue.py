"""The last line of the batch script, `… requeue JOBS/<n> EXIT_CODE`: requeue a task that was killed, a bounded number of times.

It does nothing after an orderly end, a cancel, or a death for lack of memory, which would only happen again.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.failure_causes import Cause
from spectral_mup.cluster.slurm.pack import OK, PAUSED, Pack, this_node
from spectral_mup.cluster.slurm.run_states import tail
from spectral_mup.cluster.team import FAILED, TEMPORARY_FAILURE
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.util.log import configure_logging, log
from spectral_mup.util.text import pluralize


def main(path: str, exit_code: str) -> int:
    """Decide by the exit code of the array task whether it starts again, and which nodes to avoid; return 0."""
    configure_logging()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which SLURM sends with the requeue, before the nodes are excluded
    code = int(exit_code)
    if code in (OK, PAUSED):
        return 0
    pack, task = Pack.of_this_task(path)
    record = pack.submission.task_record(pack.index)
    started = record.get("job") == task.job and record.get("restart") == task.restart
    if code == FAILED and started and record.get("state") == "ended":
        return 0
    left = pack.unfinished()
    if not left or slurm.is_cancelled(task) or causes.OUT_OF_MEMORY.search(tail(pack.submission, pack.index)):
        return 0
    cause = _cause(pack, record if started else {"state": "unfit"}, code, left)
    kills, retries, failed_on = record.get("kills", 0) + 1, pack.cluster.retries, record.get("failed_on", [])
    if cause.fault == "node":
        failed_on = [*failed_on, this_node()]
    pack.write_task(kills=kills, cause=cause.name, state="killed", failed_on=failed_on)
    if kills > retries:
        log.error("%s %d times (exit code %d): not queued again", cause.name, kills, code)
        return 0
    runs = pluralize(len(left), "run")
    log.warning("%s (exit code %d), %s left: queued again, time %d of %d", cause.name, code, runs, kills, retries)
    bad = _to_exclude(pack)
    if bad:
        log.warning("excluded: %s, where tasks cannot train", ", ".join(bad))
    slurm.requeue(task.job)
    for job in filter(None, (task.job, pack.submission.job)) if bad else ():
        slurm.exclude(job, [*filter(None, [pack.cluster.exclude]), *bad])
    return 0


def _to_exclude(pack: Pack) -> list[str]:
    """Return the bad nodes, as long as the partition has others."""
    bad = pack.submission.bad_nodes()
    with suppress(slurm.NoAnswer):
        if bad and set(slurm.nodes(pack.cluster.partition)) - {*bad}:
            return bad
    return []


def _cause(pack: Pack, record: Mapping[str, Any], code: int, left: Sequence[RunConfig]) -> Cause:
    """Return why the task ended: before it claimed a run, by an error that passes, or killed, maybe as one of several."""
    if record.get("state") == "unfit":
        return causes.LAUNCH
    if code == TEMPORARY_FAILURE:
        errors = [pack.folder(run).error() for run in left]
        if found := next((causes.classify_traceback(error) for error in errors if error), None):
            return found
    return causes.PEER if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else causes.KILLED
