"""What goes wrong becomes an exit code and one line; a bug keeps its traceback. The same commands in three forms."""

import errno
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import ROOT
from support.cli import call
from support.runs import TINY

import spectral_mup
from spectral_mup.cli.console import guard
from spectral_mup.cli.context import CONSOLE, MODULE, SCRIPTS, command
from spectral_mup.cli.streams import Output, as_text
from spectral_mup.cluster.slurm_commands import NoAnswer
from spectral_mup.data.shards import DataError
from spectral_mup.errors import ConfigError, RecordError, Refusal, Unanswered

EXPECTED = {
    ConfigError("train.steps=0: must be at least 1"): (2, "error: train.steps=0"),
    RecordError("runs/0: edited"): (2, "error: runs/0: edited"),
    DataError("data.path: missing"): (2, "error: data.path"),
    Refusal("held back"): (3, "refused: held back"),
    Unanswered("no answer"): (4, "error: no answer"),
    NoAnswer("no answer"): (4, "error: no answer"),
    OSError(28, "No space left on device", "runs"): (1, "error: runs: No space left on device; free space on"),
    PermissionError(13, "Permission denied", "runs"): (1, "error: runs: Permission denied; get the permission, or"),
    ConnectionRefusedError(111, "Connection refused"): (
        1,
        "error: ConnectionRefusedError: Connection refused; remove the cause",
    ),
    KeyboardInterrupt(): (130, ""),
}


@pytest.mark.parametrize("error", EXPECTED, ids=lambda e: type(e).__name__)
def test_expected_failures_are_one_line_and_an_exit_code(error, capsys):
    def run() -> int:
        raise error

    code, message = EXPECTED[error]
    assert guard(run) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == bool(message)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")], ids=lambda e: type(e).__name__
)
def test_a_bug_keeps_its_traceback(error):
    def run() -> int:
        raise error

    with pytest.raises(type(error), match="a bug"):
        guard(run)


def test_exit_codes_of_actions_pass_through():
    assert [guard(lambda code=code: code) for code in (0, 1, 5)] == [0, 1, 5]


def test_the_next_command_keeps_the_sweep_and_the_form_it_was_given_in():
    argv = ["sweep.width=[32,64]", "action=why", "run=0a", "watch=true", "yes=true", "cause=lost", "sweep.name=a b"]
    for program, start in (
        (SCRIPTS, "python launch.py"),
        (CONSOLE, "spectral-mup launch"),
        (MODULE, "python -m spectral_mup launch"),
    ):
        line = command(program.format("launch"), argv, "status")
        assert line.startswith(f"{start} ")
        assert shlex.split(line)[-3:] == ["sweep.width=[32,64]", "sweep.name=a b", "action=status"]
    assert command("spectral-mup launch", ["action=plan"]) == "spectral-mup launch"


FORMS = {
    "launch.py": (["launch.py"], "python analyze.py"),
    "python -m": (["-m", "spectral_mup", "launch"], "python -m spectral_mup analyze"),
    "spectral-mup": (
        ["-c", "import sys; from spectral_mup.cli.console import main; sys.exit(main())", "launch"],
        "spectral-mup analyze",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_three_forms_of_a_launch_name_the_next_command_in_the_same_form(form, tmp_path):
    """The next command is in the message of an analysis of nothing and of a launch; help says it without composing a config."""
    words, following = FORMS[form]
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"Then: {following} NAME" in done.stdout, done
    plan = [*words, *TINY, f"paths.runs={tmp_path}", "action=status"]
    done = subprocess.run([sys.executable, *plan], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"{following.replace('analyze', 'launch')} data=pydoc" in done.stdout, done


def test_console_words():
    assert call("--help") == call() == call("init", "--help") and call("--help")[0] == 0
    code, out, _ = call("--version")
    assert (code, out) == (0, f"{spectral_mup.__version__}\n")
    for words in (["lunch"], ["init"], ["init", "a", "b"], ["init", "--force"]):
        code, out, err = call(*words)
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


def test_watch_and_yes_may_be_bare_words(tmp_path):
    assert call("launch", *TINY, f"paths.runs={tmp_path}", "action=status", "watch", "yes")[0] == 0
    assert call("launch", *TINY, f"paths.runs={tmp_path}", "action=status", "look")[0] == 2  # the control


PRINTS = """
import sys
from spectral_mup.cli import console
console.launch = lambda *_: [print("×", i) for i in range(10**5)] and 5
sys.exit(console.main(["launch"]))
"""


@pytest.mark.parametrize(
    "after, code, out, err",
    [
        ("| head -1; exit ${PIPESTATUS[0]}", 5, "× 0\n", ""),
        (
            "2>&1 >/dev/full | cat; exit ${PIPESTATUS[0]}",
            5,
            "error: what was printed is not complete: No space left on device\n",
            "",
        ),
        (">&-", 5, "", ""),
    ],
    ids=["head", "a full disk", "closed"],
)
def test_what_cannot_be_printed_ends_no_work(after, code, out, err):
    """The work that prints 100,000 lines goes on to its end, which the exit code tells."""
    shell = f"{sys.executable} -c {shlex.quote(PRINTS)} {after}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def unwritable() -> Iterator[int]:
    """Descriptors of a pipe that nobody reads, of a full disk, and of a terminal that is gone."""
    reader, pipe = os.pipe()
    master, terminal = pty.openpty()
    os.close(reader)
    os.close(master)
    for descriptor in (pipe, os.open("/dev/full", os.O_WRONLY), terminal):
        yield descriptor
        os.close(descriptor)


def test_an_output_takes_what_is_printed_and_keeps_why_it_is_lost():
    found = []
    for descriptor in unwritable():
        output, usual = Output(descriptor, "w", closefd=False), open(descriptor, "w", closefd=False, buffering=1)
        stream = as_text(output, usual, "replace")
        for line in ("a", "b" * 10**6):
            print(line, file=stream)
        found.append(output.lost.errno)
        with pytest.raises(OSError):  # the control: a stream as Python opens it
            print("a", file=usual)
    assert found == [errno.EPIPE, errno.ENOSPC, errno.EIO]


@pytest.mark.parametrize("encoding, shown", [("latin-1", "width × learning-rate"), ("ascii", "width ? learning-rate")])
def test_help_is_printed_on_a_terminal_of_any_encoding(encoding, shown):
    command = [sys.executable, "-m", "spectral_mup", "launch", "--help"]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"") and shown in done.stdout.decode(encoding)
