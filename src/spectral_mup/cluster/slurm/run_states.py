"""The state of every run, from the run folders, then squeue, then sacct, in a few calls for all. Imports no torch.

A result decides, whatever SLURM says. Without one the first row of DECISIONS that applies does: what is known of a task that
SLURM still has; then the run's own error, a process outside its tasks that holds it (liveness.py), a recorded cancellation;
then what is left of a task that SLURM no longer has; then how SLURM says that it ended. No answer never means "ended", and
nothing is waited for. The only thing written is the job id of a submission whose launcher died before it could record it.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from spectral_mup.cluster import failure_causes as causes
from spectral_mup.cluster.failure_causes import Cause
from spectral_mup.cluster.liveness import may_hold
from spectral_mup.cluster.slurm.job_states import SlurmAnswers, ask
from spectral_mup.cluster.slurm.submission import Submission, submissions
from spectral_mup.cluster.slurm_commands import ArrayTask
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.text import pluralize

STATES = ("done", "diverged", "running", "queued", "preempted", "planned", "failed", "paused", "cancelled", "lost")
NEW_SECONDS = 30.0  # a job may be missing from the queue for this long after sbatch
TAIL_BYTES = 8192
BREAKER = 5  # this many equal failures, before any run of a sweep has ended, pause the rest
HELD = re.compile("h[eo]ld", re.I)  # in reasons: JobHeldUser, launch failed requeued held, JobHoldMaxRequeue


@dataclass(frozen=True)
class State:
    """The state of one run.

    `name` is one of STATES, `tries` how many jobs the run was given to, `live` whether SLURM still has the last of them, `hold`
    why that one does not start before somebody releases it.
    """

    run: RunConfig
    name: str
    cause: Cause | None = None
    detail: str = ""
    submission: Submission | None = None
    index: int = 0
    tries: int = 0
    live: bool = False
    hold: str = ""
    status: dict[str, Any] | None = None

    @property
    def job(self) -> str | None:
        """Id of its array task."""
        return f"{self.submission.job}_{self.index}" if self.submission and self.submission.job else None

    def should_resubmit(self, retries: int) -> bool:
        """Return whether the run is to be submitted automatically."""
        passing = self.cause is not None and self.cause.retryable and not self.live and self.tries <= retries
        return self.name == "planned" or passing


@dataclass(frozen=True)
class Report:
    """States by run id, in the order asked for, notes on what of SLURM did not answer, and all submissions."""

    states: dict[str, State]
    notes: list[str]
    submissions: list[Submission]

    def counts(self) -> dict[str, int]:
        counts = Counter(s.name for s in self.states.values())
        return {name: counts[name] for name in STATES if counts[name]}


def reconcile(runs_dir: Path, jobs_dir: Path, runs: Iterable[RunConfig]) -> Report:
    """Return the state of every run now; a file that cannot be read affects its own run or submission alone."""
    every = submissions(jobs_dir)
    tasks_of: dict[str, list[tuple[Submission, int]]] = defaultdict(list)
    for submission in every:
        for run_id, index in submission.index_of.items():
            tasks_of[run_id].append((submission, index))
    folders = {run: RunFolder(runs_dir, run.run_id) for run in runs}
    results = {run: folder.result() for run, folder in folders.items()}
    owners = {run: folders[run].owner() or {} for run, result in results.items() if result is None}
    notes: list[str] = []
    relevant = list(dict.fromkeys(s for run in owners for s, _ in tasks_of[run.run_id] if not s.refusal))
    slurm = ask(relevant, {owner["slurm"]["job"] for owner in owners.values() if owner.get("slurm")}, notes)
    states = {run.run_id: State(run, result["status"] if result else "planned") for run, result in results.items()}
    for run, owner in owners.items():
        evidence = _Evidence(run, folders[run], owner, tasks_of[run.run_id], slurm)
        states[run.run_id] = decide(evidence).state(evidence)
    return Report(states, notes, every)


# --- what is known of a run without a result --------------------------------------------------------------------------


class _Evidence:
    """What the folders and SLURM show of a run, and of the last array task that it was given to, a live one if there is any."""

    def __init__(
        self, run: RunConfig, folder: RunFolder, owner: dict[str, Any], tasks: list[tuple[Submission, int]], slurm: SlurmAnswers
    ) -> None:
        self.run, self.folder, self.owner, self.slurm = run, folder, owner, slurm
        live = [(s, i) for s, i in tasks if (task := slurm.task(s, i)) is not None and task.live]
        submitted = [(s, i) for s, i in tasks if s.job]
        submission, index = (live or submitted or tasks or [(None, 0)])[-1]
        task = slurm.task(submission, index) if submission else None
        self.submission: Any = submission  # None if the run was never submitted
        self.task: Any = task  # None if SLURM does not know it
        self.index, self.tries = index, len(submitted)
        self.job = f"{submission.job}_{index}" if submission else ""
        self.unrecorded, self.refusal = submission is not None and submission.job is None, submission and submission.refusal
        self.cancelled = submission is not None and run.run_id in submission.cancelled
        self.live = task is not None and task.live
        self.waiting = task is not None and task.live and task.waiting
        self.hold = task.reason if task and self.waiting and HELD.search(task.reason) else ""
        self.error = folder.error()
        self.start = owner.get("slurm") or {}  # the array task of the latest attempt, and which of its starts that was
        self.started_in_task = self.start.get("job") == self.job
        self.outside = bool(owner) and self.start.get("job") not in {f"{s.job}_{i}" for s, i in tasks}

    @cached_property
    def held(self) -> bool:
        """Whether the latest attempt may be running."""
        return bool(self.owner) and may_hold(self.folder, self.owner, ask=self._queued)

    def _queued(self, job: str) -> ArrayTask | None:
        """Return what the queue has of a job; under the id of this task only if it bears the submission's name."""
        found = self.slurm.queued(job)
        return self.task if job == self.job else found

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the array task recorded of itself."""
        return self.submission.task_record(self.index) if self.submission else {}

    @cached_property
    def error_cause(self) -> Cause:
        return causes.classify_traceback(self.error or "")

    @cached_property
    def wait_cause(self) -> Cause | None:
        """Why the task waits to start again, by its own record, else by sacct; None if neither shows it (yet)."""
        last = (self.slurm.accounting or {}).get(self.job)
        return causes.CAUSES.get(self.record.get("cause") or "") or causes.BY_STATE.get(last.before if last else "")

    def state(self, name: str, detail: str = "", cause: Cause | None = None, status: dict[str, Any] | None = None) -> State:
        return State(self.run, name, cause, detail, self.submission, self.index, self.tries, self.live, self.hold, status)

    def as_running(self, detail: str = "") -> State:
        return self.state("running", detail, status=self.folder.status())

    def as_held(self) -> State:
        """Return the run as running in a process outside the tasks that the run was given to."""
        job, where = self.start.get("job"), f"process {self.owner['pid']} on {self.owner['host']}"
        return self.as_running(f"job {job}, {where}" if job else where)

    def as_cancelled(self, detail: str = "") -> State:
        return self.state("cancelled", detail, causes.CANCELLED)

    def as_failed(self) -> State:
        return self.state("failed", causes.exception_line(self.error or ""), self.error_cause)

    def as_recorded(self, name: str, detail: str = "") -> State:
        """Return the run's state with the cause that the array task or its batch script recorded."""
        return self.state(name, detail or self.record.get("detail", ""), causes.CAUSES[self.record["cause"]])

    def as_ended(self) -> State:
        cause = causes.classify_task(self.task, tail(self.submission, self.index))
        node = f" on {self.task.node}" if self.task.node else ""
        detail = f"job {self.job} {self.task.state.lower().replace('_', ' ')}{node}"
        return self.state("preempted" if cause is causes.PREEMPTED else "failed", detail, cause)


class Row(NamedTuple):
    name: str
    applies: Callable[[_Evidence], Any]
    state: Callable[[_Evidence], State]


DECISIONS = [
    Row("held, never submitted", lambda e: not e.submission and e.held, _Evidence.as_held),
    # SLURM has the task
    Row("cancelled in a live task", lambda e: e.live and e.cancelled, _Evidence.as_cancelled),
    Row("failed for good in a live task", lambda e: e.live and e.error and not e.error_cause.retryable, _Evidence.as_failed),
    Row("waits for its first start", lambda e: e.waiting and not e.started_in_task,
        lambda e: e.state("queued", f"job {e.job}, {e.task.reason}")),
    Row("waits after a preemption", lambda e: e.waiting and e.wait_cause is causes.PREEMPTED,
        lambda e: e.state("preempted", f"job {e.job} waits to resume", e.wait_cause)),
    Row("waits for a known cause", lambda e: e.waiting and e.wait_cause is not None,
        lambda e: e.state("queued", f"job {e.job} waits to resume", e.wait_cause)),
    Row("waits for an unknown cause", lambda e: e.waiting, lambda e: e.state("queued", f"job {e.job}, requeued by SLURM")),
    Row("runs in its task", lambda e: e.live and e.started_in_task and e.start["restart"] == e.task.restarts,
        lambda e: e.as_running(f"job {e.job} on {e.task.node}")),
    Row("not yet started by its task", lambda e: e.live, lambda e: e.state("queued", f"in running job {e.job}")),
    # what the run itself shows
    Row("failed", lambda e: e.error, _Evidence.as_failed),
    Row("held outside its tasks", lambda e: e.outside and e.held, _Evidence.as_held),
    Row("never submitted", lambda e: e.submission is None, lambda e: e.state("planned")),
    Row("cancelled", lambda e: e.cancelled, _Evidence.as_cancelled),
    # SLURM does not know the task
    Row("refused", lambda e: e.unrecorded and e.refusal, lambda e: e.state("planned", f"sbatch refused: {e.refusal}")),
    Row("being submitted", lambda e: e.unrecorded and (e.slurm.queue is None or not e.submission.launcher_gone),
        lambda e: e.state("queued", "being submitted")),
    Row("launcher died", lambda e: e.unrecorded, lambda e: e.state("planned", "its launcher died before sbatch")),
    Row("has a heartbeat", lambda e: e.task is None and e.slurm.queue is not None and e.held,
        lambda e: e.state("running", f"job {e.job}, by its heartbeat")),
    Row("not yet seen", lambda e: e.task is None and (e.slurm.queue is None or _age(e.submission.created) < NEW_SECONDS),
        lambda e: e.state("queued", f"job {e.job}, by the last record")),
    Row("lost", lambda e: e.task is None, lambda e: e.state("lost", f"job {e.job}", causes.LOST)),
    # SLURM says that the task has ended
    Row("cancelled outside", lambda e: e.task.state == "CANCELLED",
        lambda e: e.as_cancelled(f"job {e.job} was cancelled outside")),
    Row("paused", lambda e: e.record.get("cause") == causes.PAUSED.name, lambda e: e.as_recorded("paused")),
    Row("no progress", lambda e: e.record.get("cause") == causes.STUCK.name, lambda e: e.as_recorded("failed")),
    Row("killed too often", lambda e: e.record.get("state") == "killed",
        lambda e: e.as_recorded("failed", f"job {e.job}, {pluralize(e.record['kills'], 'time')}")),
    Row("ended", lambda e: True, _Evidence.as_ended),
]  # fmt: skip


def _age(then: float | None) -> float:
    return time.time() - (then or 0)


def decide(evidence: _Evidence) -> Row:
    """Return the first row that applies."""
    return next(row for row in DECISIONS if row.applies(evidence))


# --- failures ---------------------------------------------------------------------------------------------------------


def tail(submission: Submission, index: int) -> str:
    """Return the end of what an array task printed."""
    texts = []
    for path in submission.log_files(index):
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - TAIL_BYTES))
            texts.append(f.read().decode(errors="replace"))
    return "\n".join(texts)


def signature(error: str) -> str:
    """Return what two failures of the same cause share: the exception without numbers, ids and names of temporary files."""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", causes.exception_line(error))


def breaker(runs_dir: Path, run_ids: Iterable[str]) -> str | None:
    """Return the failure that at least BREAKER runs of a sweep share while no run has ended, or None."""
    folders = [RunFolder(runs_dir, run_id) for run_id in run_ids]
    if any(folder.result() is not None for folder in folders):
        return None
    errors = [error for folder in folders if (error := folder.error()) and not causes.classify_traceback(error).retryable]
    failures = Counter(map(signature, errors)).most_common(1)
    return next((message for message, count in failures if count >= BREAKER), None)
