"""One dict of actions: help, validation and dispatch follow it, and a user's own function needs no entry."""

import ast
import inspect
import multiprocessing
import os
import pkgutil
import signal
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.cli import call, planned
from support.runs import TINY, bury

import spectral_mup.cli
from spectral_mup.cli import actions, local_launch
from spectral_mup.cli.actions import ACTIONS, Action, states
from spectral_mup.cli.context import Context
from spectral_mup.cluster.worker import WORKER
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_folder import RunFolder

FOLDER = Path(spectral_mup.cli.__file__).parent


def is_action(function: object) -> bool:
    """A public function of a Context to an exit code, in a module of actions."""
    if not inspect.isfunction(function) or function.__name__.startswith("_"):
        return False
    hints = typing.get_type_hints(function)
    return hints == {"context": Context, "return": int} and function.__module__.startswith(f"{actions.__name__}.")


def test_every_function_of_a_context_to_an_exit_code_is_registered_under_its_name_and_in_the_help():
    modules = [pkgutil.resolve_name(f"{actions.__name__}.{module.name}") for module in pkgutil.iter_modules(actions.__path__)]
    functions = {name: f for module in modules for name, f in vars(module).items() if is_action(f)}
    assert functions == {name: action.run for name, action in ACTIONS.items()}
    shown = call("launch", "--help")[1]
    assert all(f"action={name} " in shown for name in functions)
    assert not is_action(call) and not is_action(Context.refresh)  # the controls


def test_only_the_dispatch_imports_actions():
    """So that no action knows another, and no circle can form."""
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("actions/*.py")]:
        modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        imported = [module for module in modules if module.startswith(actions.__name__)]
        assert not imported or path.name in ("__init__.py", "help.py", "console.py", "sweep.py"), f"{path} imports {imported}"
        assert "spectral_mup.cli.console" not in modules


def test_an_unknown_action_is_one_line_with_the_nearest_name():
    code, out, err = call("launch", *TINY, "action=plam")
    assert (code, out) == (2, "") and err.startswith("error: action=plam: ") and err.count("\n") == 1
    assert "plan" in err and all(name in err for name in ACTIONS)


OWN = """
from spectral_mup.cli.context import Context

def count(context: Context) -> int:
    print(len(context.plan.todo), context.config.sweep.name, context.launch_command("plan"))
    return 7
"""


def test_an_action_of_ones_own_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_actions.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = call("launch", *TINY, f"paths.runs={tmp_path / 'runs'}", "action=my_actions.count")
    assert (code, err) == (7, "") and out.startswith("3 tiny spectral-mup launch data=pydoc") and "action=plan\n" in out
    code, _, err = call("launch", *TINY, "action=my_actions.missing")
    assert code == 2 and "action=my_actions.missing: cannot be imported" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, action in ACTIONS.items() if action.needs == "slurm"])
def test_actions_that_need_slurm_are_refused_without(name):
    code, out, err = call("launch", *TINY, f"action={name}")
    assert (code, out) == (2, "") and "cluster=local" in err and "cluster=slurm" in err


def test_a_missing_corpus_stops_the_actions_that_need_a_sweep_before_they_print(tmp_path, monkeypatch):
    missing = ["data=text", f"data.path={tmp_path / 'none.txt'}"]
    for name, action in ACTIONS.items():
        if action.needs == "sweep":
            code, out, err = call("launch", *TINY[1:], *missing, f"action={name}")
            assert (code, out) == (2, "") and "none.txt" in err, name

    def without_corpus(context: Context) -> int:
        raise TypeError("called")

    monkeypatch.setitem(ACTIONS, "doctor", Action(without_corpus, "", "config"))  # the control
    with pytest.raises(TypeError, match="called"):
        call("launch", *TINY[1:], *missing, "action=doctor")


def test_a_context_plans_anew_only_when_refreshed(tiny):
    context = Context(tiny(), TINY)
    plan, report = context.plan, context.report
    assert context.plan is plan and context.report is report
    context.refresh()
    assert context.plan is not plan and context.report is not report and context.plan.runs == plan.runs


def test_status_and_why_say_how_far_a_run_came_how_fast_and_in_how_much_memory(tmp_path):
    argv, (running, failed, *_) = [*TINY, f"paths.runs={tmp_path}"], planned(TINY)
    speed = {"tokens_per_second": 18400.4, "memory": 1_240_000_000}
    for run in (running, failed):
        folder = RunFolder(tmp_path, run.run_id)
        folder.claim()
        now = {"step": 3, "steps": 12, "loss": 5.0, "began": 0, "started": 1000.0, "time": 1060.0}
        folder.write_status(now | speed)
    bury(folder)
    folder.write_error("Traceback (most recent call last):\nMemoryError")
    reached = "step 3/12, 18,400 tokens/s, 1.2 GB"
    assert f"seed 0, {reached}, about 3 min left" in call("launch", *argv, "action=status")[1]
    assert f"seed 0, out of memory, MemoryError, reached {reached}\n" in call("launch", *argv, "action=why")[1]


def test_status_is_shown_though_the_code_here_could_not_be_launched_now(monkeypatch):
    def refuse():
        raise ConfigError("x.py is a link")

    monkeypatch.setattr(states, "code_now", refuse)
    run = SimpleNamespace(name="queued", live=True, hold=None, submission=SimpleNamespace(code="abc.2"))
    report = SimpleNamespace(counts=dict, states={"r": run})
    context = SimpleNamespace(report=report, plan=SimpleNamespace(todo=[1]), later_curves=0)
    assert states._next(context) == ["code≠: x.py is a link"]
    monkeypatch.setattr(states, "code_now", lambda: ("abc", {}))
    assert states._next(context) == []
    monkeypatch.setattr(states, "code_now", lambda: ("abd", {}))
    assert states._next(context) == ["code≠: 1 unfinished run on a snapshot that differs from the current code"]


TWICE = [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("signals", TWICE)
def test_a_second_stop_kills_workers_that_do_not_end(signals):
    """The first one leaves them time to save. This worker heeds no signal that can be ignored."""
    fork = multiprocessing.get_context("fork").Process
    worker, own = (fork(target=wait_for_ever, name=name, daemon=True) for name in (WORKER, None))
    worker.start()
    own.start()
    with local_launch._stop_requests() as stopping:
        os.kill(os.getpid(), signals[0])
        assert stopping() and worker.is_alive()
        os.kill(os.getpid(), signals[1])
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
        with pytest.raises(KeyboardInterrupt):  # of what is done in this process, with no worker to kill
            os.kill(os.getpid(), signals[1])
    assert own.is_alive(), "a process of the user's, as one that loads data"
    own.kill()
    own.join()
    worker.close()


def test_a_launch_outside_the_main_thread_leaves_signals_to_that():
    """As of a `sweep` that a server or a notebook calls in a thread, where Python lets nobody handle signals."""
    signals = (signal.SIGINT, signal.SIGTERM)
    handled = [signal.getsignal(number) for number in signals]

    def launch() -> list:
        with local_launch._stop_requests() as stopping:
            return [stopping(), *map(signal.getsignal, signals)]

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(launch).result() == [False, *handled]
    stopping, *inside = launch()  # the control
    assert not stopping and not {*inside} & {*handled} and [signal.getsignal(number) for number in signals] == handled


def wait_for_ever() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()
