"""Laws of sweeps that tune another key than lr, two by turns, or follow an optimum over steps and batch size."""

import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.cli import RESULT, call
from support.runs import TINY, build_run, optimizers_of, run_point

from spectral_mup.analysis.collect import collect
from spectral_mup.analysis.results import labels, read_results
from spectral_mup.cluster.slurm.submission import open_submission, prepare
from spectral_mup.config.compose import load_config
from spectral_mup.config.parse import walk
from spectral_mup.config.schema import to_plain
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import TURNS, Sweep, open_sweep
from spectral_mup.search.plan import Plan, make_plan, remaining_curves
from spectral_mup.theory.growth import KINDS

HELD = "sweep.lr=[-6]"
MINE = """
import torch
class Mine(torch.optim.SGD):
    def __init__(self, params, lr, gain=1.0, **args):
        super().__init__(params, lr, **args)
        self.gain = gain
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(self.gain)
        super().step(closure)
"""
DECLARED = """
defaults: [sgd, _self_]
hidden: mine
embedding: mine
readout: mine
vector: mine
algorithms:
  mine: {target: mine.Mine, update_norm: {c: 1, a: 1, m_out: -0.5, m_in: 0.5}, eps_law: {}, eps: null, lr: 1.0, lr_shape: {},
         args: {gain: 1.0}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with an optimizer of the user's own."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf/optimizer/mine.yaml").write_text(DECLARED)


def group_of(run: RunConfig, tensor: str) -> dict:
    """The optimizer's group of a tensor, as the run begins."""
    optimizers = optimizers_of(*build_run(run), run)
    return next(g for o in optimizers for g in o.param_groups if tensor in g["names"])


def base_std(tensor: str) -> Callable[[RunConfig], float]:
    """Of a table, in the base model, as it is drawn."""

    def of(run: RunConfig) -> float:
        model, scaling = build_run(run)
        assert model.get_parameter(tensor).std().item() == pytest.approx(scaling.base_std[tensor], rel=0.1)
        return scaling.base_std[tensor] or 0.0

    return of


def forward(name: str) -> Callable[[RunConfig], float]:
    """Its factor in the forward pass of the built model."""

    def of(run: RunConfig) -> float:
        model = build_run(run)[0]
        block: Any = model.blocks[0]
        assert block.branch == model.multipliers.branch and block.attention.scaling == model.multipliers.attention
        return getattr(model.multipliers, name) * (block.attention.head_dim**0.5 if name == "attention" else 1)

    return of


# key as the user gives it: overrides, where config.json has it, the number that the run trains with, what that is of 2**value
TUNED: dict[str, tuple[list[str], str, Callable[[RunConfig], float], Callable[[float], float]]] = {
    "lr": ([], "log2_lr", lambda r: group_of(r, "readout.weight")["base_lr"], float),
    "optimizer.adamw.lr": (["optimizer=muon"], "optimizer.by_kind.{}.lr",
        lambda r: group_of(r, "readout.weight")["base_lr"], lambda x: x * 2.0**-6),
    "optimizer.weight_decay.hidden": ([], "optimizer.weight_decay.hidden",
        lambda r: group_of(r, "blocks.0.mlp.up.weight")["weight_decay"], float),
    "model.init_std.embedding": ([], "model.init_std.embedding", base_std("token.weight"), float),
    "model.init_std.position": ([], "model.init_std.position", base_std("position.weight"), float),
    "optimizer.mine.args.gain": (["optimizer=mine"], "optimizer.by_kind.{}.args.gain",
        lambda r: optimizers_of(*build_run(r), r)[0].gain, float),  # type: ignore[attr-defined]
    **{
        f"model.multipliers.{name}": (["model.bias=true"], f"model.multipliers.{name}", forward(name), float)
        for name in ("embedding", "attention", "branch", "logits")
    },
    "train.warmup": (["train.steps=100", "train.warmup=16"], "train.warmup", lambda r: r.train.warmup, round),
}  # fmt: skip


@pytest.mark.parametrize("name", TUNED)
def test_runs_differ_in_the_key_alone_and_train_with_it(name, project):
    overrides, where, trained, expected = TUNED[name]
    argv = [*TINY, f"sweep.tune={name}", *([] if name == "lr" else [HELD]), *overrides, "sweep.width=[32]", "rule=[spectral]"]
    plan = make_plan(open_sweep(load_config(argv)), lambda run: None)
    assert len(plan.runs) == len({run.run_id for run in plan.runs}) == 3
    for run in plan.runs:
        assert trained(run) == pytest.approx(expected(2.0**run.value))
    flat = [dict(walk(run.to_json())) for run in plan.runs]
    every = {key for one in flat for key in one if not isinstance(one[key], dict)}
    varying = {key for key in every if len({repr(one.get(key)) for one in flat}) > 1}
    assert varying and varying <= {where.format(kind) for kind in KINDS}


def test_a_key_of_ones_own_optimizer_decides_what_it_learns(project, corpus, tmp_path):
    """Through the plan to a result: the same lr and seed, another gain."""
    sweep = open_sweep(load_config([*TINY, "sweep.tune=optimizer.mine.args.gain", HELD, "optimizer=mine", "sweep.width=[32]"]))
    losses = [run_point(run, tmp_path / "runs", corpus)[1]["val_loss"] for run in make_plan(sweep, lambda run: None).runs]
    assert len(set(losses)) == 3 and losses[-1] < losses[0]


def test_ids_of_a_sweep_of_lrs_are_as_ever():
    for overrides, ids in {
        (): ["15dc3bce1917f035", "c88a8c520dcfce29"],
        ("optimizer=muon", "model=llama2", "optimizer.algorithms.adamw.lr=0.25"): ["f52b82c4254317a4", "112818cb7f8562b8"],
    }.items():
        for more in ([], ["sweep.tune=[lr]"], ["sweep.tune={lr:[-9,-7,-5]}"]):
            runs = make_plan(Sweep(load_config([*overrides, *more]), "text"), lambda run: None).runs
            assert [run.run_id for run in runs[:2]] == ids


def test_a_key_at_its_own_value_is_the_run_of_a_sweep_of_lrs(tiny):
    at = Curve("spectral", 64, 2)
    usual = open_sweep(tiny("optimizer=muon", QUARTER)).run(at, -6, 0)
    tuned = open_sweep(tiny("optimizer=muon", QUARTER, "sweep.tune=optimizer.adamw.lr", HELD))
    other = replace(at, tuned="optimizer.adamw.lr", held=(("lr", -6.0),))
    assert tuned.run(other, -2, 0) == usual != tuned.run(other, -1, 0)
    assert str(tuned.run(other, -1, 0)) == "spectral width 64 depth 2 lr 2^-6 optimizer.adamw.lr 2^-1 seed 0"
    longer = open_sweep(tiny("sweep.steps=[24]")).run(Curve("base", 32, 2, steps=24), -6, 0)
    alone = open_sweep(tiny("train.steps=24", "train.warmup=4")).run(Curve("spectral", 32, 2), -6, 0)
    assert longer == alone and longer.cost == 2 * open_sweep(tiny()).run(Curve("spectral", 32, 2), -6, 0).cost


def test_a_value_out_of_bounds_is_a_wall(tiny):
    """The best momentum tested is next to 1, and no run is asked for beyond."""
    name = "optimizer.muon.args.momentum"
    sweep = open_sweep(
        tiny("optimizer=muon", f"sweep.tune={{{name}:[-2,-1,-0.25]}}", HELD, "rule=[spectral]", "sweep.width=[32]")
    )
    plan = finished(sweep, lambda run: 3 - run.value)
    values = sorted({run.value for run in plan.runs})
    assert max(values) == -0.25 and plan.unbracketed == [] and set(plan.found.values()) == {-0.25}
    assert not sweep.possible(next(iter(plan.curves)), 0)


# --- by turns ----------------------------------------------------------------------------------------------------------


def finished(sweep: Sweep, loss: Callable[[RunConfig], float], pick=lambda todo: todo) -> Plan:
    """The plan after all that it asks for is done, a `pick` of it at a time."""
    done: dict[str, float] = {}

    def outcome(run: RunConfig) -> float | None:
        return done.get(run.run_id)

    while todo := make_plan(sweep, outcome).todo:
        done |= {run.run_id: loss(run) for run in pick(todo)}
    plan = make_plan(sweep, outcome)
    assert not plan.open and remaining_curves(sweep, plan) == 0
    return plan


def numbers(run: RunConfig) -> tuple[float, float]:
    """log2 of Muon's lr, and of AdamW's in its units."""
    return run.log2_lr, math.log2(run.optimizer.algorithms["adamw"].lr)


def coupled(run: RunConfig) -> float:
    """The best lr falls with its partner's; together best at (-7, 0)."""
    lr, partner = numbers(run)
    return 3 + 0.05 * (lr + 7 + 0.6 * partner) ** 2 + 0.04 * partner**2


QUARTER = "optimizer.algorithms.adamw.lr=0.25"
BY_TURNS = ["optimizer=muon", QUARTER, "sweep.tune=[lr,optimizer.adamw.lr]", "sweep.width=[32,64,128]"]


def test_two_keys_are_tuned_by_turns_and_each_judged_with_the_other_held(tiny):
    sweep = open_sweep(tiny(*BY_TURNS))
    one_by_one = [random.Random(order).choice for order in range(2)]
    ends = [finished(sweep, coupled), *(finished(sweep, coupled, lambda todo, of=one: [of(todo)]) for one in one_by_one)]
    assert all({*plan.runs} == {*ends[0].runs} and plan.found == ends[0].found for plan in ends)
    plan = ends[0]
    assert [curve.tuned for curve in plan.turns[:3]] == ["lr", "optimizer.adamw.lr", "lr"] and len(plan.turns) <= TURNS
    assert plan.turns[0].held == (("optimizer.adamw.lr", -2.0),)  # as the config has it
    assert all((c.rule, c.width, c.depth) == ("base", 32, 2) for c in plan.turns)
    for tuned, other, best in (("lr", "optimizer.adamw.lr", -7), ("optimizer.adamw.lr", "lr", 0)):
        curves = plan.judged(tuned)
        assert [(c.rule, c.width) for c in curves] == [(r, w) for r in ("spectral", "standard") for w in (32, 64, 128)]
        (held,) = {c.held for c in curves}
        assert dict(held).keys() == {other} and all(abs(plan.found[c] - best) <= 0.75 for c in curves)
        at = {round(numbers(run)[other != "lr"], 9) for runs in curves.values() for run in runs}
        assert at == {*dict(held).values()}


def test_turns_end_though_the_optimum_keeps_moving(tiny):
    """Along a valley that falls for ever, each turn finds its key two octaves further on."""
    sweep = open_sweep(tiny(*BY_TURNS, "rule=[spectral]", "lr.budget=30"))

    def loss(run: RunConfig) -> float:
        lr, partner = numbers(run)
        return 9 + 0.05 * (lr - partner + 4) ** 2 - 0.1 * (lr + partner)

    plan = finished(sweep, loss)
    assert len(plan.turns) == TURNS and len(plan.judged("lr")) == 3


def test_a_plan_by_turns_says_what_is_left(tiny):
    sweep = open_sweep(tiny(*BY_TURNS))
    plan = make_plan(sweep, lambda run: None)
    assert len(plan.curves) == 1 and plan.judged("lr") == {} and remaining_curves(sweep, plan) == 2 * 2 * 3


# --- steps and batch size ----------------------------------------------------------------------------------------------

STAR = ["sweep.width=[32,64,128]", "sweep.steps=[6,24]", "sweep.batch_size=[16,8]", "sweep.depth=[2,3]"]


def test_steps_and_batch_sizes_vary_at_the_base_alone_for_all_rules_at_once(tiny):
    sweep = open_sweep(tiny(*STAR, "lr.adaptive=false"))
    plan = make_plan(sweep, lambda run: None)
    sizes = {curve: {tuple(run.sizes.values()) for run in runs} for curve, runs in plan.curves.items()}
    assert all(len(of_curve) == 1 for of_curve in sizes.values())
    beside = [size for of_curve in sizes.values() for size in of_curve if size[2:] != (12, 4)]
    assert sorted(beside) == [(32, 2, 6, 4), (32, 2, 12, 8), (32, 2, 12, 16), (32, 2, 24, 4)]
    assert len(plan.runs) == 3 * (1 + 2 * 5 + 4)  # the base once, five other models under two rules, four of the star
    assert {run.train.warmup for run in plan.runs if run.train.steps == 24} == {4}
    assert sweep.axes == ["width", "depth", "steps", "batch_size"] and sweep.warnings() == [
        "no verdict over depth: a slope needs 3 sizes, here are 2; give more in sweep.depth"
    ]


def test_a_sweep_over_steps_alone_trains_no_rule(tiny):
    sweep = open_sweep(tiny("sweep.width=[32]", "sweep.steps=[6,24]"))
    plan = finished(sweep, lambda run: 3 + (run.log2_lr + 6) ** 2)
    assert [str(curve) for curve in plan.curves] == [f"base width 32 depth 2 steps {n}" for n in (6, 12, 24)]


def test_points_have_every_size_and_what_was_tuned_also_where_nothing_ran(tiny, tmp_path):
    config = tiny(*STAR, "lr.adaptive=false", "optimizer=muon", "sweep.tune=optimizer.adamw.lr", HELD)
    points = collect(make_plan(open_sweep(config), lambda run: None).curves, Results(tmp_path))
    assert set(points["status"]) == {"missing"} and set(points["tuned"]) == {"optimizer.adamw.lr"}
    assert set(points["value"]) == {-2, 0, 2} and set(points["log2_lr"]) == {-6}
    assert not points[["width", "depth", "steps", "batch_size"]].isna().any(axis=None)


def test_warnings_of_what_no_result_could_mend(tiny):
    few = open_sweep(tiny("sweep.width=[32,64]", "lr.adaptive=false", "sweep.lr=[-6]")).warnings()
    assert few[0] == "no verdict over width: a slope needs 3 sizes, here are 2; give more in sweep.width"
    assert few[1].startswith(
        "no verdict about lr: 1 value cannot bracket an optimum; give three or more, or set lr.adaptive=true"
    )
    assert open_sweep(tiny("sweep.width=[32,64,128]", "sweep.seed=[0]")).warnings() == []


# --- from a command line to results ------------------------------------------------------------------------------------


def test_a_submission_gives_its_runs_again(tiny, tmp_path):
    """By turns, over steps and batch sizes: what an array task makes of the folder are the runs that were submitted."""
    config = tiny(*BY_TURNS, *STAR[1:3])
    sweep = open_sweep(config)
    runs = [*finished(sweep, coupled).runs]
    folder = prepare(tmp_path, json.loads(json.dumps(to_plain(config))), [runs], sweep.fingerprint, "code").path
    assert open_submission(folder).runs(0) == runs


def test_two_keys_and_three_axes_from_the_command_line(tiny_overrides, undraw):
    undraw()
    argv = [*tiny_overrides, *BY_TURNS, *STAR[1:3], "rule=[spectral]"]
    code, screen, error = call("launch", *argv, "action=plan")
    assert (code, error) == (
        0,
        "",
    ) and "\n  base width 32 depth 2, optimizer.adamw.lr 2^-2: lr 2^[-8, -6, -4] × 1 seed" in screen
    config = load_config(argv)
    plan = finished(open_sweep(config), coupled)
    for run in plan.runs:
        folder = RunFolder(Path(config.paths.runs), run.run_id)
        folder.write_config(run.to_json())
        folder.claim()
        folder.append("norms.jsonl", [])
        folder.finish(RESULT | {"val_loss": coupled(run), "steps": run.train.steps})
    code, screen, error = call("analyze", *argv)
    assert (code, error) == (0, "") and "optimizer.adamw.lr, by turns at the base: 2^" in screen
    for axis in ("width", "steps", "batch size"):
        assert screen.count(f"Over {axis}, at ") == 2
    results = Path(config.paths.results) / "tiny"
    below = {str(path.parent.relative_to(results)) for path in results.rglob("verdicts.json")}
    assert below == {
        key
        for top in (".", "optimizer.adamw.lr")
        for key in (top, *(f"{top}/{a}".removeprefix("./") for a in ("steps", "batch_size")))
    }
    curves = pd.read_csv(results / "optimizer.adamw.lr/steps/curves.csv")
    assert set(curves["tuned"]) == {"optimizer.adamw.lr"} and set(curves["steps"]) == {6, 12, 24}
    assert not {*pd.read_csv(results / "curves.csv")["held"]} & {*curves["held"]}
    optima = pd.read_csv(results / "optimizer.adamw.lr/optima.csv")
    assert (optima["log2_lr"].abs() < 0.5).all() and set(optima["tuned"]) == {"optimizer.adamw.lr"}
    assert "\nlr*: log2 of the best learning rate. Regret: cost of the lr tuned at width 32.\n" in screen
    assert "\nbest: log2 of the best optimizer.adamw.lr. Regret: cost of the optimizer.adamw.lr tuned at width 32.\n" in screen
    both = read_results(results)[0], read_results(results / "optimizer.adamw.lr")[0]
    assert labels(both) == ["muon", "muon, optimizer.adamw.lr"]
    assert both[1].verdicts[0].optima[32].log2_lr == pytest.approx(optima["log2_lr"][0], abs=1e-6)
