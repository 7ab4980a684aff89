"""What an action works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from spectral_mup.cli.command_line import SCRIPTS, Program, command
from spectral_mup.cluster.slurm.run_states import Report, reconcile
from spectral_mup.config.schema import Config
from spectral_mup.runs.sweep import Outcome, Plan, Sweep, open_sweep, result_reader
from spectral_mup.training.quantities import resolve_quantities


@dataclass
class Context:
    """A checked config, the command line that it came from, and what follows from it, made when first asked for."""

    config: Config
    argv: list[str]
    program: Program = SCRIPTS

    @property
    def runs(self) -> Path:
        return Path(self.config.paths.runs)

    @cached_property
    def sweep(self) -> Sweep:
        """Raises ConfigError if the corpus is missing, or a quantity to probe unknown."""
        resolve_quantities(self.config.probe.quantities)
        return open_sweep(self.config)

    @cached_property
    def outcome(self) -> Outcome:
        return result_reader(self.runs)

    @cached_property
    def plan(self) -> Plan:
        return self.sweep.plan(self.outcome)

    @cached_property
    def report(self) -> Report:
        """The state of every run of the plan, by its folder and SLURM."""
        return reconcile(self.runs, Path(self.config.paths.jobs), self.plan.runs)

    def refresh(self) -> None:
        """Make plan and report anew, from what is on disk by then, when they are next asked for."""
        for name in ("plan", "report"):
            self.__dict__.pop(name, None)

    @property
    def later_curves(self) -> int:
        """Curves that the plan does not reach yet."""
        return self.sweep.remaining_curves(self.plan)

    def launch_command(self, action: str | None = None) -> str:
        """This sweep's launch, or another action on it, to copy."""
        return command(self.program.launch, self.argv, action)

    def analyze_command(self) -> str:
        return command(self.program.analyze, self.argv)
