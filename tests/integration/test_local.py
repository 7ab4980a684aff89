"""Laws of local execution, with real processes: killed, stopped, doubled or short of disk, a sweep ends with the same bytes."""

import errno
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support.cli import finish, planned
from support.launches import (
    HIDE_CURSOR,
    MARK,
    SHOW_CURSOR,
    Launch,
    OnTerminal,
    attempts,
    contents,
    ended,
    kill,
    leftovers,
    newest_checkpoint,
    read,
    snapshot,
    steps_done,
    trained,
    until,
    until_gone,
)
from support.runs import TINY

from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep, result_reader
from spectral_mup.search.plan import make_plan
from spectral_mup.util.processes import process_start

SWEEP = [*TINY, "rule=[spectral,standard]", "lr.resolution=1.0", "cluster.workers=1"]  # a worker costs seconds to start
SLOW = [
    *TINY, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-6]", "lr.adaptive=false", "train.steps=400",
    "probe.steps=[1,100,200,300]", "cluster.checkpoint_seconds=0.1", "cluster.log_every=5", "sweep.name=slow",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("nothing_left")
SHORT = [*SWEEP, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-8,-6]", "lr.adaptive=false"]  # two runs of SWEEP


# --- the unbroken sweeps ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The finished tiny sweep that all others are held against. Nobody may change its folder: copy it."""
    tmp = tmp_path_factory.mktemp("unbroken")
    launch = Launch(tmp, [*SWEEP, "cluster.workers=2"])
    try:
        code = launch.wait()
    finally:
        left = leftovers(tmp)
    assert (code, launch.err, left) == (0, "", [])
    return launch


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """contents() of SLOW, trained in this very process without a break."""
    return trained(tmp_path_factory.mktemp("slow") / "runs", SLOW)


def mid_run(tmp: Path, launch: Launch, past: int = 0) -> None:
    """Wait until the run of SLOW has a checkpoint of this launch: one after step `past`."""

    def there() -> bool:
        assert launch.process.poll() is None, f"ended too early:\n{launch.out}{launch.err}"
        return any(newest_checkpoint(p) > past for p in (tmp / "runs").glob("*"))

    until(there, "a checkpoint")
    assert len(launch.workers()) == 1 and not ended(tmp / "runs"), "too late: raise train.steps of SLOW"


def copy_of(unbroken, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken.runs, tmp_path / "runs"))  # with times of change


# --- 1: unbroken ------------------------------------------------------------------------------------------------------


def test_an_unbroken_sweep_says_how_far_it_is_and_how_to_go_on(unbroken):
    """Plain lines off a terminal: done/total and the time that is left; a line per run, and no code of a terminal."""
    total = len(ended(unbroken.runs))
    of_run = r"(?:base|spectral|standard) width \d+ depth 2 lr 2\^\S+ seed 0: loss"
    lines = re.findall(rf"^\[(\d+) of (?:about \d+ to )?(\d+) runs done.*?\] {of_run}", unbroken.out, re.M)
    assert len(lines) == total > 10
    assert [int(done) for done, _ in lines] == sorted(int(done) for done, _ in lines) and lines[-1] == (str(total),) * 2
    assert re.search(r"^\[\d+ of (about \d+ to )?\d+ runs done; about \d+.* (s|min) left\]", unbroken.out, re.M)
    assert re.search(r"^\[.*\] standard width 64 depth 2: bracketed, best lr 2\^\S+, loss \d", unbroken.out, re.M)
    verdicts = r"spectral, lr over width: undecided .*\nstandard, lr over width: undecided .*"  # of two sizes
    assert re.search(rf"^All {total} \w+ done\.\n{verdicts}\nNext: python analyze\.py tiny paths", unbroken.out, re.M)
    assert "\x1b" not in unbroken.out and "Traceback" not in unbroken.out
    assert [attempts(p) for p in ended(unbroken.runs)] == [1] * total
    assert not list(unbroken.runs.rglob(".*")) and not list(unbroken.runs.rglob("new.*"))


def test_launching_again_trains_nothing_and_a_new_width_only_its_own_runs(unbroken, tmp_path, call):
    runs = copy_of(unbroken, tmp_path)
    before, total = snapshot(runs), len(ended(runs))
    code, out, err = call("launch.py", SWEEP)
    assert code == 0, err
    assert f" {total} done, 0 to do" in out and "Nothing to do.\n" in out and "\nNext: python analyze.py" in out
    assert snapshot(runs) == before == snapshot(unbroken.runs)

    more = Launch(tmp_path, [*SWEEP, "sweep.width=[32,64,96]"])
    assert more.wait() == 0, more.err
    new = [json.loads((p / "config.json").read_text()) for p in ended(runs) if p.name not in before]
    of_seed_0 = [run["width"] for run in new if run["seed"] == 0]  # three sizes are judged, for which seeds may be added
    assert len(of_seed_0) >= 6 and set(of_seed_0) == {96}
    after = snapshot(runs)
    assert {k: v for k, v in after.items() if k.split("/")[0] in before and k != "."} == {
        k: v for k, v in before.items() if k != "."
    }


# --- 2: killed --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(unbroken, tmp_path):
    """kill -9 before the first result and after the k-th, of the launcher, of all, of the workers first: nothing is lost,
    nothing is trained twice, the bytes are those of the unbroken sweep, and orphaned workers go by themselves."""
    runs, total = tmp_path / "runs", len(ended(unbroken.runs))
    kept: dict[Path, dict] = {}
    kills = [(0, False), (1, False), (5, True)]
    for results, with_workers in kills:
        launch = Launch(tmp_path, [*SWEEP, f"cluster.workers={1 + with_workers}"])
        until(lambda k=results: len(ended(runs)) >= k if k else launch.workers(), f"{results} results")  # noqa: B023
        launch.kill(*(launch.workers() if with_workers else []))
        until_gone(tmp_path)
        assert results <= len(ended(runs)) < total, "killed too late to mean anything"
        assert all(snapshot(p) == was for p, was in kept.items())
        kept |= {p: snapshot(p) for p in ended(runs) if p not in kept}
    last = Launch(tmp_path, SWEEP)
    assert last.wait() == 0, last.err
    assert f" {len(kept)} done" in last.out.splitlines()[0] and len(re.findall(r": loss ", last.out)) == total - len(kept)
    assert contents(runs) == contents(unbroken.runs)
    assert all(snapshot(p) == was for p, was in kept.items())
    begun = [len(list(p.glob("attempts/*"))) for p in ended(runs)]
    assert sum(begun) <= total + 2 * len(kills)  # at most the two runs that each kill broke were begun again


@pytest.mark.slow
def test_killed_in_the_middle_of_a_run_it_resumes_at_its_checkpoint(slow, tmp_path):
    """An orphan stops and saves; a killed worker leaves rows beyond its checkpoint, which the next one forgets."""
    runs = tmp_path / "runs"
    launch = Launch(tmp_path, SLOW)
    mid_run(tmp_path, launch)
    launch.kill()
    until_gone(tmp_path)
    (run,) = runs.iterdir()
    orphaned = newest_checkpoint(run)
    assert not ended(runs) and 0 < orphaned == steps_done(run) < 400, "the orphan trained on, or did not save"

    launch = Launch(tmp_path, SLOW)
    mid_run(tmp_path, launch, orphaned)
    workers = launch.workers()
    until(lambda: steps_done(run) > newest_checkpoint(run), "rows beyond the checkpoint")
    launch.kill(*workers)
    until_gone(tmp_path)
    saved = newest_checkpoint(run)
    assert not ended(runs) and orphaned < saved <= steps_done(run) < 400

    last = Launch(tmp_path, SLOW)
    rows = math.inf
    while last.process.poll() is None:  # a run from the start would pass through fewer rows than the checkpoint has
        rows = min(rows, steps_done(run))
        time.sleep(0.002)
    assert last.wait() == 0, last.err
    assert contents(runs) == slow and rows >= saved
    assert attempts(run) == 3 and not list(run.glob("ckpt/*.pt"))


# --- 3: two at once ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_launches_at_once_share_the_work(unbroken, tmp_path):
    """Whichever is first is held up until the other has its first result, so that the two are surely at work at once."""
    runs = tmp_path / "runs"

    def owners() -> set[int]:
        return {json.loads((p / "attempts/1/owner.json").read_text())["pid"] for p in ended(runs)}

    both = [Launch(tmp_path, SWEEP) for _ in range(2)]
    first = until(owners, "a result")
    ahead = next((launch for launch in both if first & set(launch.workers())), None)
    assert ahead is not None, "one launch has ended before the other began"
    os.kill(ahead.process.pid, signal.SIGSTOP)
    until(lambda: len(owners()) == 2, "a result of the other")
    os.kill(ahead.process.pid, signal.SIGCONT)
    assert [launch.wait() for launch in both] == [0, 0], [launch.err for launch in both]
    assert contents(runs) == contents(unbroken.runs)
    assert {attempts(p) for p in ended(runs)} == {1} and len(owners()) == 2
    assert all(re.search(rf"^All {len(ended(runs))} \w+ done", launch.out, re.M) for launch in both)


# --- 4: Ctrl-C --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_stops_at_the_next_step_and_the_same_command_goes_on(slow, tmp_path):
    """SIGINT to the launcher alone, and ^C on a terminal, which goes to the whole group; the live view ends in good order."""
    runs, past = tmp_path / "runs", 0
    for start, send in (
        (Launch, lambda launch: os.kill(launch.process.pid, signal.SIGINT)),
        (OnTerminal, lambda launch: launch.type(b"\x03")),
    ):
        launch = start(tmp_path, SLOW)
        mid_run(tmp_path, launch, past)
        workers = launch.workers()
        if start is OnTerminal:
            until(lambda at=launch: re.search(r" \d+/400 +\d\.\d+", at.out), "a step and its loss on the screen")
        send(launch)
        assert launch.wait() == 130
        assert not [pid for pid in workers if process_start(pid)], "the launch ended before its workers"
        said = launch.out.rstrip().splitlines()[-1].removeprefix(SHOW_CURSOR)
        assert re.match(r"Stopped\b.*\b0 \w+ done\b.*: python launch\.py slow ", said)
        assert "Traceback" not in launch.out + launch.err and "died" not in launch.out
        assert not ended(runs) and all(newest_checkpoint(p) == steps_done(p) for p in runs.iterdir()), "stopped without saving"
        past = max(newest_checkpoint(p) for p in runs.iterdir())
    assert "0 of 1 run done" in launch.out and "base width 32 depth 2 lr 2^-6 seed 0" in launch.out
    assert launch.out.rindex(SHOW_CURSOR) > launch.out.rindex(HIDE_CURSOR), "the cursor is not back"
    last = OnTerminal(tmp_path, SLOW)
    assert last.wait() == 0
    assert "1 of 1 run done" in last.out and "Next: python analyze.py" in last.out and "Traceback" not in last.out
    assert contents(runs) == slow and [attempts(p) for p in ended(runs)] == [3]


def test_a_stop_while_workers_start_is_quiet(tmp_path):
    """A terminal's SIGINT cannot harm a worker that has not come to ignore it yet: it is blocked from the first instant."""
    for send, stop in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
        launch = Launch(tmp_path, SHORT)
        worker = until(launch.workers, "a worker")[0]
        status = dict(line.split(":\t") for line in read(f"/proc/{worker}/status").decode().splitlines())
        assert (int(status["SigBlk"], 16) | int(status["SigIgn"], 16)) & 1 << signal.SIGINT - 1
        send(launch.process.pid, stop)
        assert launch.wait() == 130
        assert launch.err == "" and "died" not in launch.out


# --- 5: workers that die ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(slow, tmp_path):
    runs = tmp_path / "runs"
    launch = Launch(tmp_path, SLOW)
    mid_run(tmp_path, launch)
    (victim,) = launch.workers()
    kill(victim)
    assert launch.wait() == 0, launch.err
    assert contents(runs) == slow
    assert launch.out.count("its worker died (exit code -9)") == 1
    owners = [json.loads(p.read_text())["pid"] for p in sorted(runs.glob("*/attempts/*/owner.json"))]
    assert len(owners) == 2 and owners[0] == victim != owners[1]


def test_a_run_that_kills_its_workers_is_given_up(tmp_path):
    launch, saved = Launch(tmp_path, SLOW), 0
    for _ in range(3):
        mid_run(tmp_path, launch, saved)
        (victim,) = launch.workers()
        kill(victim)
        saved = max(newest_checkpoint(path) for path in (tmp_path / "runs").glob("*"))
    assert launch.wait() == 1
    assert "1 of 1 " in launch.err and "its worker died 3 times, last with exit code -9" in launch.err


def test_where_no_worker_can_begin_the_machine_is_blamed(tmp_path):
    launch = Launch(tmp_path, [*SHORT, "sweep.lr=[-6]"])
    killed: set[int] = set()
    while launch.process.poll() is None:
        for pid in set(launch.workers()) - killed:
            kill(pid)
            killed.add(pid)
        time.sleep(0.003)
    assert launch.wait() == 1 and len(killed) == 3
    assert "no worker can begin on " in launch.err and "exit code -9 while it began" in launch.err


# --- 6: what cannot be trained ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_harms_no_other(unbroken, tmp_path):
    """Its norms.jsonl cannot be written. The others are trained; with the obstacle away the same command goes on."""
    config = load_config(SHORT)
    bad, good = make_plan(open_sweep(config), lambda p: None).runs
    runs = tmp_path / "runs"
    obstacle = runs / bad.run_id / "norms.jsonl"
    obstacle.mkdir(parents=True)
    launch = Launch(tmp_path, SHORT)
    assert launch.wait() == 1
    assert "1 of 2 " in launch.err and f"{runs}/{bad.run_id}: IsADirectoryError" in launch.err
    assert "FAILED, IsADirectoryError" in launch.out
    assert "Traceback" not in launch.out + launch.err and "Traceback" in (runs / bad.run_id / "error.txt").read_text()
    assert [p.name for p in ended(runs)] == [good.run_id]
    obstacle.rmdir()
    before = snapshot(runs / good.run_id)
    launch = Launch(tmp_path, SHORT)
    assert launch.wait() == 0, launch.err
    whole = contents(unbroken.runs)
    assert contents(runs) == {name: whole[name] for name in (bad.run_id, good.run_id)}
    assert snapshot(runs / good.run_id) == before


def test_a_config_edited_by_hand_is_named_and_its_run_counts_as_missing(tmp_path, call, undraw, caplog):
    undraw()
    runs = tmp_path / "runs"
    for run in planned(SHORT):
        finish(run, runs)
    config = ended(runs)[0] / "config.json"
    edits = {
        config.read_text().replace('"seed": 0', '"seed": 1'): "was edited after the run began; restore it, or move the folder",
        "{": "not JSON; restore it, or move the folder away",
    }
    for text, message in edits.items():
        config.write_text(text)
        before = snapshot(runs)
        for script, words, said in (("launch.py", ["action=plan"], "1 done, 1 to do"), ("analyze.py", [], "1 run to do")):
            caplog.clear()
            code, out, _ = call(script, [*SHORT, *words])
            assert code == 0 and said in out
            assert len(caplog.messages) == 1 and str(config) in caplog.text and message in caplog.text
        assert snapshot(runs) == before


@pytest.mark.parametrize("where, code", [("runs", 2), ("run", 0)])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path, call, caplog, where, code):
    """In the way of one run's it is that run's matter."""
    bad = planned(SHORT)[0]
    path = tmp_path / "runs" if where == "runs" else tmp_path / "runs" / bad.run_id
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    found, _, err = call("launch.py", [*SHORT, "action=plan"])
    assert found == code and f"{path} is a file where a folder should be" in err + caplog.text
    assert len((err + caplog.text).splitlines()) == 1 and path.read_text() == "mine"


# --- 7: disk full -----------------------------------------------------------------------------------------------------

HOOK = """
import errno, os
real, calls = os.fsync, iter(range(10**9))
def fsync(fd):
    if os.path.exists({full!r}) and next(calls) >= 20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(fd)
os.fsync = fsync
"""


def tmpfs(path: Path, size: str, *options: str) -> bool:
    """Mount, or with 'remount' resize, a tmpfs; False where this is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs", str(path)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["tmpfs", "hook"])
def test_a_full_disk_fails_clearly_and_with_room_the_same_command_completes(unbroken, tmp_path, disk):
    """On a real full disk; where mounting is not permitted, and everywhere once more, every write fails after the 20th."""
    runs, full = tmp_path / "runs", tmp_path / "full"
    runs.mkdir()
    mounted = disk == "tmpfs" and tmpfs(runs, "256k")
    try:
        if not mounted:
            (tmp_path / "hook").mkdir()
            (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.format(full=str(full)))
            full.touch()
        env = {} if mounted else {"PYTHONPATH": f"{tmp_path / 'hook'}:{os.environ.get('PYTHONPATH', '')}"}
        launch = Launch(tmp_path, SWEEP, env=env)
        assert launch.wait() == 1
        failed = re.findall(rf"^  {runs}/(\w+): OSError: \[Errno {errno.ENOSPC}\] No space left on device", launch.err, re.M)
        assert failed and f"{len(failed)} of " in launch.err and "Traceback" not in launch.err
        done = ended(runs)
        assert done and not {p.name for p in done} & set(failed)
        before = {p: snapshot(p) for p in done}
        if mounted:
            assert tmpfs(runs, "64m", "remount")
        full.unlink(missing_ok=True)
        launch = Launch(tmp_path, SWEEP, env=env)
        assert launch.wait() == 0, launch.err
        assert contents(runs) == contents(unbroken.runs)
        assert all(snapshot(p) == was for p, was in before.items())
        assert not list(runs.rglob("new.*")) and not [p for p in runs.rglob(".*")]
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(runs)], check=True)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_claim_that_finds_the_disk_full_says_so_and_leaves_nothing(tmp_path, monkeypatch, call):
    """It is no 'held by another process', which a launcher would wait for."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = RunFolder(tmp_path, "r")
    with monkeypatch.context() as m:
        m.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            folder.claim()
    assert not list((tmp_path / "r" / "attempts").iterdir())
    folder.claim()
    folder.check_claim()


# --- 8: Weights & Biases ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_is_a_mirror_and_no_more(unbroken, tmp_path):
    """Offline: a folder a run. Online without a server: training does not notice, and the launch ends. No key on disk."""
    key = "0123456789abcdef" * 2 + "01234567"
    folders = {mode: tmp_path / mode for mode in ("offline", "online")}
    for folder in folders.values():
        folder.mkdir()
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": key}
    launches = {
        mode: Launch(folder, [*SHORT, f"wandb.mode={mode}"], env=env | {"WANDB_DIR": str(folder), MARK: str(tmp_path)})
        for mode, folder in folders.items()
    }
    assert {mode: launch.wait() for mode, launch in launches.items()} == {"offline": 0, "online": 0}
    until_gone(tmp_path)
    whole = contents(unbroken.runs)
    for mode, folder in folders.items():
        trained = contents(folder / "runs")
        assert len(trained) == 2 and trained == {name: whole[name] for name in trained}, mode
        assert not any(key.encode() in p.read_bytes() for p in (folder / "runs").rglob("*") if p.is_file())
        assert key not in launches[mode].out + launches[mode].err
        assert "Traceback" not in launches[mode].out + launches[mode].err
    mirrored = [p.name.rpartition("-")[2] for p in folders["offline"].glob("wandb/offline-run-*")]
    assert sorted(mirrored) == sorted(p.name for p in ended(folders["offline"] / "runs"))
    assert "W&B" not in launches["offline"].err
    assert re.search(r"WARNING \w{16} W&B cannot be reached", launches["online"].err)


# --- 9: analyze ------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys, tmp_path):
    """Function of a script, overrides and flags to (exit code, stdout, stderr), run in this process."""

    def run(script: str, argv: list[str], *flags: str) -> tuple[int, str, str]:
        paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.results={tmp_path / 'results'}"]
        code = runpy.run_path(str(ROOT / script))["main"]([*argv, *paths, *flags])
        return code, *capsys.readouterr()

    return run


def synthetic(tmp_path: Path, argv: list[str], real: dict, best: Callable[[str, int], float]) -> None:
    """A finished sweep of parabolas with these optima, without training and without norms, its results like a real one."""
    for run in make_plan(open_sweep(load_config(argv)), lambda p: None).runs:
        folder = RunFolder(tmp_path / "runs", run.run_id)
        folder.write_config(run.to_json())
        folder.claim()
        folder.append("norms.jsonl", [])
        octaves = run.log2_lr - best(run.curve.rule, run.curve.width)
        folder.finish(real | {"val_loss": 3 + 0.01 * octaves**2 - 0.1 * math.log2(run.curve.width)})


@pytest.mark.slow
def test_analyze_judges_draws_and_says_the_same_again(unbroken, tmp_path, call, undraw, caplog):
    runs = copy_of(unbroken, tmp_path)
    trained, results = snapshot(runs), tmp_path / "results" / "tiny"
    script = Launch(tmp_path, SWEEP, script="analyze.py")
    assert script.wait() == 0 and script.err == ""
    for rule in ("spectral", "standard"):
        assert re.search(rf"^{rule} +(transfers|drifts|undecided) +[+-]\d", script.out, re.M)
    names = {"lr_transfer.pdf", "lr_transfer.svg", "lr_transfer.png", "curves.csv", "optima.csv", "verdicts.json"}
    first = {p.name: p.read_bytes() for p in results.iterdir()}
    assert names <= set(first) and all(first.values())
    curves = make_plan(
        open_sweep(load_config(SWEEP)), result_reader(runs)
    ).curves  # runs of the base size are in one of each rule
    assert len(first["curves.csv"].splitlines()) == 1 + sum(map(len, curves.values())) > 1 + len(ended(runs))

    code, out, err = call("analyze.py", SWEEP)
    assert (code, out, err) == (0, script.out, "")
    assert {p.name: p.read_bytes() for p in results.iterdir()} == first
    assert [v["verdict"] for v in json.loads(first["verdicts.json"])["verdicts"]] == ["undecided"] * 2  # of two widths
    assert call("analyze.py", SWEEP, "--check")[0] == 5
    assert snapshot(runs) == trained

    undraw()
    at = json.loads(first["verdicts.json"])["verdicts"][0]["features"]["log2_lr"]
    judged = next(run for of_curve in curves.values() for run in of_curve if run.log2_lr == at)  # norms of others are not read
    for name in ("metrics.jsonl", "norms.jsonl"):  # as a kill leaves them
        path = runs / judged.run_id / name
        path.write_bytes(path.read_bytes()[:-20])
    assert call("analyze.py", SWEEP)[0] == 0
    path.write_bytes(b'{"step": \n' + path.read_bytes())
    assert call("analyze.py", SWEEP)[0] == 0 and f"{path}, line 1: no row of JSON" in caplog.text


@pytest.mark.parametrize("rule, drift, code", [("none", 0, 0), ("standard", -1, 0), ("spectral", -1, 5)])
def test_check_is_5_unless_all_but_the_controls_transfer(unbroken, tmp_path, call, undraw, rule, drift, code):
    undraw()
    lrs = [-9.5 + i / 2 for i in range(12)]
    argv = [*SWEEP, "sweep.width=[32,64,128]", f"sweep.lr={lrs}", "lr.adaptive=false"]
    real = json.loads((ended(unbroken.runs)[0] / "result.json").read_text())
    synthetic(tmp_path, argv, real, lambda r, width: -5.8 + (drift * math.log2(width / 32) if r == rule else 0))
    assert call("analyze.py", argv)[0] == 0
    assert call("analyze.py", argv, "--check")[0] == code
    said = json.loads((tmp_path / "results" / "tiny" / "verdicts.json").read_text())["verdicts"]
    assert {v["rule"]: v["verdict"] for v in said} == {
        r: "drifts" if r == rule else "transfers" for r in ("spectral", "standard")
    }
    next(iter((tmp_path / "runs").glob("*/result.json"))).unlink()
    status, out, _ = call("analyze.py", argv, "--check")
    assert status == 5 and re.search(r"^Not finished: 1 run .*: python launch\.py tiny paths", out, re.M)


def test_analyze_of_nothing_names_the_command_that_trains(tmp_path, call):
    code, out, err = call("analyze.py", SWEEP)
    assert code == 2 and "train first: python launch.py data=pydoc" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists() and not (tmp_path / "runs").exists()
