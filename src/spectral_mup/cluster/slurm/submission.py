"""The submission folder: what one sbatch was given, and what became of it.

    jobs/<n>/
        submission.json    sweep, packs of run ids, job name, launcher: written before the folder gets its number
        config.json        the whole config, resolved: tasks never compose
        submit.sh          the script that sbatch gets
        preamble.sh        the site's lines, which that reads
        job.json           SLURM's job id, or sbatch's refusal
        cancelled.json     run ids that were cancelled
        tasks/<i>.json     array task i: its start, how often it was killed and on which nodes, why it stopped
        log/               what tasks print
    jobs/code/<hash>/      the code that they run

A folder is prepared under another name and renamed to the next number, so of two launches that try one gets ENOTEMPTY, looks
again, and submits only what is still left. A numbered folder is never deleted. Imports no torch.
"""

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.liveness import lives, silence
from spectral_mup.config.parse import typed
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.sweep import Sweep
from spectral_mup.util.files import json_bytes, numbered, read_json, rename_to_free, write_atomic
from spectral_mup.util.processes import this_process

UNFIT = 2  # failures by a node's fault, after which it is excluded
LAUNCH_SECONDS = 600.0  # a launcher that cannot be seen and has recorded no job for this long is assumed dead


class Taken(RuntimeError):
    """Another launch took the number; check again what is left."""


@dataclass(frozen=True, eq=False)  # a folder is itself
class Submission:
    """One array job: task i trains packs[i], a list of runs by curve, lr, seed and id; at most `max_parallel` tasks at a time
    (None: all), and none before the job `after_job` has ended."""

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
    def logs(self) -> Path:
        return self.path / "log"

    @cached_property
    def job(self) -> str | None:
        """SLURM's id of the array, once it is recorded."""
        return (read_json(self.path / "job.json") or {}).get("id")

    @cached_property
    def refusal(self) -> str | None:
        """What sbatch printed when it rejected the script."""
        return (read_json(self.path / "job.json") or {}).get("refused")

    @cached_property
    def user(self) -> int:
        """Whose it is, by the owner of its folder."""
        return self.path.stat().st_uid

    @cached_property
    def cancelled(self) -> set[str]:
        """Run ids that were cancelled here."""
        return set(read_json(self.path / "cancelled.json") or [])

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Which array task has a run, by the run's id."""
        return {entry["run_id"]: index for index, pack in enumerate(self.packs) for entry in pack}

    @property
    def launcher_gone(self) -> bool:
        """Whether no process is left that could record a job for it."""
        record = self.path / "submission.json"
        return lives(self.launcher, lambda: silence(record), patience=LAUNCH_SECONDS) is False

    def record_job(self, job: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"id": job, "time": time.time()}))
        self.__dict__.pop("job", None)  # was cached as unknown

    def record_refusal(self, why: str) -> None:
        write_atomic(self.path / "job.json", json_bytes({"refused": why, "time": time.time()}))

    def cancel(self, run_ids: Iterable[str]) -> None:
        """Record that these runs are cancelled, before scancel is called."""
        known = set(read_json(self.path / "cancelled.json") or [])
        write_atomic(self.path / "cancelled.json", json_bytes(sorted(known | set(run_ids))))

    def is_cancelled(self, run_id: str) -> bool:
        """As recorded on the disk now."""
        return run_id in (read_json(self.path / "cancelled.json") or [])

    def task(self, index: int) -> dict[str, Any]:
        """What array task `index` last wrote of itself."""
        return read_json(self.path / "tasks" / f"{index}.json") or {}

    def bad_nodes(self) -> list[str]:
        """Nodes where tasks failed UNFIT times by the node's fault; at most one, the worst, before any task has trained on
        another, as it may be the code that is to blame."""
        records = [self.task(i) for i in range(len(self.packs))]
        failures = Counter(node for record in records for node in record.get("failed_on", []))
        bad = [node for node, count in failures.most_common() if count >= UNFIT]
        fit = {record["trained_on"] for record in records if "trained_on" in record}
        return bad if fit - {*bad} else bad[:1]

    def write_task(self, index: int, **values: Any) -> None:
        write_atomic(self.path / "tasks" / f"{index}.json", json_bytes(self.task(index) | values))

    def log(self, index: int) -> list[Path]:
        """What array task `index` printed, the batch script's file first."""
        return sorted(self.logs.glob(f"*_{index}_*_log.out"))

    def config(self) -> Config:
        """The config of the launch."""
        return typed(read_json(self.path / "config.json"))

    @cached_property
    def declared(self) -> dict[str, Any]:
        """The sweep's part of the launch's config, without where and how it is run."""
        config = read_json(self.path / "config.json") or {}
        return {key: config.get(key) for key in ("model", "optimizer", "rule", "data", "train", "probe", "lr", "sweep")}

    def runs(self, index: int) -> list[RunConfig]:
        """The pack of array task `index`. Raises ValueError if this code does not give the runs their recorded ids."""
        sweep, runs = Sweep(self.config(), self.fingerprint), []
        for entry in self.packs[index]:
            curve = Curve(**entry["curve"] | {"held": tuple((name, x) for name, x in entry["curve"]["held"])})
            run = sweep.run(curve, entry["value"], entry["seed"])
            if run.run_id != entry["run_id"]:
                raise ValueError(f"{self.path}: the snapshot gives run {entry['run_id']} the id {run.run_id}: it was edited")
            runs.append(run)
        return runs


def open_submission(path: Path) -> Submission | None:
    """None where a network disk does not show the content yet."""
    content = read_json(path / "submission.json")
    return None if content is None else Submission(path=path, **content)


def submissions(jobs_dir: Path) -> list[Submission]:
    """All of them, oldest first."""
    return [s for number in numbered(jobs_dir) if (s := open_submission(jobs_dir / str(number)))]


def prepare(
    jobs_dir: Path,
    config: Mapping[str, Any],
    packs: Sequence[Sequence[RunConfig]],
    fingerprint: str,
    code: str,
    max_parallel: int | None = None,
    after_job: str | None = None,
) -> Submission:
    """Write a folder with everything but its number, which `take` gives."""
    nonce = secrets.token_hex(4)
    path, sweep = jobs_dir / f"new.{nonce}", config["sweep"]["name"]
    name = f"{slurm.NAME}{re.sub(r'[^A-Za-z0-9.-]', '-', sweep)[:40]}-{nonce}"
    entries = [
        [{"curve": asdict(run.curve), "value": run.value, "seed": run.seed, "run_id": run.run_id} for run in pack]
        for pack in packs
    ]
    prepared = Submission(path, sweep, name, entries, fingerprint, code, time.time(), this_process(), max_parallel, after_job)
    for folder in ("log", "tasks"):
        (path / folder).mkdir(parents=True)
    if site := config["cluster"].get("preamble"):  # it may have secrets: never in the script, and as hidden as it was
        with open(os.open(prepared.preamble, os.O_CREAT | os.O_WRONLY, Path(site).stat().st_mode & 0o755), "w") as f:
            f.writelines(f"{line}\n" for line in Path(site).read_text().splitlines())
    write_atomic(path / "config.json", json_bytes(config))
    write_atomic(path / "submission.json", json_bytes({k: v for k, v in asdict(prepared).items() if k != "path"}))
    return prepared


def take(prepared: Submission, number: int, render: Callable[[Submission], str]) -> Submission:
    """Give the folder this number and write its script, which contains its path. Raises Taken if another launch was first."""
    path = prepared.path.with_name(str(number))
    if not rename_to_free(prepared.path, path):
        raise Taken(f"{path} was taken by another launch")
    taken = replace(prepared, path=path)
    write_atomic(taken.script, render(taken).encode(), 0o600)  # it has the lines of the site's preamble
    return taken
