"""Would it pay to end a run early that is far above the best of its curve? A rule from full runs, and what it would save.

    python benchmarks/early_end.py FILE.csv                 # what the rule would have saved, from the losses in FILE.csv
    python benchmarks/early_end.py FILE.csv --runs DIR      # train the runs first, into DIR, and write FILE.csv

The rule: at 1/8, … 7/8 of its steps a run is compared with the best finished run of its curve and seed (else of its curve) by
the mean training loss of the last steps; the same seed has the same batches, so their noise is common. Above a limit it ends.
Whatever ends should have come out above the best by 5 % (such points are no part of a fit) and a margin. So a limit is the
largest ratio of any run that came out closer to any other of its curve and seed, as each may have finished first, and SAFETY
times the excess; one for lrs below that of the other, as they catch up, and one for those above, as they come down when the
schedule does. As the limits are taken from the runs on which they are tried, what they save is an upper bound.

But 5 % is not enough: an analysis also rests on the tested neighbours of the best lr however high they are, without which the
optimum is not bracketed or has less than three points, and, for the regret, on every size's loss at the base's best lr. Ended
runs that are among these are counted as needed: a rule is safe with none.

With `a finished lr between` only such runs end as have a finished lr between them and the best, and are no such neighbours;
`not needed` keeps those at the base's best lr too.

The search is replayed on the losses of the table, by octaves, with two workers: unchanged, and as if every other lr of it
were known before (no search knows it); and a fixed grid beside it.
"""

import argparse
import heapq
import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from spectral_mup.cluster.local import run_local
from spectral_mup.config.compose import load_config
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep, result_reader
from spectral_mup.search.plan import make_plan
from spectral_mup.training.run import TRAIN_LOSS_STEPS
from spectral_mup.util.files import read_rows

EXCESS = 0.05  # a point that is further above the best is not part of a fit
MARGINS = (0.03, 0.05, 0.1, 0.15)
SAFETY = 1.25
SHARES = tuple(k / 8 for k in range(1, 8))
WORKERS = 2
LRS = {  # log2 lrs by width
    "adamw": {64: range(-12, -1), 128: range(-12, -1), 256: range(-10, -2)},
    "muon": {64: range(-12, -1), 128: range(-12, -1)},
}
SEEDS = (0, 1)
CURVE = ["optimizer", "rule", "width"]


class RunKey(NamedTuple):
    """By what a run is known in the table."""

    optimizer: str
    rule: str
    width: int
    log2_lr: float
    seed: int

    @property
    def curve(self) -> tuple[str, str, int]:
        return self[:3]


class Losses(NamedTuple):
    """Of a run: seconds, final validation loss, inf if it diverged, and mean training losses at SHARES of its steps."""

    seconds: float
    final: float
    at: tuple[float, ...]


def train(runs: Path) -> pd.DataFrame:
    """Train what is missing; one row per run: its losses at every share of its steps, as fractions of which they are named."""
    rows: list[dict] = []
    for optimizer, width, lrs in [(o, width, lrs) for o, by_width in LRS.items() for width, lrs in by_width.items()]:
        grid = [f"sweep.width=[{width}]", f"sweep.lr={[*lrs]}", f"sweep.seed={[*SEEDS]}", "lr.adaptive=false"]
        config = load_config(["sweep=default", f"optimizer={optimizer}", *grid, f"paths.runs={runs}"])
        sweep, outcome = open_sweep(config), result_reader(runs)
        failed = run_local(config, lambda s=sweep, o=outcome: make_plan(s, o).todo, lambda event: None)
        assert not failed, failed
        rows += [row_of(run, RunFolder(runs, run.run_id)) for run in make_plan(sweep, outcome).runs]
    return pd.DataFrame(rows).sort_values([*CURVE, "seed", "log2_lr"], ignore_index=True)


def row_of(run: RunConfig, folder: RunFolder) -> dict:
    result, timing = folder.result(), folder.read("timing.json")
    assert result and timing
    losses = np.array([row["loss"] for row in read_rows(folder.path / "metrics.jsonl")], float)
    stops = [round(share * run.train.steps) for share in SHARES]
    means = [losses[stop - TRAIN_LOSS_STEPS : stop].mean() if stop <= len(losses) else math.nan for stop in stops]
    return (
        key_of(run)._asdict()
        | {"val_loss": result["val_loss"], "seconds": timing["seconds"]}
        | dict(zip(map(str, SHARES), means, strict=True))
    )


def losses_of(table: pd.DataFrame) -> dict[RunKey, Losses]:
    """The table by run; a run takes the seconds of the median one of its optimizer and width."""
    seconds = table.groupby(["optimizer", "width"])["seconds"].median().to_dict()
    losses = {}
    for row in table.itertuples(index=False, name=None):
        run = RunKey(*row[:5])
        losses[run] = Losses(seconds[run.optimizer, run.width], row[5] if math.isfinite(row[5]) else math.inf, row[7:])
    return losses


def key_of(run: RunConfig) -> RunKey:
    return RunKey(run.optimizer.name, run.curve.rule, run.curve.width, run.log2_lr, run.seed)


@dataclass(frozen=True)
class Ending:
    """A rule of ending early: at SHARES of its steps a run is compared with the best finished one of its curve."""

    limits: dict[tuple[int, bool], float]  # by index of the share, and whether the lr is above that of the other
    between: bool  # only where a finished lr lies between, so that the run is not a neighbour of the best
    losses: dict[RunKey, Losses]
    kept: set[RunKey] = field(default_factory=set)  # never ended

    def ends(self, run: RunKey, finished: list[RunKey], k: int) -> bool:
        """Whether a run ends at the k-th share, given the runs of its curve that have finished."""
        same_seed = [other for other in finished if other.seed == run.seed]
        best = min(same_seed or finished, key=lambda other: self.losses[other].final, default=None)
        if best is None or best == run or run in self.kept:
            return False
        low, high = sorted((run.log2_lr, best.log2_lr))
        if self.between and not any(low < other.log2_lr < high for other in finished):
            return False
        ratio = self.losses[run].at[k] / self.losses[best].at[k]
        return ratio > self.limits.get((k, run.log2_lr > best.log2_lr), math.inf)


def limits_of(losses: dict[RunKey, Losses], margin: float) -> dict[tuple[int, bool], float]:
    """The limits that end no run which came out within 5 % and a margin, whichever other had finished first."""
    limits: dict[tuple[int, bool], float] = {}
    for run in losses:
        others = [other for other in losses if (other.curve, other.seed) == (run.curve, run.seed)]
        if losses[run].final > min(losses[other].final for other in others) * (1 + EXCESS + margin):
            continue
        for other, k in itertools.product(others, range(len(SHARES))):
            side = (k, run.log2_lr > other.log2_lr)
            ratio = losses[run].at[k] / losses[other].at[k]
            limits[side] = max(limits.get(side, 1.0), 1 + SAFETY * (ratio - 1))
    return limits


@dataclass(frozen=True)
class Search:
    """By octaves: the coarse grid at the base, then three lrs around the best of the size before, and the base's best."""

    optimizer: str
    rules: tuple[str, ...]
    grid: tuple[int, ...] = (-9, -7, -5)
    fixed: bool = False  # the grid at every size, and nothing else

    def wanted(self, done: dict[RunKey, float]) -> list[RunKey]:
        """The runs to do, largest first, given the losses of those that are done."""
        todo = dict[RunKey, None]()
        for rule in self.rules:
            best, at_base = 0.0, math.nan  # no base yet
            for width in LRS[self.optimizer]:
                curve = (self.optimizer, "base" if math.isnan(at_base) else rule, width)
                at_grid = math.isnan(at_base) or self.fixed
                lrs = set[float](self.grid) if at_grid else {best - 1, best, best + 1, at_base}
                while not (
                    missing := [run for lr in sorted(lrs) for seed in SEEDS if (run := RunKey(*curve, lr, seed)) not in done]
                ):
                    best = min(lrs, key=lambda lr: sum(done[RunKey(*curve, lr, seed)] for seed in SEEDS))
                    if self.fixed or {best - 1, best + 1} <= lrs:
                        break
                    lrs |= {best - 1, best + 1}
                todo |= dict.fromkeys(missing)
                if missing and not self.fixed:
                    break  # the next size begins where this one ends
                at_base = best if math.isnan(at_base) else at_base
        return sorted(todo, key=lambda run: -run.width)


@dataclass
class Replay:
    """What a search does with the losses of a table: its core-seconds, what it trained, and what of that it ended early."""

    seconds: float
    trained: set[RunKey]
    ended: set[RunKey]


def play(losses: dict[RunKey, Losses], search: Search, ending: Ending | None = None, known: bool = False) -> Replay:
    """Go through a search event by event on WORKERS; with `known` every other lr of a curve has finished before any run."""
    done, ended = dict[RunKey, float](), set[RunKey]()
    busy: list[tuple[float, int, int, RunKey]] = []  # when it is at its next share, tie-break, which share, run
    seconds, now, number, parts = 0.0, 0.0, itertools.count(), len(SHARES) + 1
    while True:
        at_work = {run for *_, run in busy}
        waiting = [run for run in search.wanted(done) if run not in at_work]
        for run in waiting[: WORKERS - len(busy)]:
            heapq.heappush(busy, (now + losses[run].seconds / parts, next(number), 0, run))
        if not busy:
            return Replay(seconds, set(done), ended)
        now, _, k, run = heapq.heappop(busy)
        final = k == len(SHARES)
        finished = [other for other in (losses if known else done) if other.curve == run.curve and other not in ended]
        ends = not final and ending is not None and ending.ends(run, finished, k)
        if final or ends:
            done[run] = math.inf if ends else losses[run].final
            seconds += losses[run].seconds * (k + 1) / parts
            ended |= {run} if ends else set()
        else:
            heapq.heappush(busy, (now + losses[run].seconds / parts, next(number), k + 1, run))


def needed(losses: dict[RunKey, Losses], trained: set[RunKey]) -> set[RunKey]:
    """The runs at the best lr of their curve, at its tested neighbours, and at the base's best lr."""
    found, best_of_base = set[RunKey](), {}
    for curve in sorted({run.curve for run in trained}, key=lambda curve: curve[-1]):
        runs = [run for run in trained if run.curve == curve]
        lrs = sorted({run.log2_lr for run in runs})
        best = min(lrs, key=lambda lr: sum(losses[run].final for run in runs if run.log2_lr == lr))
        best_of_base.setdefault(curve[0], best)
        at = lrs.index(best)
        near = {*lrs[max(0, at - 1) : at + 2], best_of_base[curve[0]]}
        found |= {run for run in runs if run.log2_lr in near}
    return found


def show(table: pd.DataFrame) -> None:
    """Print the limits of every rule of ending, and what it would have saved."""
    losses = losses_of(table)
    searches = []
    for optimizer, rules in itertools.product(LRS, (("spectral",), ("spectral", "standard"))):
        searches += [Search(optimizer, rules), Search(optimizer, rules, tuple(range(-10, -2)), fixed=True)]
    full = {search: play(losses, search) for search in searches}
    for margin, between in ((0.03, True), *((margin, False) for margin in MARGINS)):
        ending = Ending(limits_of(losses, margin), between, losses)
        print(f"5 % and a margin of {margin:.0%}{', a finished lr between, and not needed' * between}")
        for above in (False, True):
            shown = ", ".join(f"{ending.limits.get((k, above), math.inf):.2f}" for k in range(len(SHARES)))
            print(f"  limits at 1/8 … 7/8 of the steps, lr {'above' if above else 'below'} the other's: {shown}")
        for search, whole in full.items():
            cells, wanted = [], needed(losses, whole.trained)
            own = replace(ending, kept=wanted) if between else ending
            for known in (False, True):
                short = play(losses, search, own, known)
                lost = len(short.ended & wanted)
                saved = 1 - short.seconds / whole.seconds
                cells.append(f"{saved:5.1%} saved, {len(short.ended):2} runs ended, {lost} of them needed")
            name = f"{'fixed grid' if search.fixed else 'search    '} {search.optimizer:5} {', '.join(search.rules):18}"
            print(f"  {name} ({whole.seconds:4.0f} s, {len(whole.trained)} runs): {cells[0]}; all known: {cells[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="train the runs here, and write the table")
    args = parser.parse_args()
    if args.runs:
        train(args.runs).to_csv(args.csv, index=False, float_format="%.5g", lineterminator="\n")
    show(pd.read_csv(args.csv))


if __name__ == "__main__":
    main()
