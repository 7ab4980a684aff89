"""How many runs a search still takes: at least, as a rule, and at most."""

from typing import NamedTuple

from spectral_mup.config.tune import held_at
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.sweep import SIZES_FOR_A_SLOPE, Sweep
from spectral_mup.search.bracket import HALF
from spectral_mup.search.plan import LOOKS, Plan, lines, make_plan

Counted = list[tuple[RunConfig, float]]
"""A run, and how many like it."""


class Outlook(NamedTuple):
    """What is still to be trained until the verdicts, first what the plan lists.

    least   every curve is a bowl with its optimum where it was found, or where the one of the size before was, and the first
            look decides
    usual   the same, and each look but the last wants a seed at one size
    most    every curve takes lr.budget values, and each look but the last wants a seed at every size
    """

    least: Counted
    usual: Counted
    most: Counted

    @property
    def counts(self) -> list[int]:
        """How many runs each of the three is."""
        return [round(sum(n for _, n in runs)) for runs in self]


def outlook(sweep: Sweep, plan: Plan) -> Outlook:
    """Return what is to be trained from a plan on until the verdicts; of a fixed grid, what it lists."""
    least: Counted = [(run, 1.0) for run in plan.todo]
    if not sweep.config.lr.adaptive:
        return Outlook(least, least, least)
    ideal, planned, seen = _ideal(sweep, plan), set(plan.runs), set()
    seeds, of_seed = sweep.config.sweep.seed, round(2 / min(HALF, sweep.config.lr.resolution) + 1)
    decided = {curve for ending in plan.endings for curve in ending.curves}
    searches: Counted = []  # what searches take at most beyond the least
    usual_looks: Counted = []
    most_looks: Counted = []
    for chain in sweep.chains(ideal.found):
        like = {curve: sweep.run(curve, chain.start[0], seeds[0]) for curve in chain.curves}
        spare = {curve: len(plan.curves.get(curve, ())) - len(ideal.curves.get(curve, ())) for curve in chain.curves}
        for curve in chain.curves:
            if curve in plan.found or curve in decided or like[curve] in seen:  # the base's runs are those of all rules
                continue
            seen.add(like[curve])
            new = [run for run in ideal.curves.get(curve, ()) if run not in planned][: max(0, -spare[curve])]
            least += [(run, 1.0) for run in new]
            room = sweep.config.lr.budget * len(seeds) - len(plan.curves.get(curve, ())) - len(new)
            searches.append((like[curve], float(max(0, room))))
        for sizes in [] if chain.turn else lines(sweep, chain).values():
            if not decided.issuperset(sizes.values()):
                extra = (LOOKS - 1) * of_seed
                left = max(0, extra - sum(max(0, spare[curve]) for curve in sizes.values()))
                if len(sizes) >= SIZES_FOR_A_SLOPE:  # else no look wants any
                    usual_looks += [(like[curve], left / len(sizes)) for curve in sizes.values()]
                most_looks += [(like[curve], float(extra)) for curve in sizes.values()]
    done = len(plan.runs) - len(plan.todo)
    usual, most = least + usual_looks, least + searches + most_looks
    return Outlook(least, *(_at_most(sweep.config.sweep.budget, done, least, runs) for runs in (usual, most)))


def _ideal(sweep: Sweep, plan: Plan) -> Plan:
    """Return the plan at the end of a search in which every curve is a bowl, as in `Outlook.least`."""
    seed = sweep.config.sweep.seed[0]
    found = {sweep.run(curve, best, seed).curve: best for curve, best in plan.found.items()}
    last = {(curve.rule, curve.tuned): best for curve, best in plan.found.items()}

    def optimum(curve: Curve) -> float:
        return found[curve] if curve in found else last.get((curve.rule, curve.tuned), held_at(sweep.config, curve.tuned))

    return make_plan(sweep, lambda run: 2 + 0.05 * (run.value - optimum(run.curve)) ** 2)


def _at_most(budget: int | str | None, done: int, least: Counted, runs: Counted) -> Counted:
    """Return these as far as sweep.budget allows, if it is in runs."""
    if not isinstance(budget, int):
        return runs
    share = min(1.0, max(len(least), budget - done) / max(1.0, sum(n for _, n in runs)))
    return [(run, n * share) for run, n in runs]
