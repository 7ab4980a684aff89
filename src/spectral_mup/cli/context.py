"""What actions work with: the config and all that follows from it, the commands to suggest next, exit codes."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from spectral_mup.cli.screen import show
from spectral_mup.cluster.slurm.run_states import Report, State, reconcile
from spectral_mup.config.deciding import differences
from spectral_mup.config.optimizer_spec import spec_of
from spectral_mup.config.schema import Config
from spectral_mup.data import Corpus, OwnBatches, load_data, vocabulary
from spectral_mup.errors import ConfigError, fix_of
from spectral_mup.runs.results import Results
from spectral_mup.runs.sweep import Outcome, Sweep, open_sweep
from spectral_mup.runs.sweep_record import SweepRecord, read_record
from spectral_mup.search.plan import Plan, make_plan, remaining_curves
from spectral_mup.training.quantities import resolve_quantities
from spectral_mup.util.files import check_writable
from spectral_mup.util.text import pluralize

# exit codes of every command; `--help` lists them
OK = 0
FAILED = 1  # some runs failed
BAD_INPUT = 2  # nothing was started
REFUSED = 3  # paused, not confirmed, or another sweep's name
NO_ANSWER = 4  # SLURM or W&B refused or gave no answer
CHECK_FAILED = 5  # analyze --check
INTERRUPTED = 130

# keys of one command, not of the sweep: left out of the commands that are suggested
ABOUT_THIS_COMMAND = ("action=", "yes=", "watch=", "run=", "cause=", "target.")
SWITCHES = {"watch": "watch=true", "yes": "yes=true", "ls": "action=ls"}  # bare words, and what they are short for


SCRIPTS, CONSOLE, MODULE = (
    "python {}.py",
    "spectral-mup {}",
    "python -m spectral_mup {}",
)  # how the user starts launch or analyze


def command(start: str, overrides: Sequence[str], action: str | None = None) -> str:
    """Return a command line with these overrides, quoted for a shell, and `action` in place of their own."""
    kept = without_this_command(overrides)
    return f"{start} {shlex.join([*kept, *([f'action={action}'] if action else [])])}".rstrip()


def without_this_command(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are about the sweep, not about one command alone."""
    return [override for override in overrides if not override.startswith(ABOUT_THIS_COMMAND)]


@dataclass
class Context:
    """A checked config, its command line, and what follows from them, computed at first use."""

    config: Config
    argv: list[str]
    program: str = SCRIPTS

    @property
    def runs(self) -> Path:
        return Path(self.config.paths.runs)

    @cached_property
    def sweep(self) -> Sweep:
        """The sweep of this config. Raises ConfigError if its corpus is missing or a quantity to probe is unknown."""
        resolve_quantities(self.config.probe.quantities)
        return open_sweep(self.config)

    def check_own_code(self) -> None:
        """Check a model and optimizers that are neither the package's nor torch's, in a second or two.

        Raises ConfigError if the model cannot be scaled, or if what is given as an optimizer is not one.
        """
        for algorithm in spec_of(self.config.optimizer).algorithms.values():
            if not str(algorithm.target).startswith(("torch.optim.", "spectral_mup.optim.")):
                algorithm.load()
        if not self.config.model.ours:
            from spectral_mup.scaling.run_scaling import check_model  # imports torch

            sweep = self.sweep
            curves = [curve for chain in sweep.chains({}) for curve in chain.curves]
            check_model([sweep.run(c, sweep.config.sweep.lr[0], 0) for c in curves], vocabulary(*self.config.data.place))

    @cached_property
    def results(self) -> Results:
        """Losses and times of runs; `analyze` caches what it has read for later commands."""
        return Results(self.runs, self.cache / "runs")

    @property
    def cache(self) -> Path:
        """Folder where `analyze` keeps what it has read and found, to save time later; may be deleted."""
        return Path(self.config.paths.results) / ".cache" / self.config.sweep.name

    @property
    def outcome(self) -> Outcome:
        return self.results.loss

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.sweep, self.outcome, self.results.seconds)

    @cached_property
    def report(self) -> Report:
        """The state of every run of the plan, from its folder and from SLURM."""
        return reconcile(self.runs, Path(self.config.paths.jobs), self.plan.runs)

    def refresh(self) -> None:
        """Forget plan and report; at their next use they are made from what is on disk by then."""
        for name in ("plan", "report"):
            self.__dict__.pop(name, None)

    @property
    def later_curves(self) -> int:
        """Number of curves that the plan has not reached yet."""
        return remaining_curves(self.sweep, self.plan)

    def load_corpus(self) -> Corpus | OwnBatches:
        return load_data(*self.config.data.place)

    def matching(self) -> list[State]:
        """Return the states of the runs that run=ID names, of all without it. Raises ConfigError if it names none."""
        wanted = self.config.run
        found = [s for s in self.report.states.values() if wanted is None or s.run.run_id.startswith(wanted)]
        if wanted is not None and not found:
            raise ConfigError(f"run={wanted}: no run id of this sweep starts with it; action=status lists them")
        return found

    @property
    def folder(self) -> Path:
        """Folder of the sweep's results."""
        return Path(self.config.paths.results, self.config.sweep.name)

    @property
    def record(self) -> SweepRecord | None:
        """What the sweep's name was launched with, None if never. Raises RecordError if that cannot be read."""
        return read_record(Path(self.config.paths.results), self.config.sweep.name)

    def by_name(self, script: str, action: str | None = None) -> str:
        """Return a command that gives the sweep's name alone, and so the config that was launched under it."""
        words = [self.config.sweep.name, *(word for word in self.argv if word.startswith("paths.results="))]
        return command(self.program.format(script), words, None if action == "run" else action)

    def _command(self, script: str, action: str | None = None) -> str:
        """Return a command by the sweep's name and the words added since, if this config was launched; else by all words."""
        record, name = self.record, self.config.sweep.name
        named = record and {*record.words} <= {*self.argv} and name not in SWITCHES and not name.startswith("-")
        if not record or not named or differences(record.config, self.config):
            return command(self.program.format(script), self.argv, action)
        more = [word for word in self.argv if word not in record.words or word.startswith("paths.results=")]
        return command(self.program.format(script), [name, *more], action)

    def launch_command(self, action: str | None = None) -> str:
        """Return the command that launches this sweep, or runs another action on it, for the user to copy."""
        return self._command("launch", action)

    def analyze_command(self) -> str:
        """Return the command that judges this sweep, for the user to copy."""
        return self._command("analyze")

    def whole_command(self, script: str, action: str | None = None) -> str:
        """Return the command with all its words, which means the same wherever it is read."""
        return command(self.program.format(script), self.argv, action)

    def next_lines(self) -> list[str]:
        """Return what to do once all runs are trained."""
        return [f"Next: {self.analyze_command()}"]

    def confirm(self, question: str) -> bool:
        """Return whether the user agrees: by yes=true, or by y on a terminal."""
        if self.config.yes:
            return True
        if not sys.stdin.isatty():
            print(f"refused: {question} Cannot ask for confirmation without a terminal; add yes=true", file=sys.stderr)
            return False
        try:
            agreed = input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            agreed = False
        if not agreed:
            print("Nothing was done.", file=sys.stderr)
        return agreed


def format_counts(report: Report) -> str:
    """Return '84 runs: 72 done, 3 running, 9 planned'."""
    counts = ", ".join(f"{n} {name}" for name, n in report.counts().items())
    return f"{pluralize(len(report.states), 'run')}: {counts or 'none'}"


def print_notes(report: Report) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)


def nothing_to_do(context: Context) -> int:
    print("Nothing to do.")
    show_endings(context)
    return OK


def show_endings(context: Context) -> None:
    """Print how the search for each verdict ended, and what to do next."""
    for line in (*map(str, context.plan.endings), *context.next_lines()):
        show(line)


def check_folders(config: Config, *keys: str) -> None:
    """Raise ConfigError about the first of these paths that cannot be written."""
    for key in keys:
        path = Path(getattr(config.paths, key)).absolute()
        try:
            check_writable(path)
        except OSError as error:
            reason = f"cannot be written ({error.strerror or error}: {error.filename or path})"
            raise ConfigError(f"paths.{key}={path}: {reason}; {fix_of(error)}") from None
