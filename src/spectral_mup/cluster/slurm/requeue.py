"""The last line of the batch script, `… requeue JOBS/<n> EXIT_CODE`: requeue a task that was killed, a bounded number of times.

It does nothing after an orderly end, a cancel, or a death for lack of memory, which would only happen again.
"""

import os

from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.pack import OK, PAUSED, Pack
from spectral_mup.cluster.slurm.run_states import tail
from spectral_mup.cluster.team import FAILED, TEMPORARY_FAILURE
from spectral_mup.util.log import configure_logging, log
from spectral_mup.util.text import pluralize


def main(path: str, exit_code: str) -> int:
    """Decide by the exit code of the array task whether it starts again."""
    configure_logging()
    code = int(exit_code)
    if code in (OK, PAUSED):
        return 0
    pack, task = Pack.of_this_task(path)
    record = pack.submission.task(pack.index)
    started = record.get("job") == task.job and record.get("restart") == task.restart
    if code == FAILED and started and record.get("state") == "ended":
        return 0
    left = pack.unfinished()
    if not left or slurm.is_cancelled(task) or causes.OUT_OF_MEMORY.search(tail(pack.submission, pack.index)):
        return 0
    kills, retries = record.get("kills", 0) + 1, pack.cluster.retries
    killed = causes.PEER if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else causes.KILLED
    cause = killed if started else causes.LAUNCH
    if code == TEMPORARY_FAILURE:
        errors = [pack.folder(run).error() for run in left]
        cause = next((causes.classify_traceback(e) for e in errors if e), cause)
    pack.write_task(kills=kills, cause=cause.name, state="killed")
    if kills > retries:
        log.error("%s %d times (exit code %d): not queued again", cause.name, kills, code)
        return 0
    runs = pluralize(len(left), "run")
    log.warning("%s (exit code %d), %s left: queued again, time %d of %d", cause.name, code, runs, kills, retries)
    slurm.requeue(task.job)
    return 0
