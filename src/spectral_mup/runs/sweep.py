"""A sweep as a declaration: which runs it has, which are done, which learning rates come next. Imports no torch.

A plan is a pure function of the config and the results so far. Whoever computes it, in whatever order results came in,
gets the same runs; so a launcher may die at any moment and the next one resumes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spectral_mup import data
from spectral_mup.config.optimizer_spec import rule_of, spec_of
from spectral_mup.config.schema import Config
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_config import BASE, Corpus, Curve, RunConfig


@dataclass(frozen=True)
class Search:
    """Learning rates (log2) that a curve wants so far; finished when no more will be wanted."""

    wanted: list[float]
    finished: bool
    bracketed: bool
    best: float | None


def search_lrs(
    start: list[float], loss: Callable[[float], float | None], adaptive: bool, resolution: float, budget: int
) -> Search:
    """Bracket the best log2 lr, then refine around it: a deterministic replay from `start` and the known losses.

    The best point on an edge asks for the next octave beyond it; an interior one asks for the middles of its two gaps until
    both are at `resolution`. A diverged run (loss inf) is worse than any other and brackets. Stops at `budget` points.
    """
    wanted = set(start)
    while True:
        known = {x: value for x in wanted if (value := loss(x)) is not None}
        if len(known) < len(wanted):
            return Search(sorted(wanted), False, False, None)
        best = min(known, key=lambda x: (known[x], x))
        below, above = [x for x in wanted if x < best], [x for x in wanted if x > best]
        bracketed = bool(below and above) and math.isfinite(known[best])
        if not math.isfinite(known[best]):
            new = {min(wanted) - 1}
        elif not bracketed:
            new = {best - 1} if not below else {best + 1}
        else:
            gaps = ((side, gap) for side, gap in ((-1, best - max(below)), (1, min(above) - best)) if gap > resolution)
            new = {best + side * max(math.floor(gap / 2 / resolution) * resolution, resolution) for side, gap in gaps}
        new = set(sorted(new)[: max(0, budget - len(wanted))])
        if not adaptive or not new:
            return Search(sorted(wanted), True, bracketed, best)
        wanted |= new


@dataclass(frozen=True)
class Plan:
    """The runs of every curve begun so far, and those to do, largest first. `open` curves may need more once these are done."""

    curves: dict[Curve, list[RunConfig]]
    todo: list[RunConfig]
    open: list[Curve]
    unbracketed: list[Curve]

    @property
    def runs(self) -> list[RunConfig]:
        """All of them, each once though curves of several rules share those of the base size."""
        return list(dict.fromkeys(run for runs in self.curves.values() for run in runs))


Outcome = Callable[[RunConfig], float | None]
"""Loss of a run that is done (inf if it diverged), None if it is not."""


class Sweep:
    """The runs of a config; `fingerprint` identifies the content of its corpus."""

    def __init__(self, config: Config, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        self._optimizer = spec_of(config.optimizer)
        self._first: dict[Curve, RunConfig] = {}
        self._runs: dict[tuple[Curve, float, int], RunConfig] = {}

    def curves(self) -> list[list[Curve]]:
        """Chains of curves, small to large, each starting its lr search at the optimum of the one before."""
        s = self.config.sweep
        sizes = [(width, depth) for depth in sorted(s.depth) for width in sorted(s.width)]
        return [[Curve(rule, width, depth) for width, depth in sizes] for rule in self.config.rule]

    def run(self, curve: Curve, log2_lr: float, seed: int) -> RunConfig:
        """The run of a curve at an lr and seed; at the base size the same one whatever the rule."""
        c, s = self.config, self.config.sweep
        at_base = (curve.width, curve.depth) == (s.base_width, s.base_depth)
        own = Curve(BASE.name, curve.width, curve.depth) if at_base else curve
        if own not in self._first:
            self._first[own] = RunConfig(
                model=c.model, width=curve.width, depth=curve.depth, base_width=s.base_width, base_depth=s.base_depth,
                optimizer=self._optimizer, rule=BASE if at_base else rule_of(curve.rule, c.rule[curve.rule]),
                data=Corpus(c.data.source, c.data.vocab_size, self.fingerprint),
                train=c.train, probe=c.probe, log2_lr=log2_lr, seed=seed,
            )  # fmt: skip
        key = (own, log2_lr, seed)
        if key not in self._runs:
            self._runs[key] = self._first[own].at(log2_lr, seed)
        return self._runs[key]

    def plan(self, outcome: Outcome) -> Plan:
        """Replay the search with the results so far. Runs that `outcome` does not know are to do, largest first."""
        lr, s = self.config.lr, self.config.sweep
        grid, seeds, base = s.lr, s.seed, (s.base_width, s.base_depth)
        runs: dict[Curve, list[RunConfig]] = {}
        open_curves, unbracketed = [], []
        for chain in self.curves():
            best, at_base = None, None  # of the curve before, and of the base, which larger sizes run too, for the regret
            for curve in chain:
                start = grid if best is None else [best - 1, best, best + 1, best if at_base is None else at_base]

                def loss(log2_lr: float, curve: Curve = curve) -> float | None:
                    known = [x for seed in seeds if (x := outcome(self.run(curve, log2_lr, seed))) is not None]
                    return sum(known) / len(known) if len(known) == len(seeds) else None

                search = search_lrs(start, loss, lr.adaptive, lr.resolution, lr.budget)
                runs[curve] = [self.run(curve, x, seed) for x in search.wanted for seed in seeds]
                if search.best is None:
                    open_curves.append(curve)
                    if lr.adaptive:
                        break  # the next size's search starts where this one ends
                    continue
                if not search.bracketed:
                    unbracketed.append(curve)
                if lr.adaptive:
                    best = search.best
                    if (curve.width, curve.depth) == base:
                        at_base = best
        todo = [run for run in dict.fromkeys(r for rs in runs.values() for r in rs) if outcome(run) is None]
        return Plan(runs, sorted(todo, key=lambda run: run.cost, reverse=True), open_curves, unbracketed)

    def remaining_curves(self, plan: Plan) -> int:
        """Curves that the plan has not reached yet."""
        return sum(curve not in plan.curves for chain in self.curves() for curve in chain)


def result_reader(runs: Path) -> Outcome:
    """Outcome that reads run folders, each result once. Raises RecordError on a folder that contradicts itself."""
    return Results(runs).loss


def open_sweep(config: Config) -> Sweep:
    """The sweep of a checked config. Raises data.DataError, a ValueError, if its corpus is not here."""
    return Sweep(config, data.fingerprint(config.data.source, config.data.path, config.data.vocab_size))
