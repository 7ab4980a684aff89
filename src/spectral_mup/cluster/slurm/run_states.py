"""What became of every run: from the files, then the queue, then the accounting, one call each. Imports no torch.

A result on disk wins over anything SLURM says; no answer is never "gone"; nothing waits. The one thing written is the job id of
a submission whose launcher died before it could record it.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectral_mup.cluster.slurm import failure_causes as causes
from spectral_mup.cluster.slurm.commands import ArrayTask, NoAnswer, sacct, squeue
from spectral_mup.cluster.slurm.failure_causes import Cause
from spectral_mup.cluster.slurm.submission import Submission, submissions
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.processes import is_alive

NAMES = ("done", "diverged", "running", "queued", "preempted", "planned", "failed", "held", "cancelled", "lost")
SILENT_SECONDS = 180.0  # a run that beat within so long counts as running, whatever SLURM remembers
NEW_SECONDS = 30.0  # a job may be missing from the queue for so long after sbatch
TAIL = 8192
BREAKER = 5  # so many failures alike, before any run of a sweep has ended, hold the rest


@dataclass(frozen=True)
class State:
    """One run; `name` is one of NAMES, `tries` how many jobs it was given to, `live` whether SLURM still has the last."""

    point: RunConfig
    name: str
    cause: Cause | None = None
    detail: str = ""
    submission: Submission | None = None
    index: int = 0
    tries: int = 0
    live: bool = False
    status: dict[str, Any] | None = None

    @property
    def job(self) -> str | None:
        """Id of its array element."""
        return f"{self.submission.job}_{self.index}" if self.submission and self.submission.job else None

    def again(self, retries: int) -> bool:
        """Whether it is to be submitted without being asked for."""
        if self.name == "planned":
            return True
        return self.cause is not None and self.cause.again and not self.live and self.tries <= retries


@dataclass(frozen=True)
class Report:
    """States by run id, in the order asked for, and what SLURM could not tell."""

    states: dict[str, State]
    notes: list[str]
    submissions: list[Submission]

    def counts(self) -> dict[str, int]:
        found = Counter(s.name for s in self.states.values())
        return {name: found[name] for name in NAMES if found[name]}


@dataclass
class _Slurm:
    """What the one call each of squeue and sacct gave; None where there was no answer."""

    queue: dict[str, ArrayTask] | None
    ended: dict[str, ArrayTask] | None

    def element(self, submission: Submission, index: int) -> ArrayTask | None:
        """What the queue says of it, else the accounting, which may call a job running for ever that the controller lost."""
        job = f"{submission.job}_{index}"
        for known, of_the_living in ((self.queue, True), (self.ended, self.queue is None)):
            found = (known or {}).get(job)
            if found is None or found.name != submission.name:  # ids begin at 1 again on a new controller
                continue
            if of_the_living or not found.live:
                return found
        return None


def reconcile(runs: Path, jobs: Path, points: Iterable[RunConfig]) -> Report:
    """The state of every run now. Raises RecordError on files that contradict themselves."""
    every = submissions(jobs)
    held: dict[str, list[tuple[Submission, int]]] = {}
    for submission in every:
        for index, pack in enumerate(submission.packs):
            for entry in pack:
                held.setdefault(entry["run_id"], []).append((submission, index))
    states: dict[str, State] = {}
    unsettled = []
    for point in points:
        result = RunFolder(runs, point.run_id).result()
        if result is not None:
            states[point.run_id] = State(point, result["status"])
        else:
            states[point.run_id] = State(point, "planned")  # keeps the order
            unsettled.append(point)
    notes: list[str] = []
    asked = {s.path: s for p in unsettled for s, _ in held.get(p.run_id, []) if not s.refusal}
    told = _ask(list(asked.values()), notes) if asked else _Slurm({}, {})
    for point in unsettled:
        states[point.run_id] = _state(point, RunFolder(runs, point.run_id), held.get(point.run_id, []), told)
    return Report(states, notes, every)


def _ask(asked: list[Submission], notes: list[str]) -> _Slurm:
    queue = ended = None
    try:
        queue = squeue()
    except NoAnswer as error:
        notes.append(f"the queue gives no answer ({error}); states are the last known")
    in_queue = {e.name for e in (queue or {}).values()}
    _adopt(asked, queue)
    gone = [s for s in asked if s.name not in in_queue or _some_gone(s, queue or {}) or _some_again(s, queue or {})]
    if gone:
        try:
            ended = sacct([s.name for s in gone], min(s.created for s in gone) - 3600)
            _adopt(asked, ended)
        except NoAnswer as error:
            notes.append(f"the accounting gives no answer ({error}); going by the queue alone")
    return _Slurm(queue, ended)


def _some_gone(submission: Submission, queue: dict[str, ArrayTask]) -> bool:
    return any(f"{submission.job}_{i}" not in queue for i in range(len(submission.packs)))


def _some_again(submission: Submission, queue: dict[str, ArrayTask]) -> bool:
    """Whether an element waits to start again: the accounting alone knows how its last start ended."""
    mine = (queue.get(f"{submission.job}_{i}") for i in range(len(submission.packs)))
    return any(e is not None and e.waiting and e.restarts for e in mine)


def _adopt(asked: list[Submission], known: dict[str, ArrayTask] | None) -> None:
    """Record the job of a submission whose launcher died between sbatch and its record; its name is its own."""
    by_name = {e.name: e.job.partition("_")[0] for e in (known or {}).values()}
    for submission in asked:
        if submission.job is None and submission.name in by_name:
            submission.record_job(by_name[submission.name])


def _state(point: RunConfig, folder: RunFolder, held: list[tuple[Submission, int]], told: _Slurm) -> State:
    owner, error = folder.owner(), folder.error()
    live = [(s, i) for s, i in held if (e := told.element(s, i)) is not None and e.live]
    given = [(s, i) for s, i in held if s.job]
    tries = len(given)
    latest = (live or given or held or [None])[-1]
    if latest is None:
        if owner is not None and not owner.get("slurm") and is_alive(owner):
            return State(point, "running", status=folder.status())
        return _failed(point, error, None, 0, tries) if error else State(point, "planned")
    submission, index = latest
    element = told.element(submission, index)
    made = State(point, "", submission=submission, index=index, tries=tries)
    mine = owner is not None and (owner.get("slurm") or {}).get("job") == f"{submission.job}_{index}"
    if element is not None and element.live:
        before = (told.ended or {}).get(element.job)
        return replace(_live(made, element, folder, owner if mine else None, error, before.before if before else ""), live=True)
    if error:
        return _failed(point, error, submission, index, tries)
    beat = folder.last_heartbeat()
    if owner is not None and not owner.get("slurm") and is_alive(owner):
        return _as(made, "running", status=folder.status())  # by a launch on this machine
    if point.run_id in submission.cancelled:
        return _as(made, "cancelled", causes.CANCELLED)
    if element is None:
        return _unknown(made, told, beat)
    if element.state == "CANCELLED":
        return _as(made, "cancelled", causes.CANCELLED, f"job {element.job} was cancelled outside")
    task = submission.task(index)
    if task.get("cause") in (causes.STUCK.name, causes.HELD.name):
        why = causes.CAUSES[task["cause"]]
        return _as(made, "held" if why is causes.HELD else "failed", why, task.get("detail", ""))
    if task.get("state") == "killed":
        why, kills = causes.CAUSES[task["cause"]], task["kills"]
        return _as(made, "failed", why, f"job {element.job}, {kills} time{'s' * (kills != 1)}")
    log = tail(submission, index)
    why = causes.classify_task(element, log)
    detail = f"job {element.job} {element.state.lower().replace('_', ' ')}" + (f" on {element.node}" if element.node else "")
    return _as(made, "preempted" if why is causes.PREEMPTED else "failed", why, detail)


def _as(made: State, name: str, why: Cause | None = None, detail: str = "", status: dict[str, Any] | None = None) -> State:
    return replace(made, name=name, cause=why, detail=detail, status=status)


def _failed(point: RunConfig, error: str, submission: Submission | None, index: int, tries: int) -> State:
    return State(point, "failed", causes.classify_traceback(error), causes.exception_line(error), submission, index, tries)


def _live(
    made: State, element: ArrayTask, folder: RunFolder, owner: dict[str, Any] | None, error: str | None, before: str
) -> State:
    """In an element that waits or runs; `owner` only if the latest attempt was made in it; `before` is its last start's end."""
    assert made.submission is not None
    if made.point.run_id in made.submission.cancelled:
        return _as(made, "cancelled", causes.CANCELLED)
    if error and not causes.classify_traceback(error).again:
        return _as(made, "failed", causes.classify_traceback(error), causes.exception_line(error))
    if element.waiting:
        if owner is None:
            return _as(made, "queued", detail=f"job {element.job}, {element.reason}")
        why = causes.CAUSES.get(made.submission.task(made.index).get("cause") or "") or causes.BY_STATE.get(before)
        if why is None:  # SLURM ended it unwarned, and the accounting does not say why, or not yet
            return _as(made, "queued", detail=f"job {element.job}, queued again by SLURM")
        return _as(made, "preempted" if why is causes.PREEMPTED else "queued", why, f"job {element.job} waits to go on")
    if owner is not None and owner["slurm"]["restart"] == element.restarts:
        return _as(made, "running", detail=f"job {element.job} on {element.node}", status=folder.status())
    return _as(made, "queued", detail=f"in running job {element.job}")


def _unknown(made: State, told: _Slurm, beat: float | None) -> State:
    """In an element of which SLURM tells nothing."""
    submission = made.submission
    assert submission is not None
    if submission.job is None:
        if submission.refusal:
            return _as(made, "planned", detail=f"sbatch refused: {submission.refusal}")
        if told.queue is None or not submission.launcher_gone:
            return _as(made, "queued", detail="being submitted")
        return _as(made, "planned", detail="its launcher died before sbatch")
    if beat is not None and time.time() - beat < SILENT_SECONDS:
        return _as(made, "running", detail=f"job {submission.job}_{made.index}, as its heartbeat says")
    if told.queue is None or time.time() - submission.created < NEW_SECONDS:
        return _as(made, "queued", detail=f"job {submission.job}_{made.index}, by the last record")
    return _as(made, "lost", causes.LOST, f"job {submission.job}_{made.index}")


def tail(submission: Submission, index: int, count: int = TAIL) -> str:
    """The end of what an element printed."""
    texts = []
    for path in submission.log(index):
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - count))
            texts.append(f.read().decode(errors="replace"))
    return "\n".join(texts)


def signature(error: str) -> str:
    """What two failures of the same cause share: the exception without numbers, ids and names of temporary files."""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", causes.exception_line(error))


def breaker(runs: Path, run_ids: Iterable[str]) -> str | None:
    """The failure that the first BREAKER runs of a sweep share, none having ended; None if there is no such."""
    found: Counter[str] = Counter()
    for identity in run_ids:
        folder = RunFolder(runs, identity)
        if folder.result() is not None:
            return None
        error = folder.error()
        if error and not causes.classify_traceback(error).again:
            found[signature(error)] += 1
    said, count = found.most_common(1)[0] if found else ("", 0)
    return said if count >= BREAKER else None
