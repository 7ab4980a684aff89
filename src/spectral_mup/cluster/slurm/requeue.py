"""The last line of the batch script: a task that was killed is queued again, a bounded number of times.

    python -m spectral_mup.cluster.slurm.requeue JOBS/<n> EXIT_CODE

It does nothing after an orderly end, a cancel, or a death for want of memory, which would only come again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spectral_mup.cluster.progress import pluralize
from spectral_mup.cluster.slurm import commands as slurm
from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.array_task import FAILED, HELD_BACK, OK, TEMPORARY_FAILURE, Pack
from spectral_mup.cluster.slurm.run_states import tail
from spectral_mup.cluster.slurm.submission import submissions
from spectral_mup.runs.run_folder import RunFolder


def main(argv: list[str]) -> int:
    folder, code, me = Path(argv[0]), int(argv[1]), slurm.here()
    if me is None or code in (OK, HELD_BACK):
        return 0
    submission = next(s for s in submissions(folder.parent) if s.path.name == folder.name)
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    task = submission.task(index)
    began = task.get("job") == me.job and task.get("restart") == me.restart
    if code == FAILED and began and task.get("state") == "ended":
        return 0
    pack = Pack(submission, index)
    left = pack.unfinished()
    if not left or slurm.is_cancelled(me) or causes.OUT_OF_MEMORY.search(tail(submission, index)):
        return 0
    kills = task.get("kills", 0) + 1
    if not began:
        why = causes.LAUNCH
    else:
        why = causes.PEER if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else causes.KILLED
    if code == TEMPORARY_FAILURE:
        errors = [RunFolder(pack.runs, p.run_id).error() for p in left]
        why = next((causes.classify_traceback(e) for e in errors if e), why)
    submission.write_task(index, kills=kills, cause=why.name, state="killed")
    retries = pack.cluster.retries
    if kills > retries:
        print(f"{why.name} {kills} times (exit code {code}): not queued again", flush=True)
        return 0
    print(
        f"{why.name} (exit code {code}), {pluralize(len(left), 'point')} left: queued again, time {kills} of {retries}",
        flush=True,
    )
    slurm.requeue(me.job)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
