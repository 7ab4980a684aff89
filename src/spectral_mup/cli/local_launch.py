"""A launch on this machine: its workers, how it is stopped, and what it prints in the end."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spectral_mup.cli.context import FAILED, INTERRUPTED, OK, Context, check_folders, show_endings
from spectral_mup.cli.names import keep_name
from spectral_mup.cli.outlook import format_time, still_to_train
from spectral_mup.cluster.durations import Durations, measured_durations
from spectral_mup.cluster.placement import Machine, Placement
from spectral_mup.cluster.worker import WORKER
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.search.curve_state import curve_states
from spectral_mup.util.text import pluralize


def machine_of(context: Context) -> Machine:
    """Return this machine, with what is already known of the memory that the sweep's runs need."""
    machine = Machine.here(context.config)
    if machine.gpus:
        machine.memory.learn(context.plan.runs)
    return machine


def durations_on(context: Context, placement: Placement) -> Durations:
    """Return how long the sweep's runs take on such workers, judging by those that are done."""
    return measured_durations(context.runs, context.plan.runs, "cuda" if placement.gpus else "cpu")


def print_workers(context: Context, placement: Placement, durations: Durations) -> None:
    print(f"To train them: {placement}")
    print(format_time(context, durations, placement.workers))


def train_here(context: Context, forgiven: Collection[str] = (), in_this_process: bool = False) -> int:
    """Train on this machine until the plan is empty, Ctrl-C, or only failed runs are left; return the exit code.

    The errors of the runs `forgiven` are archived first, so that these run again. Raises ConfigError if this machine cannot
    train what the config says, or if a folder cannot be written.
    """
    from spectral_mup.cluster.local import run_here, run_local
    from spectral_mup.cluster.progress import Progress

    config, machine = context.config, machine_of(context)

    def place(runs: Sequence[RunConfig]) -> Placement:
        return Placement(1, "in this process") if in_this_process else machine.place(config, runs)

    placement = place(context.plan.todo)
    check_folders(config, "runs", "results")
    keep_name(context)
    print_workers(context, placement, durations := durations_on(context, placement))
    for run_id in forgiven:
        RunFolder(context.runs, run_id).archive_error()
    if note := context.load_corpus().note:
        print(f"note: {note}")
    progress = Progress(lambda line, _run: print(line, flush=True), durations)
    seen: list[int] = []

    def todo() -> list[RunConfig]:
        context.refresh()
        runs = context.plan.todo
        if (news := [len(context.plan.runs), len(runs)]) != seen:  # `todo` is called every two seconds
            seen[:] = news
            workers = place(runs).workers if runs else placement.workers
            states = curve_states(context.plan, context.outcome)
            progress.look(context.plan, workers, still_to_train(context, durations), states, context.later_curves)
        return runs

    todo()
    with _stop_requests() as stopping, progress:
        failed = (run_here if in_this_process else run_local)(config, todo, progress.on_event, stopping, machine)
    context.refresh()
    total = len(context.plan.runs)
    done = pluralize(total - len(context.plan.todo), "run")
    if stopping():
        print(f"Stopped with {done} done. Resume with: {context.launch_command()}")
        return INTERRUPTED
    if failed:
        lines = [f"  {config.paths.runs}/{run_id}: {error} (traceback in error.txt)" for run_id, error in failed.items()]
        print(f"{len(failed)} of {pluralize(total, 'run')} failed:", *lines, sep="\n", file=sys.stderr)
        print(f"Once the cause is removed, resume with: {context.launch_command()}", file=sys.stderr)
        return FAILED
    print(f"All {done} done.")
    show_endings(context)
    return OK


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived; inside, the first of them does nothing else.

    Every further one kills the workers or, if there are none, raises KeyboardInterrupt. Outside the main thread, where Python
    lets nobody handle signals, none is heard.
    """
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            for worker in (workers := [child for child in multiprocessing.active_children() if child.name == WORKER]):
                worker.kill()
            if not workers:
                raise KeyboardInterrupt

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, ask) for s in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
