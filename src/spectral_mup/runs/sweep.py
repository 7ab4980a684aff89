"""A sweep as a declaration: which keys are tuned at which sizes, as curves, and the run of each point. Imports no torch."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from spectral_mup import data
from spectral_mup.config.optimizer_spec import rule_of, spec_of
from spectral_mup.config.schema import Config
from spectral_mup.config.tune import LR, held_at, start_of
from spectral_mup.config.validate import varied
from spectral_mup.errors import ConfigError
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_config import AXES, BASE, Corpus, Curve, RunConfig
from spectral_mup.util.text import pluralize

TURNS = 6  # at most, when two keys are tuned by turns: three each
SETTLED = 0.5  # octaves: turns end when a key is found this near to where it was held while the other was tuned
SIZES_FOR_A_SLOPE = 3  # any two sizes lie on a line


@dataclass(frozen=True)
class Chain:
    """Curves to be searched one after the other, small to large, each around the optimum of the one before.

    `start` are the log2 values of the tuned key that the first search starts from. A `turn` is a search at the base that only
    finds where to hold a key while another is tuned; it gets no verdict.
    """

    curves: list[Curve]
    start: list[float]
    turn: bool = False


Outcome = Callable[[RunConfig], float | None]
"""The loss of a run (inf if it diverged), None if it has not ended."""


class Sweep:
    """The runs of a config; `fingerprint` identifies the content of its corpus."""

    def __init__(self, config: Config, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        s, t = config.sweep, config.train
        more = {"steps": sorted({*s.steps, t.steps}), "batch_size": sorted({*s.batch_size, t.batch_size})}
        self.sizes: dict[str, list[int]] = {"width": sorted(s.width), "depth": sorted(s.depth)} | more
        self._first: dict[tuple[Curve, float | None], RunConfig] = {}
        self._runs: dict[tuple[Curve, float, int], RunConfig] = {}

    @property
    def base(self) -> dict[str, int]:
        """The size of each axis at which the others are judged: the base, or the smallest if the base is not swept."""
        s, t = self.config.sweep, self.config.train
        base = {"width": s.base_width, "depth": s.base_depth, "steps": t.steps, "batch_size": t.batch_size}
        return {axis: base[axis] if base[axis] in sizes else sizes[0] for axis, sizes in self.sizes.items()}

    @property
    def axes(self) -> list[str]:
        """The axes over which optima are judged: those of more than one size, or width."""
        return [axis for axis in AXES if len(self.sizes[axis]) > 1] or ["width"]

    @property
    def parts(self) -> dict[tuple[str, str], str]:
        """Where the verdicts of each (tuned key, axis) lie, below the sweep's results; those of the first two right there."""
        return {
            (key, axis): "/".join([*[key] * (i > 0), *[axis] * (j > 0)])
            for i, key in enumerate(self.config.sweep.tune)
            for j, axis in enumerate(self.axes)
        }

    @property
    def budget(self) -> tuple[float, float]:
        """(runs, hours of training) that each chain over the sizes may take: an even share of sweep.budget; inf without one."""
        budget, chains = self.config.sweep.budget, [of for name in self.config.sweep.tune for of in self.over_sizes(name, {})]
        share = 1 / len(chains)
        if isinstance(budget, str):
            return math.inf, float(budget.removesuffix("h")) * share
        return (math.inf if budget is None else int(budget * share)), math.inf

    # --- what is to be searched -----------------------------------------------------------------------------------

    def chains(self, found: Mapping[Curve, float]) -> Iterator[Chain]:
        """Yield the chains to search, as far as they follow from the best log2 values `found` so far.

        `found` is read after every chain, so that the caller can fill it in between. Two keys are first tuned by turns at the
        base, each with the other held where it was last found, until one is found where it was held already.
        """
        c, s = self.config, self.config.sweep
        at, turns = {name: held_at(c, name) for name in s.tune}, []
        for name in islice(cycle(at), TURNS if len(at) > 1 else 0):
            curve = Curve(BASE.name, s.base_width, s.base_depth, tuned=name, held=self._held(name, at))
            if curve in turns:
                break
            yield Chain([curve], self._start(name, at[name] if len(turns) > 1 else None), turn=True)
            if curve not in found:
                return
            before, at[name] = at[name], found[curve]
            turns.append(curve)
            if len(turns) > 1 and abs(at[name] - before) <= SETTLED:
                break
        for name in at:
            for curves in self.over_sizes(name, at):
                yield Chain(curves, self._start(name, at[name] if turns else None))

    def _start(self, name: str, near: float | None) -> list[float]:
        return start_of(self.config, name) if near is None or not self.config.lr.adaptive else [near - 1, near, near + 1]

    def _held(self, name: str, at: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        """Return the keys that are held while this one is tuned, with their log2; lr too, if it is never tuned."""
        return tuple(sorted((other, x) for other, x in ({LR: self.config.sweep.lr[0]} | dict(at)).items() if other != name))

    def over_sizes(self, name: str, at: Mapping[str, float]) -> Iterator[list[Curve]]:
        """Yield the curves of each chain: all widths and depths under one rule; all steps, or batch sizes, at the base."""
        held, base = self._held(name, at), self.base
        for rule in self.config.rule if {"width", "depth"} & {*self.axes} else ():
            sizes = [(width, depth) for depth in self.sizes["depth"] for width in self.sizes["width"]]
            yield [Curve(rule, width, depth, tuned=name, held=held) for width, depth in sizes]
        for axis in ("steps", "batch_size"):
            if len(sizes := self.sizes[axis]) > 1:
                own = Curve(BASE.name, base["width"], base["depth"], tuned=name, held=held)
                yield [replace(own, **{axis: size}) for size in sizes]

    def warnings(self) -> list[str]:
        """Return why there can be no verdict, however the runs end, one line per reason."""
        c, few = self.config, [axis for axis in self.axes if len(self.sizes[axis]) < SIZES_FOR_A_SLOPE]
        lines = [
            f"no verdict over {axis.replace('_', ' ')}: a slope needs {SIZES_FOR_A_SLOPE} sizes, here "
            f"{'is' if len(self.sizes[axis]) == 1 else 'are'} {len(self.sizes[axis])}; give more in sweep.{axis}"
            for axis in few
        ]
        alone = [name for name in c.sweep.tune if not c.lr.adaptive and len(start_of(c, name)) < 3]
        return lines + [
            f"no verdict about {name}: {pluralize(len(start_of(c, name)), 'value')} cannot bracket an optimum; give three or "
            "more, or set lr.adaptive=true"
            for name in alone
        ]

    # --- runs -----------------------------------------------------------------------------------------------------

    def is_base(self, curve: Curve) -> bool:
        """Return whether a curve is at the base on every axis."""
        t = self.config.train
        return self._is_base_model(curve) and curve.steps in (None, t.steps) and curve.batch_size in (None, t.batch_size)

    def _is_base_model(self, curve: Curve) -> bool:
        return (curve.width, curve.depth) == (self.config.sweep.base_width, self.config.sweep.base_depth)

    def run(self, curve: Curve, value: float, seed: int) -> RunConfig:
        """Return the run of a curve at a log2 value of its tuned key and a seed; at the base size every rule has the same run.

        Raises ConfigError on a value that the key cannot have (see `possible`).
        """
        own = replace(curve, rule=BASE.name) if self._is_base_model(curve) else curve
        key, first = (own, value, seed), (own, None if own.tuned == LR else value)
        if first not in self._first:
            self._first[first] = self._make(own, value, seed)
        if key not in self._runs:
            log2_lr = value if own.tuned == LR else self._first[first].log2_lr
            self._runs[key] = self._first[first].at(log2_lr, seed)
        return self._runs[key]

    def _make(self, curve: Curve, value: float, seed: int) -> RunConfig:
        numbers = dict(curve.held) | {curve.tuned: value}
        log2_lr, c, s = numbers.pop(LR), self.config, self.config.sweep
        if numbers or curve.steps or curve.batch_size:
            c = varied(c, numbers, curve.steps, curve.batch_size)
        return RunConfig(
            model=c.model, width=curve.width, depth=curve.depth, base_width=s.base_width, base_depth=s.base_depth,
            optimizer=spec_of(c.optimizer), rule=BASE if curve.rule == BASE.name else rule_of(curve.rule, c.rule[curve.rule]),
            data=Corpus(c.data.source, c.data.vocab_size, self.fingerprint),
            train=c.train, probe=c.probe, log2_lr=log2_lr, seed=seed, curve=curve, value=value,
        )  # fmt: skip

    def possible(self, curve: Curve, value: float) -> bool:
        """Return whether the tuned key can have this log2 value: a momentum must be below 1, a warmup shorter than the run."""
        try:
            self.run(curve, value, self.config.sweep.seed[0])
        except ConfigError:
            return False
        return True


def result_reader(runs: Path) -> Outcome:
    """Make an Outcome that reads run folders, each result once; Results.of says what becomes of unreadable ones."""
    return Results(runs).loss


def open_sweep(config: Config) -> Sweep:
    """Return the sweep of a checked config. Raises data.DataError, a ValueError, if its corpus cannot be found."""
    return Sweep(config, data.fingerprint(*config.data.place))
