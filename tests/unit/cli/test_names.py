"""Laws of names: a name resumes its sweep as it was launched; results are not overwritten by those of another config."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from support.cli import call, finish, planned
from support.runs import TINY

from spectral_mup.cli.context import Context, command
from spectral_mup.cli.names import context_of, keep_name
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import prepare, take
from spectral_mup.config.compose import load_config
from spectral_mup.runs.sweep_record import FILE, read_record, recorded_names
from spectral_mup.tracking.push import Counts
from spectral_mup.util.text import COLUMNS

TRAINING = "spectral_mup.cli.actions.train.train_here"


@pytest.fixture
def argv(tmp_path, monkeypatch, undraw):
    """Words of a small sweep, in a folder of its own whose results/ and runs/ are the usual ones; nothing is drawn."""
    undraw()
    monkeypatch.chdir(tmp_path)
    return [*TINY, "lr.adaptive=false", "rule=[spectral]"]


@pytest.fixture
def trained(argv, tmp_path):
    """The same, launched and done."""
    done(argv)
    keep_name(Context(load_config(argv), argv))
    return argv


def done(argv):
    """Finish the runs of a sweep that are not."""
    for run in planned(argv):
        if not Path("runs", run.run_id, "result.json").exists():
            finish(run, Path("runs"))


def refused(*words):
    code, out, err = call(*words)
    assert (code, out) == (3, ""), (code, out, err)
    return err


def launch(*words):
    """What a launch says before it would train."""
    return call("launch", *words, "action=plan")


# --- a launch records, a name resumes -----------------------------------------------------------------------------------


def test_a_launch_records_its_words_and_its_config_once_it_trains(argv, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "spectral_mup.cluster.local.run_local", lambda *_: seen.append(recorded_names(tmp_path / "results")) or {}
    )
    call("launch", *argv, "action=plan", "yes")
    assert not (tmp_path / "results").exists()  # a plan claims nothing
    call("launch", *argv, "yes")
    record = read_record(tmp_path / "results", "tiny")
    assert seen == [["tiny"]] and record.words == argv  # without the words about that one command
    assert record.config["train"]["steps"] == 12 and [*record.config["rule"]] == ["spectral"]


def test_a_name_alone_is_all_of_its_words(trained):
    assert launch("tiny") == launch(*trained) == launch("results/tiny/")
    code, out, _ = call("analyze", "tiny")
    assert code == 0 and "spectral" in out
    found = json.loads(Path("results/tiny/verdicts.json").read_text())
    assert found["command"] == command("spectral-mup analyze", trained)  # whole: it is read elsewhere
    assert call("analyze", *trained) == (code, out, "")


def test_a_folder_of_results_that_was_renamed_is_the_sweep_of_its_new_name(trained, tmp_path):
    Path("results/tiny").rename("results/moved")
    code, out, err = launch("moved")
    assert (code, err) == (0, "") and out.startswith("moved: 6 runs: 6 done")
    assert out.endswith(" sweep.name=moved\n")  # the next command
    assert launch("moved", "sweep.name=copy")[1].startswith("copy: ")


def test_a_name_tunes_two_keys_in_the_order_of_its_launch(trained):
    """So does a task on SLURM that submits what follows."""
    words = [*trained, "lr.adaptive=true", "sweep.tune=[optimizer.adamw.lr,lr]", "sweep.name=turns"]
    context = context_of(words, "{}")
    keep_name(context)
    submission = take(prepare(Path("jobs"), snapshot_config(context.config), [], "", "code"), 1, lambda _: "")
    for config in (context_of(["turns"], "{}").config, submission.config()):
        assert [*config.sweep.tune] == ["optimizer.adamw.lr", "lr"]


def test_the_words_that_decide_nothing_may_be_added(trained):
    for word in ("cluster.workers=1", "wandb.mode=offline", "figures.width=5", "train.devices=2"):
        assert "6 done, 0 to do" in launch("tiny", word)[1]
        assert context_of(["tiny", word], "{}").config.model_dump() != context_of(["tiny"], "{}").config.model_dump()


def test_a_name_resumes_though_a_file_has_changed_since(argv, tmp_path):
    """What the words make now is another sweep; the name stands for the config that was launched."""
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps" / "mine.yaml"
    file.write_text("defaults: [default]\ntrain: {eval_sequences: 8}\n")
    words = [*argv[:-3], "lr.adaptive=false", "rule=[spectral]", "sweep=mine"]
    words = [word for word in words if not word.startswith(("sweep.name", "train.eval_sequences"))]
    done(words)
    keep_name(Context(load_config(words), words))
    file.write_text(file.read_text().replace("8", "4"))
    assert "6 done, 0 to do" in launch("mine")[1] and "0 done, 6 to do" in launch(*words)[1]
    assert "train.eval_sequences: 8 → 4" in refused("launch", *words)
    with_new = [*words, "yes"]
    keep_name(context_of(with_new, "{}"))
    assert "0 done, 6 to do" in launch("mine")[1]


def test_a_name_of_several_folders_and_of_an_interpolation(argv, tmp_path):
    words = [word for word in argv if not word.startswith("sweep.name")] + ["sweep=mini/depth", "sweep.depth=[2]"]
    keep_name(Context(load_config(words), words))
    assert recorded_names(tmp_path / "results") == ["mini/depth/adamw"]
    assert launch("mini/depth/adamw")[0] == 0
    other = context_of(["mini/depth/adamw", "optimizer=muon"], "{}")
    assert other.config.sweep.name == "mini/depth/muon"  # another name, so nothing is refused
    keep_name(other)
    assert recorded_names(tmp_path / "results") == ["mini/depth/adamw", "mini/depth/muon"]
    assert context_of(["mini/depth", *words[:-2], "sweep.depth=[2]"], "{}").config == load_config(words)  # a file of sweeps/


def test_the_next_command_is_the_name_once_it_is_recorded(trained, argv):
    context = context_of([*argv, "cluster.workers=1"], "spectral-mup {}")
    assert context.analyze_command() == "spectral-mup analyze tiny cluster.workers=1"
    assert context_of(["tiny"], "spectral-mup {}").launch_command("status") == "spectral-mup launch tiny action=status"
    other = context_of([*argv, "train.steps=13"], "spectral-mup {}")
    assert other.launch_command() == command("spectral-mup launch", [*argv, "train.steps=13"])  # the name is not this sweep
    elsewhere = [*argv, "paths.results=elsewhere"]
    keep_name(context_of(elsewhere, "{}"))
    assert context_of(elsewhere, "{}").launch_command() == "launch tiny paths.results=elsewhere"
    assert call("launch", "tiny", "paths.results=elsewhere", "action=plan")[0] == 0


# --- a name used again --------------------------------------------------------------------------------------------------


def test_another_config_under_a_used_name_is_refused_with_the_keys_and_the_ways_on(trained):
    other = [word for word in trained if not word.startswith(("train.steps", "sweep.seed"))]
    other += ["train.steps=13", "sweep.seed=[0,1]"]
    err = refused("launch", *other)
    assert err.splitlines() == [
        "refused: tiny was launched with another config, and results/tiny holds its results:",
        "  train.steps: 12 → 13",
        "  sweep.seed: [0] → [0,1]",
        "To resume it as it was launched: spectral-mup launch tiny",
        "To keep both: add sweep.name=OTHER",
        "To change tiny: add yes=true; no run is lost, and none that both have is trained again",
    ]
    assert err == refused("analyze", *other).replace("analyze tiny", "launch tiny")
    assert call("launch", *trained)[0] == 0  # the recorded words
    assert call("launch", *other, "sweep.name=other", "action=plan")[0] == 0


def test_yes_changes_what_a_name_stands_for(trained, tmp_path):
    more = "sweep.seed=[0,1]"
    assert "sweep.seed: [0] → [0,1]" in refused("launch", "tiny", more)
    context = context_of(["tiny", more, "yes"], "{}")
    keep_name(context)
    assert "12 runs: 6 done, 6 to do" in launch("tiny")[1]
    assert read_record(tmp_path / "results", "tiny").words == [*(w for w in trained if not w.startswith("sweep.seed")), more]


@pytest.mark.parametrize("word", ["cluster.workers=1", "paths.runs=elsewhere", "wandb.mode=offline", "sweep.width=[64,32]"])
def test_what_decides_nothing_is_no_other_config(trained, word):
    context = context_of([*(w for w in trained if w.partition("=")[0] != word.partition("=")[0]), word], "{}")
    keep_name(context)
    assert word in context.record.words  # the latest launch is what is resumed


def test_a_name_under_which_nothing_is_done_is_free(argv):
    keep_name(Context(load_config(argv), argv))
    other = [*argv, "train.steps=13"]
    keep_name(context_of(other, "{}"))
    assert context_of(["tiny"], "{}").config.train.steps == 13


def test_what_does_not_train_says_that_the_name_is_another_sweeps(trained):
    code, out, err = call("launch", *trained, "train.steps=13", "action=status")
    assert code == 0 and "6 planned" in out
    assert err.splitlines() == [
        "note: tiny was launched with another config; differing: train.steps",
        "note: as it was launched: spectral-mup launch tiny action=status",
    ]
    assert call("launch", *trained, "action=status")[2] == ""


def test_an_analysis_records_what_no_launch_did(argv, tmp_path):
    done(argv)
    assert call("analyze", *argv)[0] == 0 and read_record(tmp_path / "results", "tiny").words == argv
    assert call("analyze", *argv, "figures.width=5")[0] == 0
    assert read_record(tmp_path / "results", "tiny").words == argv  # how it is drawn is not how it is launched
    refused("analyze", *argv, "verdict.slope=0.5")
    assert call("analyze", "tiny", "verdict.slope=0.5", "yes")[0] == 0


DAMAGED = {
    "cut off": '{"words": ["a',
    "a list": "[]",
    "a word missing": '{"config": {}}',
    "a text": '{"words": "a", "config": {}}',
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named_and_nothing_is_done(trained, tmp_path, damage):
    (tmp_path / "results" / "tiny" / FILE).write_text(DAMAGED[damage])
    for words in (["launch", "tiny"], ["launch", *trained], ["analyze", *trained]):
        code, out, err = call(*words)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: results/tiny/{FILE}: "), err


# --- what is no name ----------------------------------------------------------------------------------------------------

WRONG = {
    ("launch", "foo"): "foo: no sweep of this name was launched into results, and sweeps/foo.yaml does not exist; ls",
    ("launch", "tinny"): "tinny: no sweep .*; did you mean tiny\\? ",
    ("analyze", "tinny"): "tinny: no sweep .*; did you mean tiny\\? ",
    ("launch", "smok"): "smok: no sweep .*; did you mean sweep=smoke\\? ",
    ("launch", "plan"): "plan: no sweep .*; did you mean action=plan\\? ",
    ("launch", "wach"): "wach: no sweep .*; did you mean watch\\? ",
    ("launch", "train.steps"): "train.steps: give it a value, as in train.steps=VALUE",
    ("launch", "../tiny"): "../tiny: no sweep of this name",
    ("launch", "tiny", "smoke"): "tiny smoke: give one sweep, and settings as KEY=VALUE",
    ("launch", "--chek"): "--chek: no such option; did you mean analyze --check\\? known: --help, --version",
    ("analyze", "--chek"): "--chek: no such option; did you mean --check\\? known: --check, --summary, --help, --version",
    ("launch", "--api-key=0123"): "--api-key: a credential must not be in a config",
    ("lunch",): "lunch: unknown command; did you mean launch\\? commands: launch, analyze, ls, init, --version, --help",
    ("launch", "figures.font=Comix"): "figures.font=Comix: matplotlib finds no such font",
    ("launch", "figures.style=nope"): "figures.style=nope: No such file",
    ("launch", "figures.only=[lr_transfr]"): "figures.only=lr_transfr: did you mean lr_transfer\\?",
    ("analyze", "figures.font=Comix"): "figures.font=Comix: matplotlib finds no such font",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_is_mistyped_is_answered_before_anything_is_read(trained, words, monkeypatch):
    monkeypatch.setattr("spectral_mup.cli.context.make_plan", lambda *_: pytest.fail("it was planned"))
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"error: {WRONG[words]}", err), err


def test_a_version_is_printed_wherever_it_is_asked_for():
    assert call("launch", "--version") == call("analyze", "--version") == call("--version")


# --- the list -----------------------------------------------------------------------------------------------------------


def test_the_list_of_none_says_how_to_begin(argv):
    assert call("ls") == (0, "No sweep was launched into results/ so far. Start with: spectral-mup launch sweep=smoke\n", "")
    assert call("launch", "ls") == call("ls") == call("launch", "action=ls")


def test_sweeps_are_listed_with_runs_and_verdicts_on_80_columns(trained, tmp_path, monkeypatch):
    long = "a_folder/of_a_sweep/whose_name_takes/most_of_the_line/of_a_terminal"
    words = [*trained, f"sweep.name={long}", "rule=[tensor_programs_v_table8,spectral]", "sweep.width=[32,64,128]"]
    done(words)
    assert call("analyze", *words)[0] == 0
    half = [*trained, "sweep.name=half", "sweep.lr=[-8,-6,-4,-2]"]
    keep_name(context_of(half, "{}"))
    now = time.time()
    monkeypatch.setattr("spectral_mup.cli.actions.sweeps.time.time", lambda: now + 300)
    for path in (tmp_path / "runs").iterdir():
        os.utime(path, (now, now))
    for path in (tmp_path / "results").rglob("*.json"):
        os.utime(path, (now, now))
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / FILE).write_text("{")
    code, out, err = call("ls")
    lines = out.splitlines()
    assert code == 0 and all(len(line) <= COLUMNS for line in lines) and lines[0].split()[:2] == ["sweep", "runs"]
    assert lines[1] == long and lines[2].split()[0] == "15/15" and lines[2].endswith(("transfers", "undecided"))
    assert lines[3].strip().startswith("spectral ")
    assert [line.split()[:5] for line in lines[4:]] == [["half", "6/8", "5", "min", "ago"], ["tiny", "6/6", "5", "min", "ago"]]
    assert all(line.endswith("not analysed") for line in lines[4:])
    assert err == f"note: broken: results/broken/{FILE}: not JSON; restore it, or move it away and launch with all words\n"
    (tmp_path / "book.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    gone = [word for word in half if not word.startswith(("data", "sweep.name"))]
    keep_name(context_of([*gone, "data=text", "data.path=book.txt", "sweep.name=gone"], "{}"))
    (tmp_path / "book.txt").unlink()
    code, out, err = call("ls")
    assert code == 0 and "note: gone: data.path: book.txt does not exist" in err
    assert out.splitlines()[1].split()[:2] == ["gone", "?"]
    pushed = next(p for p in (tmp_path / "runs").iterdir())
    os.utime(pushed, (now + 60, now + 60))  # as by wandb.json
    assert "have ended since" not in call("ls")[1]
    os.utime(pushed / "result.json", (now + 60, now + 60))
    marked = call("ls")[1]
    assert "* runs have ended since; analyze NAME judges again" in marked and "spectral transfers *" in marked.replace(
        "undecided", "transfers"
    )


def test_verdicts_over_every_axis_and_of_every_key_are_listed_and_pushed(trained, tmp_path, monkeypatch):
    words = [*trained, "sweep.depth=[2,3]", "sweep.tune=[lr,optimizer.adamw.lr]", "sweep.name=keys", "lr.adaptive=true"]
    context = context_of(words, "{}")
    keep_name(context)
    for part in ("", "depth", "optimizer.adamw.lr", "optimizer.adamw.lr/depth"):
        (context.folder / part).mkdir(parents=True, exist_ok=True)
        (context.folder / part / "verdicts.json").write_text('{"verdicts": [{"rule": "spectral", "verdict": "drifts"}]}')
    listed = [line.split("spectral drifts ")[1] for line in call("ls")[1].splitlines() if "drifts" in line]
    of = ("lr", "optimizer.adamw.lr")
    assert listed == [f"over {axis} of {key}" for key in of for axis in ("width", "depth")]
    told: list[list[str]] = []
    monkeypatch.setattr("spectral_mup.tracking.push.push", lambda *_: Counts())
    monkeypatch.setattr("spectral_mup.tracking.live.end_service", lambda: None)
    monkeypatch.setattr("spectral_mup.tracking.verdict.push_verdict", lambda folder, parts, *_: told.append(parts) or "")
    assert call("launch", *words, "action=wandb_push")[0] == 0
    assert told == [["depth", "optimizer.adamw.lr", "optimizer.adamw.lr/depth"]]
