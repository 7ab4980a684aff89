"""The submission folder: what one sbatch was given, and what became of it.

    jobs/<n>/
        submission.json    sweep, packs of run ids, job name, launcher: written before the folder gets its number
        config.json        the whole config, resolved: tasks never compose
        submit.sh          the script that sbatch gets
        preamble.sh        the site's lines, which submit.sh reads
        job.json           SLURM's job id, or sbatch's refusal
        cancelled.json     run ids that were cancelled
        tasks/<i>.json     array task i: its start, how often it was killed and on which nodes, why it stopped
        log/               what tasks print
    jobs/code/<hash>/      the code that they run

A folder is prepared under another name and renamed to the next number. Of two launches that try the same number one gets
ENOTEMPTY, looks again, and submits only what is still left. A numbered folder is never deleted; one that was only prepared is,
a day later, by another launch. Where one cannot be read, its own runs count as not submitted, and no others. Imports no torch.
"""

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.liveness import lives, silence
from spectral_mup.config.parse import typed
from spectral_mup.config.schema import Config
from spectral_mup.errors import RecordError
from spectral_mup.runs.records import record
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.sweep import Sweep
from spectral_mup.util.files import json_bytes, numbered, read_json, rename_to_free, write_atomic
from spectral_mup.util.log import warn_once
from spectral_mup.util.processes import this_process

UNFIT = 2  # failures by a node's fault, after which it is excluded
LAUNCH_SECONDS = 600.0  # a launcher that cannot be seen and has recorded no job for this long is assumed dead

ENTRY = record(run_id=str, curve=dict[str, Any], value=float, seed=int)
TASK = dict.fromkeys(("job", "state", "detail", "trained_on"), NotRequired[str])
TASK |= dict.fromkeys(("restart", "progress", "starts_without_progress", "kills"), NotRequired[int])
KINDS: dict[str, tuple[Any, str]] = {  # what files must contain, and what to do about one that does not
    "submission.json": (
        record(
            sweep=str, name=str, packs=list[list[ENTRY]], fingerprint=str, code=str, created=float,
            launcher=record(host=str, pid=int, start=str | None), max_parallel=NotRequired[int | None],
            after_job=NotRequired[str | None],
        ),
        "restore it, or cancel its job and move the folder away; until then its runs count as not submitted",
    ),
    "config.json": (dict[str, Any], "restore it, or cancel the job"),
    "job.json": (record(id=str) | record(refused=str), "it is written again if SLURM still knows the job"),
    "cancelled.json": (list[str], "give action=cancel again"),
    "tasks": (record(**TASK, cause=NotRequired[str | None], failed_on=NotRequired[list[str]]), "what it said is not known"),
}  # fmt: skip
READERS = {name: (TypeAdapter(kind), fix) for name, (kind, fix) in KINDS.items()}


class Taken(RuntimeError):
    """Another launch took the number; check again what is left."""


@dataclass(frozen=True, eq=False)  # equal only to itself: a folder is one object
class Submission:
    """One array job: task i trains packs[i], a list of runs by curve, value, seed and id.

    At most `max_parallel` tasks run at a time (None: all), and none before the job `after_job` has ended.
    """

    path: Path
    sweep: str
    name: str
    packs: list[list[dict[str, Any]]]
    fingerprint: str
    code: str
    created: float
    launcher: Mapping[str, Any]
    max_parallel: int | None = None
    after_job: str | None = None

    @property
    def script(self) -> Path:
        return self.path / "submit.sh"

    @property
    def preamble(self) -> Path:
        return self.path / "preamble.sh"

    @property
    def log_folder(self) -> Path:
        return self.path / "log"

    @cached_property
    def job(self) -> str | None:
        """SLURM's id of the array, once it is recorded."""
        return (self._peek("job.json") or {}).get("id")

    @cached_property
    def refusal(self) -> str | None:
        """What sbatch printed when it rejected the script."""
        return (self._peek("job.json") or {}).get("refused")

    @cached_property
    def user(self) -> int:
        """Id of the user who submitted it, the owner of its folder."""
        return self.path.stat().st_uid

    @cached_property
    def cancelled(self) -> set[str]:
        """Run ids that were cancelled here."""
        return self.read_cancelled()

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The array task that has a run, by the run's id."""
        return {entry["run_id"]: index for index, pack in enumerate(self.packs) for entry in pack}

    @property
    def launcher_gone(self) -> bool:
        """Whether no process is left that could record a job for it."""
        record = self.path / "submission.json"
        return lives(self.launcher, lambda: silence(record), patience=LAUNCH_SECONDS) is False

    def _peek(self, name: str) -> Any | None:
        """Return the content of one of its files; None, which is logged once, where that cannot be read."""
        try:
            return _read(self.path, name)
        except (RecordError, OSError) as error:
            warn_once(str(error))

    def record_job(self, job: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"id": job, "time": time.time()}))
        self.__dict__.pop("job", None)  # was cached as unknown

    def record_refusal(self, why: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"refused": why, "time": time.time()}))

    def cancel(self, run_ids: Iterable[str]) -> None:
        """Record that these runs are cancelled, before scancel is called."""
        write_atomic(self.path / "cancelled.json", json_bytes(sorted(self.read_cancelled() | set(run_ids))))

    def read_cancelled(self) -> set[str]:
        """Return the run ids that were cancelled, as recorded on the disk now."""
        return set(self._peek("cancelled.json") or [])

    def task_record(self, index: int) -> dict[str, Any]:
        """Return what array task `index` last recorded of itself."""
        return self._peek(f"tasks/{index}.json") or {}

    def bad_nodes(self) -> list[str]:
        """Return the nodes where tasks failed UNFIT times by the node's fault.

        Before any task has trained on another node that is only the worst one, as it may be the code that is to blame.
        """
        records = [self.task_record(i) for i in range(len(self.packs))]
        failures = Counter(node for record in records for node in record.get("failed_on", []))
        bad = [node for node, count in failures.most_common() if count >= UNFIT]
        fit = {record["trained_on"] for record in records if "trained_on" in record}
        return bad if fit - {*bad} else bad[:1]

    def write_task(self, index: int, **values: Any) -> None:
        write_atomic(self.path / "tasks" / f"{index}.json", json_bytes(self.task_record(index) | values))

    def log_files(self, index: int) -> list[Path]:
        """Return the files of what array task `index` printed, the batch script's first."""
        return sorted(self.log_folder.glob(f"*_{index}_*_log.out"))

    def config(self) -> Config:
        """Return the config of the launch."""
        return typed(_read(self.path, "config.json"))

    @cached_property
    def declared(self) -> dict[str, Any]:
        """The sweep's part of the launch's config, without where and how it is run."""
        config = self._peek("config.json") or {}
        return {key: config.get(key) for key in ("model", "optimizer", "rule", "data", "train", "probe", "lr", "sweep")}

    def runs(self, index: int) -> list[RunConfig]:
        """Return the pack of array task `index`. Raises ValueError if this code does not give the runs their recorded ids."""
        sweep, runs = Sweep(self.config(), self.fingerprint), []
        for entry in self.packs[index]:
            curve = Curve(**entry["curve"] | {"held": tuple((name, x) for name, x in entry["curve"]["held"])})
            run = sweep.run(curve, entry["value"], entry["seed"])
            if run.run_id != entry["run_id"]:
                raise ValueError(f"{self.path}: the snapshot gives run {entry['run_id']} the id {run.run_id}: it was edited")
            runs.append(run)
        return runs


def _read(folder: Path, name: str) -> Any | None:
    """Return the content of a submission's file, None without one. Raises RecordError unless it is as KINDS has it."""
    return read_json(folder / name, *READERS[name.partition("/")[0]])


def open_submission(path: Path) -> Submission | None:
    """Return a submission; None where a network disk does not show it yet. Raises RecordError or OSError if unreadable."""
    content = _read(path, "submission.json")
    known = {field.name for field in fields(Submission)}  # a later version may write more
    return None if content is None else Submission(path=path, **{k: v for k, v in content.items() if k in known})


def submissions(jobs_dir: Path) -> list[Submission]:
    """Return all that can be read, oldest first; about each other one a line is logged, once."""
    found = []
    for number in numbered(jobs_dir):
        try:
            found.append(open_submission(jobs_dir / str(number)))
        except (RecordError, OSError) as error:
            warn_once(str(error))
    return [submission for submission in found if submission]


def prepare(
    jobs_dir: Path,
    config: Mapping[str, Any],
    packs: Sequence[Sequence[RunConfig]],
    fingerprint: str,
    code: str,
    max_parallel: int | None = None,
    after_job: str | None = None,
) -> Submission:
    """Write a submission's folder with everything but its number, which `take` gives it."""
    nonce = secrets.token_hex(4)
    path, sweep = jobs_dir / f"new.{nonce}", config["sweep"]["name"]
    name = f"{slurm.JOB_PREFIX}{re.sub(r'[^A-Za-z0-9.-]', '-', sweep)[:40]}-{nonce}"
    entries = [
        [{"curve": asdict(run.curve), "value": run.value, "seed": run.seed, "run_id": run.run_id} for run in pack]
        for pack in packs
    ]
    prepared = Submission(path, sweep, name, entries, fingerprint, code, time.time(), this_process(), max_parallel, after_job)
    for folder in ("log", "tasks"):
        (path / folder).mkdir(parents=True)
    if site := config["cluster"].get("preamble"):  # it may contain secrets: kept out of the script, its mode unchanged
        lines = Path(site).read_bytes().replace(b"\r\n", b"\n")  # as written on Windows
        write_atomic(prepared.preamble, lines, Path(site).stat().st_mode & 0o755)
    write_atomic(path / "config.json", json_bytes(config, sort_keys=False))  # sweep.tune has an order
    write_atomic(path / "submission.json", json_bytes({k: v for k, v in asdict(prepared).items() if k != "path"}))
    return prepared


def take(prepared: Submission, number: int, render: Callable[[Submission], str]) -> Submission:
    """Give the folder this number and write its script, which contains its path. Raises Taken if another launch was first."""
    path = prepared.path.with_name(str(number))
    if not rename_to_free(prepared.path, path):
        raise Taken(f"{path} was taken by another launch")
    taken = replace(prepared, path=path)
    write_atomic(taken.script, render(taken).encode(), 0o600)  # for its owner alone, as cluster.extra is in it
    return taken
