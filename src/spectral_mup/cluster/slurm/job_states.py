"""What SLURM says of submissions and of the jobs that hold runs: squeue, then sacct for what it no longer has.

Imports no torch.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass

from spectral_mup.cluster.slurm.submission import Submission
from spectral_mup.cluster.slurm_commands import ArrayTask, NoAnswer, sacct, squeue


@dataclass
class SlurmAnswers:
    """What squeue and sacct said, by task; None where there was no answer."""

    queue: dict[str, ArrayTask] | None
    accounting: dict[str, ArrayTask] | None

    def queued(self, job: str) -> ArrayTask | None:
        """Look up any job or task in the queue alone. Raises NoAnswer."""
        if self.queue is None:
            raise NoAnswer("squeue did not answer")
        return self.queue.get(job)

    def task(self, submission: Submission, index: int) -> ArrayTask | None:
        """Look the task up in squeue, then in sacct.

        sacct can report a job that the controller has lost as running forever, so its live states count only if squeue did not
        answer.
        """
        job = f"{submission.job}_{index}"
        for tasks, live_counts in ((self.queue, True), (self.accounting, self.queue is None)):
            task = (tasks or {}).get(job)
            if task and task.name == submission.name and (live_counts or not task.live):  # a new controller reuses ids
                return task
        return None


def ask(relevant: list[Submission], holders: Collection[str], notes: list[str]) -> SlurmAnswers:
    """Ask about these submissions and the jobs that hold runs; what does not answer is added to `notes`."""
    if not relevant and not holders:
        return SlurmAnswers({}, {})
    queue = accounting = None
    try:
        queue = squeue()
        users = {s.job: s.user for s in relevant if s.job}
        known = {job.partition("_")[0] for job in queue} | {job for job, user in users.items() if user == os.getuid()}
        if unknown := {job.partition("_")[0] for job in (*users, *holders)} - known:  # another user's, or another folder's
            queue |= squeue(sorted(unknown))
    except NoAnswer as error:
        queue = None  # half an answer would make the other half look gone
        notes.append(f"squeue does not answer ({error}); states are the last known")
    _adopt(relevant, queue)
    if ended := [s for s in relevant if _needs_accounting(s, queue or {})]:
        try:
            accounting = sacct([s.name for s in ended], min(s.created for s in ended) - 3600, {s.user for s in ended})
            _adopt(relevant, accounting)
        except NoAnswer as error:
            notes.append(f"sacct does not answer ({error}); states are those of squeue alone")
    return SlurmAnswers(queue, accounting)


def _needs_accounting(submission: Submission, queue: dict[str, ArrayTask]) -> bool:
    """Return whether a task has left the queue or waits to be restarted: only sacct knows how its last start ended."""
    tasks = [queue.get(f"{submission.job}_{i}") for i in range(len(submission.packs))]
    return any(not task or task.name != submission.name or task.waiting and task.restarts > 0 for task in tasks)


def _adopt(relevant: list[Submission], known: dict[str, ArrayTask] | None) -> None:
    """Record the job of a submission whose launcher died between sbatch and its record; no other job has its name."""
    by_name = {task.name: task.job.partition("_")[0] for task in (known or {}).values()}
    for submission in relevant:
        if submission.job is None and submission.name in by_name:
            submission.record_job(by_name[submission.name])
