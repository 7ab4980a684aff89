"""The wording of every command, whole, on cases that are the same everywhere. Only these files pin prose."""

import io
import itertools

import pytest
from support.cli import call, finish, planned, transcript
from support.golden import GOLDEN, check_golden
from support.runs import TINY

from spectral_mup.cluster.slurm.doctor import GOOD, KNOW, LOOK, WRONG, Finding
from spectral_mup.runs.run_folder import RunFolder

TRACEBACK = "Traceback (most recent call last):\n  …\nIsADirectoryError: [Errno 21] Is a directory: 'norms.jsonl'\n"


@pytest.fixture
def argv(tmp_path, monkeypatch):
    """Overrides of a tiny sweep over a text of our own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spectral_mup.util.gpus.ask_nvidia_smi", lambda: "")
    (tmp_path / "book.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    paths = [f"paths.{key}={tmp_path / key}" for key in ("runs", "results", "jobs")]
    return [*TINY[1:], "data=text", "data.path=book.txt", "rule=[spectral,standard]", "lr.adaptive=false", *paths]


@pytest.mark.parametrize("name, words", [("help", []), ("help_launch", ["launch"]), ("help_analyze", ["analyze"])])
def test_help(name, words):
    check_golden(name, transcript(*words, "--help"))


def test_plan(argv, tmp_path):
    runs = planned(argv)
    assert len(runs) == 9  # 3 lrs at width 32, which both rules share, and 3 of each at width 64
    finish(runs[0], tmp_path / "runs")
    check_golden("plan", transcript("launch", *argv, "action=plan"), tmp_path)
    for run in runs[1:]:
        finish(run, tmp_path / "runs")
    check_golden("plan_done", transcript("launch", *argv, "action=plan"), tmp_path)


def test_plan_of_a_search(argv, tmp_path):
    """What is to come of it: a guess of its time, or one from the runs that are done; on SLURM its hours."""
    search = [*argv, "lr.adaptive=true", "sweep.width=[32,64,128]"]
    first = transcript("launch", *search, "action=plan")
    for run in planned(search)[:2]:
        finish(run, tmp_path / "runs")
        RunFolder(tmp_path / "runs", run.run_id).write("timing.json", {"seconds": 60.0, "steps": 12, "device": "cpu"})
    on_slurm = transcript("launch", *search, "action=plan", "cluster=slurm", "cluster.gpus=0")
    check_golden("plan_search", first + transcript("launch", *search, "action=plan") + on_slurm, tmp_path)


def test_plan_on_slurm(argv, tmp_path, monkeypatch):
    monkeypatch.setattr("spectral_mup.cluster.slurm_commands.max_array_size", lambda: 4)
    for run in planned(argv)[:3]:
        finish(run, tmp_path / "runs")
    check_golden("plan_slurm", transcript("launch", *argv, "action=plan", "cluster=slurm"), tmp_path)


def test_submission_is_refused_without_a_terminal(argv, tmp_path, monkeypatch):
    monkeypatch.setattr("spectral_mup.cluster.slurm_commands.max_array_size", lambda: 4)
    monkeypatch.setattr("spectral_mup.cli.slurm_launch.check_script", lambda *_: None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    check_golden("run_slurm", transcript("launch", *argv, "cluster=slurm"), tmp_path)


@pytest.mark.parametrize("failed", [{}, {"0123456789abcdef": "IsADirectoryError: norms.jsonl"}], ids=["", "failed"])
def test_run(argv, tmp_path, monkeypatch, failed):
    """What a launch says before and after the training, which is left out here."""

    def run_local(config, todo, on_event, should_stop, machine):
        for run in todo()[len(failed) :]:
            finish(run, tmp_path / "runs")
        return failed

    monkeypatch.setattr("spectral_mup.cluster.local.run_local", run_local)
    check_golden("run_failed" if failed else "run", transcript("launch", *argv), tmp_path)


def test_explain(argv, tmp_path):
    check_golden("explain", transcript("launch", *argv, "action=explain"), tmp_path)
    check_golden("explain_one", transcript("launch", *argv, "action=explain", "rule=[spectral]"), tmp_path)


@pytest.fixture
def eventful(argv, tmp_path):
    """The sweep with a run that is done, one that diverged, two that failed and the rest to do."""
    done, diverged, *failed = planned(argv)[:4]
    finish(done, tmp_path / "runs")
    finish(diverged, tmp_path / "runs", status="diverged", diverged_step=7, val_loss=None)
    for run in failed:
        RunFolder(tmp_path / "runs", run.run_id).path.mkdir()
        RunFolder(tmp_path / "runs", run.run_id).write_error(TRACEBACK)
    return argv


@pytest.mark.parametrize("action", ["status", "why", "logs", "cancel"])
def test_actions_on_runs(eventful, tmp_path, action):
    check_golden(action, transcript("launch", *eventful, f"action={action}"), tmp_path)


def test_retry_of_nothing_and_of_an_unknown_cause(argv, tmp_path):
    text = transcript("launch", *argv, "action=retry") + transcript("launch", *argv, "action=retry", "cause=bad luck")
    check_golden("retry", text, tmp_path)


def test_doctor(tmp_path, monkeypatch):
    findings = [
        Finding(GOOD, "sbatch", "/usr/bin/sbatch"), Finding(KNOW, "MaxArraySize", "1001"), Finding(LOOK, "GPU", "no answer"),
        Finding(WRONG, "controller", "no answer"),
    ]  # fmt: skip
    monkeypatch.setattr("spectral_mup.cli.actions.states.examine", lambda config: findings)
    check_golden("doctor", transcript("launch", "action=doctor"))


def test_prepare(argv, tmp_path):
    (tmp_path / "stories.jsonl").write_text("".join(f'{{"text": "Story {i} of many."}}\n' for i in range(400)))
    words = ["action=prepare", "prepare.input=stories.jsonl", f"prepare.out={tmp_path / 'tokens'}"]
    check_golden("prepare", transcript("launch", *words), tmp_path)


def test_derive(argv, tmp_path, monkeypatch):
    """On directions that grow as those of Adam, made up here."""
    grows = {"hidden (m, m)": (1, 1), "embedding (m, 1)": (1, 0), "readout (1, m)": (0, 1), "vector (m, 1)": (1, 0)}
    rows = []
    scales = [(1.0, 1.0), (16.0, 1.0), (1.0, 8.0)]  # of the loss, of the init
    for (loss, init), width, (label, (out, fan_in)) in itertools.product(scales, (64, 128, 256, 512), grows.items()):
        m, kind = width / 64, label.partition(" ")[0]
        ratios = {"m_out": m**out, "m_in": m**fan_in, "m_max": m, "m_aspect": 1.0, "a": 1.0, "s": 1.0}
        ratios["c"] = 1 / m if kind == "readout" else 1.0
        row = {"width": width, "seed": 0, "loss_scale": loss, "init_scale": init, "tensor": label, "kind": kind, "label": label}
        row |= {"algorithm": "adamw", "ratios": ratios, "direction": m ** ((out + fan_in) / 2), "lr": 0.01}
        rows += [
            row | {"step": step}
            for step in range(1, 13)
            if loss == init == 1 or width == 64 and (init == 1 or kind != "vector")
        ]
    monkeypatch.setattr("spectral_mup.measure.derive.measure_family", lambda *_, **__: rows)
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda *_: None)
    check_golden("derive", transcript("launch", *argv, "action=derive"), tmp_path)
    assert (tmp_path / "conf/rule/derived/adamw.yaml").read_text().startswith(("#", "source"))


def test_analyze(argv, tmp_path, undraw):
    undraw()
    wide = [*argv, "sweep.width=[32,64,128]", f"sweep.lr={[-9 + i / 2 for i in range(11)]}"]
    for run in planned(wide):
        finish(run, tmp_path / "runs", lambda rule, width: -6.4 - (rule == "standard") * (width > 32) * (width // 64))
    check_golden("analyze", transcript("analyze", *wide), tmp_path)


def test_analyze_of_nothing(argv, tmp_path):
    check_golden("analyze_nothing", transcript("analyze", *argv), tmp_path)


def test_recipe(argv, tmp_path, undraw):
    """With optima that lie off the line, so that no interval is as narrow as rounding."""
    undraw()
    wide = [*argv, "sweep.width=[32,64,128]", f"sweep.lr={[-9 + i / 2 for i in range(11)]}"]
    off = {32: -6.4, 64: -6.37, 128: -6.42}
    for run in planned(wide):
        finish(run, tmp_path / "runs", lambda rule, width: off[width] - (rule == "standard") * (width // 64))
    assert call("analyze", *wide)[0] == 0
    check_golden("recipe", transcript("launch", *wide, "action=recipe", "target.width=1024", "target.depth=8"), tmp_path)


def test_init(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_golden("init", transcript("init", "demo") + transcript("init", "demo"))


def test_another_wording_is_seen(monkeypatch):
    monkeypatch.delenv("RENEW_GOLDEN", raising=False)
    with pytest.raises(AssertionError, match="another wording"):
        check_golden("doctor", (GOLDEN / "doctor.txt").read_text() + ".")
