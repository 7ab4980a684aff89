"""Laws of Weights & Biases: it has each step of a run once, whatever was killed or sent again, and no key is ever written."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from support import ROOT
from support.cli import RESULT as ENDED
from support.launches import PATIENCE, Launch, OnTerminal, environment, snapshot
from support.runs import TINY

from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan
from spectral_mup.tracking import live
from spectral_mup.tracking.live import WandbLogger
from spectral_mup.tracking.push import Counts, PushError, push
from spectral_mup.tracking.verdict import NOT_JUDGED, SENT, UNCHANGED, push_verdict

CANARY = "c0ffee" * 6 + "abcd"
SHORT = [*TINY, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-8,-6]", "lr.adaptive=false"]  # two runs
RESULT = ENDED | {"val_loss": 3.5, "train_loss": None}


class Server:
    """What W&B keeps: of each run the rows by step. Stands in for `wandb.init`, which it takes the place of."""

    def __init__(self, log: Path) -> None:
        self.rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.config: dict[str, Any] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.sent: list[tuple[str, int]] = []
        self.fails: dict[tuple[str, int], BaseException] = {}
        self._log = log

    def init(self, *, id: str, resume: str, config: dict[str, Any], **about: Any) -> Any:
        assert resume == "allow"
        rows = self.rows.setdefault(id, [])
        self.config[id] = config
        self.about[id] = {key: about.get(key) for key in ("name", "group", "job_type", "tags")}

        def log(data: dict[str, Any], step: int | None = None) -> None:
            last = rows[-1][0] if rows else 0
            step = last + 1 if step is None else step
            self.sent.append((id, step))
            if (id, step) in self.fails:
                raise self.fails.pop((id, step))
            if step > last:
                rows.append((step, data))

        settings = SimpleNamespace(log_internal=str(self._log))
        summary = self.summary.setdefault(id, {})
        return SimpleNamespace(
            log=log, summary=summary, settings=settings, finish=lambda: None, define_metric=lambda *_, **__: None
        )

    def steps(self, run_id: str) -> list[int]:
        """The training steps that it has of a run, in its order."""
        return [data["train_step"] for _, data in self.rows[run_id]]


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server(tmp_path / "internal.log")
    monkeypatch.setattr(wandb, "init", server.init)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "setup", lambda _: SimpleNamespace(settings=SimpleNamespace(base_url="http://w", entity=None)))
    return server


@pytest.fixture
def runs(tmp_path) -> list[RunConfig]:
    return make_plan(open_sweep(load_config(SHORT)), lambda p: None).runs


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": None if step == 3 else 5.0 - step / 10} for step in range(first, last + 1)]


def write(runs_dir: Path, run: RunConfig, first: int, last: int, result: dict[str, Any] | None = None) -> RunFolder:
    """Rows first to last more in a run's folder, as training leaves them."""
    folder = RunFolder(runs_dir, run.run_id)
    folder.write_config(run.to_json())
    folder.claim(is_running=lambda owner: False)  # who wrote before is this process
    folder.append("metrics.jsonl", rows(first, last))
    if result is not None:
        folder.finish(result)
    return folder


def send(tmp_path: Path, runs: list[RunConfig], project: str = "p", mode: str = "online") -> Counts:
    return push(tmp_path, runs, "tiny", project, mode, lambda: None)


# --- replay -----------------------------------------------------------------------------------------------------------


def test_a_run_arrives_whole_once_and_then_nothing_is_sent(server, runs, tmp_path):
    write(tmp_path, runs[0], 1, 12, RESULT)
    assert send(tmp_path, runs) == Counts(pushed=1, rows=12, unchanged=0, not_begun=1)
    run_id = runs[0].run_id
    assert list(server.rows) == [run_id] and server.config[run_id]["run"] == runs[0].to_json()
    assert server.rows[run_id] == [
        (r["step"], {"train_step": r["step"]} | {k: v for k, v in r.items() if k == "loss" and v is not None})
        for r in rows(1, 12)
    ]
    assert {"status": "done", "val_loss": 3.5, "steps": 12}.items() <= server.summary[run_id].items()
    before = snapshot(tmp_path)
    server.init = None  # nothing to begin
    assert send(tmp_path, runs) == Counts(pushed=0, rows=0, unchanged=1, not_begun=1)
    assert snapshot(tmp_path) == before and len(server.sent) == 12


def test_a_run_is_named_grouped_and_filtered_by_what_it_is(server, tmp_path):
    wide = open_sweep(load_config([*SHORT, "optimizer=muon"])).run(Curve("spectral", 256, 4), -6.5, 3)
    write(tmp_path, wide, 1, 2)
    send(tmp_path, [wide])
    assert server.about[wide.run_id] == {
        "name": "spectral w256 d4 lr2^-6.5 s3", "group": "tiny", "job_type": "spectral", "tags": ["muon", "nanogpt"],
    }  # fmt: skip
    config = {key: value for key, value in server.config[wide.run_id].items() if key != "run"}
    assert config == {
        "sweep": "tiny", "optimizer": "muon", "rule": "spectral", "width": 256, "depth": 4, "lr": 2**-6.5, "seed": 3,
    }  # fmt: skip


def test_norms_and_speed_are_sent_with_the_row_of_their_step(server, runs, tmp_path):
    folder = write(tmp_path, runs[0], 1, 4)
    norms = [
        {"step": step, "name": "readout.weight", "what": "tensor", "fan_in": 32, "update_norm": step / 4} for step in (0, 2)
    ]
    folder.append("norms.jsonl", norms)
    folder.append_timing({"step": 4, "tokens_per_second": 1000.0, "memory": 10**9})
    send(tmp_path, runs[:1])
    more = {1: {}, 2: {"update_norm/readout.weight": 0.5}, 3: {}, 4: {"tokens_per_second": 1000.0, "memory": 10**9}}
    sent = dict(server.rows[runs[0].run_id])
    assert {step: {k: v for k, v in row.items() if k not in ("train_step", "loss")} for step, row in sent.items()} == more


def judged(tmp_path: Path) -> Path:
    """Results as analyze leaves them, with one figure."""
    folder = tmp_path / "results" / "tiny"
    shutil.copytree(ROOT / "sweeps" / "results" / "default", folder, ignore=shutil.ignore_patterns("feature*.png"))
    return folder


def test_the_verdict_is_a_run_with_table_figures_and_numbers_sent_once(server, tmp_path):
    folder, memory = judged(tmp_path), tmp_path / "memory"
    assert push_verdict(tmp_path / "none", [], "tiny", "p", "online", memory) is NOT_JUDGED and not server.rows
    assert push_verdict(folder, ["depth"], "tiny", "p", "online", memory) is SENT
    (run_id,) = server.rows
    assert server.about[run_id] | {"tags": None} == {
        "name": "tiny/verdict",
        "group": "tiny",
        "job_type": "verdict",
        "tags": None,
    }
    ((_, sent),) = server.rows[run_id]
    assert sent.keys() == {"verdicts", "lr_transfer"} and isinstance(sent["lr_transfer"], wandb.Image)
    assert [row[:2] for row in sent["verdicts"].data] == [["spectral", "transfers"], ["standard", "drifts"]]
    assert server.summary[run_id]["standard/verdict"] == "drifts" and server.summary[run_id]["spectral/slope"] < 0.25
    assert push_verdict(folder, ["depth"], "tiny", "p", "online", memory) is UNCHANGED and len(server.sent) == 1
    (folder / "lr_transfer.png").write_bytes((folder / "lr_transfer.png").read_bytes() + b"\0")  # drawn anew
    assert push_verdict(folder, ["depth"], "tiny", "p", "online", memory) is SENT and list(server.rows) == [run_id]
    shutil.copytree(ROOT / "sweeps" / "results" / "grid" / "depth" / "muon", folder / "depth")
    assert push_verdict(folder, ["depth"], "tiny", "p", "online", memory) is SENT
    assert {"verdicts", "depth/verdicts", "depth/lr_transfer"} <= server.rows[run_id][-1][1].keys()
    assert "depth/spectral/verdict" in server.summary[run_id]


def test_a_run_that_grew_sends_only_what_is_new(server, runs, tmp_path):
    run = runs[0]
    write(tmp_path, run, 1, 5)
    assert send(tmp_path, [run]).rows == 5 and send(tmp_path, [run]) == Counts(0, 0, 1, 0)
    folder = write(tmp_path, run, 6, 8)
    with (folder.path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 9, "lo')  # as a kill leaves it
    assert send(tmp_path, [run]).rows == 3
    folder.truncate_after("metrics.jsonl", 6)  # resumed from a checkpoint before what was pushed
    assert send(tmp_path, [run]) == Counts(0, 0, 1, 0)
    write(tmp_path, run, 7, 12, RESULT)
    assert send(tmp_path, [run]) == Counts(1, 4, 0, 0)
    assert [step for _, step in server.sent] == server.steps(run.run_id) == list(range(1, 13))


def test_a_result_alone_is_sent_too(server, runs, tmp_path):
    folder = write(tmp_path, runs[0], 1, 12)
    send(tmp_path, runs[:1])
    folder.finish(RESULT)
    assert send(tmp_path, runs[:1]) == Counts(1, 0, 0, 0)
    assert server.summary[runs[0].run_id]["val_loss"] == 3.5


def test_offline_a_run_that_grew_is_written_whole(server, runs, tmp_path):
    """Of two offline folders of one run, a sync lets the later overwrite the earlier."""
    write(tmp_path, runs[0], 1, 5)
    send(tmp_path, runs[:1], mode="offline")
    write(tmp_path, runs[0], 6, 12, RESULT)
    assert send(tmp_path, runs[:1], mode="offline").rows == 12
    assert send(tmp_path, runs[:1], mode="offline") == Counts(0, 0, 1, 0)


@pytest.mark.parametrize("damage", ["a row that is none", "a folder"])
def test_rows_that_cannot_be_read_keep_no_other_run_from_being_sent(server, runs, tmp_path, damage):
    folder = write(tmp_path, runs[0], 1, 5)
    if damage == "a folder":
        (folder.path / "metrics.jsonl").unlink()
        (folder.path / "metrics.jsonl").mkdir()
    else:
        (folder.path / "metrics.jsonl").write_text("x\n")
    write(tmp_path, runs[1], 1, 5, RESULT)
    ended = []
    counts = push(tmp_path, runs, "s", "p", "online", lambda: ended.append(1))
    assert counts == Counts(pushed=1, rows=5, damaged=1) and len(ended) == len(runs) == 2


def test_another_project_gets_all_of_it(server, runs, tmp_path):
    write(tmp_path, runs[0], 1, 12, RESULT)
    send(tmp_path, runs[:1])
    assert send(tmp_path, runs[:1], project="q").rows == 12
    assert send(tmp_path, runs[:1], project="q").rows == 0


def test_a_killed_push_goes_on_and_each_step_is_there_once(server, runs, tmp_path):
    for run in runs:
        write(tmp_path, run, 1, 12, RESULT)
    server.fails[runs[1].run_id, 7] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        send(tmp_path, runs)
    assert [RunFolder(tmp_path, p.run_id).read("wandb.json") is not None for p in runs] == [True, False]
    assert send(tmp_path, runs) == Counts(pushed=1, rows=12, unchanged=1, not_begun=0)
    assert all(server.steps(p.run_id) == list(range(1, 13)) for p in runs)
    assert len(server.sent) == 12 + 7 + 12


def test_a_refusal_is_one_line_and_what_was_pushed_stays_so(server, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    for run in runs:
        write(tmp_path, run, 1, 12, RESULT)
    server.fails[runs[1].run_id, 7] = OSError(f"no route\nto {CANARY}")
    with pytest.raises(PushError, match="no route to .*wandb login.*WANDB_API_KEY.*wandb.mode=offline.* 1 run pushed") as error:
        send(tmp_path, runs)
    assert "\n" not in str(error.value) and CANARY not in str(error.value)
    assert send(tmp_path, runs).unchanged == 1


# --- the live mirror --------------------------------------------------------------------------------------------------


def mirrored(run_id: str, *segments: list[dict[str, Any]]) -> None:
    """A run trained with a live mirror, in a process a segment."""
    for number, segment in enumerate(segments, 1):
        mirror = WandbLogger("online", "p")
        mirror.start(run_id, {"config": {}})
        mirror.log(segment)
        if number == len(segments):
            mirror.finish(RESULT)
        mirror.close()
        assert mirror.broken is None


def test_a_mirrored_run_that_resumed_has_each_step_once_and_a_push_adds_none(server, runs, tmp_path):
    run_id = runs[0].run_id
    mirrored(run_id, rows(1, 8), rows(5, 12))
    assert server.steps(run_id) == list(range(1, 13)) and server.summary[run_id]["val_loss"] == 3.5
    write(tmp_path, runs[0], 1, 12, RESULT)
    send(tmp_path, runs[:1])
    assert server.steps(run_id) == list(range(1, 13))


def test_rows_without_their_step_would_be_there_twice(server):
    """The stand-in takes what it is given, so that the laws above can fail."""
    for segment in (rows(1, 8), rows(5, 12)):
        run = server.init(id="r", resume="allow", config={})
        for row in segment:
            run.log({"train_step": row["step"]})
    assert server.steps("r") == [*range(1, 9), *range(5, 13)]


# --- W&B's own client -------------------------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """The least that W&B's client asks of a server: who am I, what has this run, and a place for its lines."""

    history: dict[str, list[dict[str, Any]]]
    upload_code: int

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def do_PUT(self) -> None:
        self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("file_stream"):
            if self.upload_code == 200:
                lines = self.history.setdefault(self.path.split("/")[-2], [])
                new = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": len(lines), "content": []})
                lines[new["offset"] :] = map(json.loads, new["content"])
            return self.answer({}, self.upload_code)
        if not body.startswith(b"{"):
            return self.answer({})
        asked = json.loads(body)
        name, known = asked.get("variables", {}).get("name"), self.history.get(asked.get("variables", {}).get("name"), [])
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        entity = {"id": "e", "name": "me"}
        tail = {
            "id": "b", "name": name, "displayName": name, "config": "{}", "tags": [], "wandbConfig": '{"t": 1}',
            "historyLineCount": len(known), "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in known[-1:]]),
            "summaryMetrics": json.dumps((known or [{}])[-1]),
        }  # fmt: skip
        bucket = {
            "id": "b",
            "name": name,
            "displayName": name,
            "config": "{}",
            "project": {"id": "p", "name": "p", "entity": entity},
        }
        self.answer({"data": {
            "Viewer": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
            "RunResumeStatus": {"model": {"id": "p", "name": "p", "entity": entity, "bucket": tail if known else None}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": not known}},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }.get(operation[1] if operation else "", {})})  # fmt: skip


@pytest.fixture
def service():
    """A W&B server on this machine: its address, the class that answers."""
    answers = type("Answers", (Answers,), {"history": {}, "upload_code": 200})
    http = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", answers=answers)
    http.shutdown()
    thread.join()
    http.server_close()


def pushed(tmp: Path, *words: str, url: str = "http://127.0.0.1:9", **env: str) -> Launch:
    """A launch with action=wandb_push that has ended, its W&B folder under tmp; its exit code is `.process.returncode`."""
    env = {"WANDB_DIR": str(tmp), "WANDB_BASE_URL": url, "WANDB_API_KEY": CANARY} | env
    (tmp / "wandb").mkdir(exist_ok=True)  # without it W&B would warn and take another
    launched = Launch(tmp, [*SHORT, "action=wandb_push", *words], env={k: v for k, v in env.items() if v})
    launched.wait()
    assert not leaks(tmp), "the key was written"
    return launched


def leaks(tmp: Path) -> list[Path]:
    """What holds the key: run folders, results, what was printed, W&B's own folder."""
    return [p for p in tmp.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


def test_a_leak_would_be_found(tmp_path):
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "wandb.json").write_text(f'{{"key": "{CANARY}"}}')
    assert [p.name for p in leaks(tmp_path)] == ["wandb.json"]


def test_a_server_has_each_step_once(service, runs, tmp_path):
    """W&B's client, sent a run that grew and a run whose record was lost, drops what the server has."""
    for run in runs:
        write(tmp_path / "runs", run, 1, 8)
    assert pushed(tmp_path, url=service.url).process.returncode == 0
    for run in runs:
        write(tmp_path / "runs", run, 9, 12, RESULT)
    (tmp_path / "runs" / runs[0].run_id / "wandb.json").unlink()
    again = pushed(tmp_path, url=service.url)
    assert again.process.returncode == 0 and again.err == ""
    assert "2 runs pushed (16 rows)" in again.out
    for run in runs:
        have = service.answers.history[run.run_id]
        assert [row["train_step"] for row in have] == [row["_step"] for row in have] == list(range(1, 13))
        assert [row.get("loss") for row in have] == [row["loss"] for row in rows(1, 12)]


def test_rows_that_a_server_refuses_are_not_taken_for_pushed(service, runs, tmp_path):
    write(tmp_path / "runs", runs[0], 1, 8)
    service.answers.upload_code = 403
    refused = pushed(tmp_path, url=service.url)
    assert refused.process.returncode == 4 and "403" in refused.err and refused.err.count("\n") == 1
    assert RunFolder(tmp_path / "runs", runs[0].run_id).read("wandb.json") is None
    service.answers.upload_code = 200
    assert pushed(tmp_path, url=service.url).process.returncode == 0
    assert len(service.answers.history[runs[0].run_id]) == 8


def test_offline_leaves_a_folder_a_run_for_sync_and_one_of_the_verdict(runs, tmp_path):
    judged(tmp_path)
    for run in runs:
        write(tmp_path / "runs", run, 1, 12, RESULT)
    launch = pushed(tmp_path, "wandb.mode=offline", WANDB_API_KEY="")
    assert launch.process.returncode == 0 and launch.err == ""
    folders = {p.name.partition("_")[2].partition("-")[2]: p for p in (tmp_path / "wandb").glob("offline-run-*")}
    (verdict,) = folders.keys() - {p.run_id for p in runs}
    assert verdict.startswith("verdict-") and len(folders) == 3 and "tiny/verdict: pushed" in launch.out
    media = [p.suffix for p in folders[verdict].rglob("*") if p.parent.name in ("images", "table")]
    assert sorted(media) == [".json", ".png"]
    assert f"Next: wandb sync {tmp_path}/wandb/offline-run-*" in launch.out


def test_without_a_key_it_says_so_in_a_line_and_asks_nothing(runs, tmp_path):
    write(tmp_path / "runs", runs[0], 1, 12, RESULT)
    launch = pushed(tmp_path, WANDB_API_KEY="")
    assert launch.process.returncode == 4 and launch.err.count("\n") == 1
    assert re.search("error: W&B: no key.*`wandb login` or WANDB_API_KEY.*wandb.mode=offline", launch.err)
    terminal = OnTerminal(tmp_path, [*SHORT, "action=wandb_push"])
    assert terminal.wait() == 4 and "no key" in terminal.out


@pytest.mark.slow
def test_without_a_network_it_says_so_in_a_line_and_in_bounded_time(runs, tmp_path):
    write(tmp_path / "runs", runs[0], 1, 12, RESULT)
    started = time.monotonic()
    launch = pushed(tmp_path)
    assert launch.process.returncode == 4 and launch.err.count("\n") == 1 and time.monotonic() - started < 60
    assert re.search("error: W&B: .*refused.*wandb.mode=offline.*0 runs pushed before", launch.err)
    assert RunFolder(tmp_path / "runs", runs[0].run_id).read("wandb.json") is None


STOPPED = """
import os, signal, sys
from spectral_mup.tracking import live
logger = live.WandbLogger("offline", "p")
logger.start("r", {})
logger.log([{"step": 1, "loss": 1.0}])
while logger._queue.qsize() or not live._services():
    pass
for pid in live._services():
    os.kill(pid, signal.SIGSTOP)
if sys.argv[1] == "result":
    logger.finish({"val_loss": 1.0})
logger.close(1.0)
assert not live._services()
sys.exit(7)
"""


@pytest.mark.parametrize("last", ["row", "result"])
def test_a_process_ends_though_wandb_does_not(tmp_path, last):
    """W&B's own process is stopped before its end, with a row or with the result: it is killed, and the exit code is ours."""
    env = environment(tmp_path, WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    done = subprocess.run([sys.executable, "-c", STOPPED, last], env=env, cwd=tmp_path, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 7, done.stderr


def test_of_the_processes_that_this_one_has_started_those_are_wandb_s_whose_program_is(tmp_path):
    """Not every one that runs from a folder of that name, as a Python of wandb-env/ does."""
    started = {}
    for name in ("wandb-core", "wandb-env/python"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.symlink_to(shutil.which("sleep"))
        started[name] = subprocess.Popen([program, "60"])
    try:
        assert live._services() == [started["wandb-core"].pid]
    finally:
        for process in started.values():
            process.kill()
            process.wait()
