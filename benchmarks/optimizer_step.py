"""Time of one optimizer step on the parameters of a NanoGPT, ours over another author's, one thread, A B A B.

    python benchmarks/optimizer_step.py [--width 256 1024] [--only adamw muon] [--seconds 12] [--out FILE.json]

A round steps each side once, on copies of the same parameters with the same random gradients. Seconds are CPU seconds of this
process, so that neighbours on the machine steal none. The ratio is the median over rounds of ours over theirs, with quartiles;
< 1: ours is faster. Memory is kept by malloc as in this package's workers, for both sides.

Shampoo and SOAP are timed apart at a step that renews their roots or basis and at one that does not; above width 512 on
one block of the model, since their cost is linear in depth. The second table has what a step costs in training.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import adopt
import pytorch_optimizer
import torch
from torch import nn

from spectral_mup.cluster.worker_process import MALLOC
from spectral_mup.config.compose import load_config
from spectral_mup.optim.stacked import StackedOptimizer
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import hyperparameters, scale_run
from spectral_mup.util.system import machine
from spectral_mup.util.text import format_duration

VOCAB, BATCH, DECAY = 256, 8, 0.1
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Phase(NamedTuple):
    """A kind of step: the number of the step that is timed (None: any), and about how long both sides take at width 1024."""

    name: str
    step: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """One of our optimizers (a name in conf/optimizer) against others, and the ratio it must not exceed."""

    optimizer: str
    theirs: dict[str, Make]
    target: float | None = None
    overrides: list[str] = field(default_factory=list)
    phases: Sequence[Phase] = (Phase("step"),)
    note: str = ""


def sophia(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """pytorch-optimizer's SophiaH, its curvature from outside and given once."""
    optimizer = pytorch_optimizer.SophiaH(params, lr=1e-4, weight_decay=DECAY, update_period=10**9)
    optimizer.step(hessian=[p.grad.square() for p in params])  # type: ignore[union-attr]
    return optimizer


def theirs(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Make:
    return lambda params: make(params, lr=1e-4, weight_decay=DECAY, **options)


COMPARISONS = [
    Comparison("adamw", {"torch, fused, one group": theirs(torch.optim.AdamW, fused=True)}, target=1.05),
    Comparison(
        "muon", {"torch (bfloat16)": theirs(torch.optim.Muon)}, target=1.0,
        overrides=["optimizer.algorithms.muon.args.dtype=bfloat16"], note="matrices, ours in bfloat16 too",
    ),
    Comparison(
        "adopt",
        {f"torch-adopt, {k}": theirs(adopt.ADOPT, decouple=True, foreach=v) for k, v in (("loop", False), ("foreach", True))},
    ),
    Comparison("lamb", {"pytorch-optimizer": theirs(pytorch_optimizer.Lamb)}, note="no reference for its numbers"),
    Comparison("sophia", {"pytorch-optimizer SophiaH": sophia}, note="steps without new curvature"),
    Comparison(
        "shampoo", {"pytorch-optimizer": theirs(pytorch_optimizer.Shampoo, preconditioning_compute_steps=5)},
        phases=[Phase("step between", 21, 5), Phase("step with new roots", 25, 150)], note="matrices; theirs has no momentum",
    ),
    Comparison(
        "soap", {"pytorch-optimizer": theirs(pytorch_optimizer.SOAP, precondition_frequency=10)}, note="matrices",
        phases=[Phase("first call", 1, 70), Phase("step between", 12, 5), Phase("step with new basis", 11, 40)],
    ),
]  # fmt: skip


def build(
    width: int, depth: int, optimizer: str, overrides: Sequence[str] = ()
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A model with random gradients, and its optimizers as a run has them."""
    sweep = open_sweep(load_config([f"optimizer={optimizer}", f"sweep.width=[{width}]", *overrides]))
    run = sweep.run(Curve("spectral", width, depth), -10.0, 0)
    model = run.model.build(VOCAB, width, depth)
    scaling = scale_run(run, model, VOCAB)
    init_(model, scaling, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
    return model, make_optimizers(model, scaling, **hyperparameters(run))


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    """The same values and gradients in memory of their own."""
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(fresh, params, strict=True):
        p.grad = None if q.grad is None else q.grad.clone()
    return fresh


def set_age(optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
    """Make optimizers believe that they took that many steps."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(optimizer, StackedOptimizer):
                for p in group["params"]:
                    optimizer.state[p]["step"] = steps
            else:
                group["step"] = steps


def interleave(
    ways: dict[str, Callable[[], Any]], prepare: Callable[[str], Any], seconds: float, least: int = 4
) -> dict[str, list[float]]:
    """CPU seconds of each way by round; the first round warms up and is left out, unless there are fewer than three."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(taken[next(iter(ways))]) < least:
        for way, run in ways.items():
            prepare(way)
            start = time.process_time()
            run()
            taken[way].append(time.process_time() - start)
    return {way: t[1:] if len(t) > 2 else t for way, t in taken.items()}


def compare(comparison: Comparison, width: int, depth: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of the first table, a phase at a time."""
    _, optimizers = build(width, depth, comparison.optimizer, comparison.overrides)
    if any(isinstance(o, StackedOptimizer) for o in optimizers):  # AdamW on the other tensors is not compared
        optimizers = [o for o in optimizers if isinstance(o, StackedOptimizer)]
    params = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    sides = {"ours": optimizers} | {name: [make(copies(params))] for name, make in comparison.theirs.items()}
    ways = {name: lambda side=side: [o.step() for o in side] for name, side in sides.items()}
    for phase in comparison.phases:
        age = (lambda name, step=phase.step: set_age(sides[name], step - 1)) if phase.step is not None else lambda name: None
        taken = interleave(ways, age, seconds, 1 if phase.seconds * (width / 1024) ** 3 > 10 else 4)
        for name in comparison.theirs:
            ratios = [a / b for a, b in zip(taken["ours"], taken[name], strict=True)]
            spread = quantiles(ratios, method="inclusive")[::2] if len(ratios) > 1 else ratios * 2
            yield {
                "width": width, "depth": depth, "optimizer": comparison.optimizer, "phase": phase.name, "theirs": name,
                "ratio": median(ratios), "quartiles": spread,
                "rounds": len(ratios), "seconds_ours": median(taken["ours"]), "seconds_theirs": median(taken[name]),
                "target": comparison.target, "note": comparison.note,
            }  # fmt: skip


def forward_backward(width: int, depth: int, seconds: float) -> float:
    """CPU seconds of the gradient of one batch at float32."""
    model, _ = build(width, depth, "adamw")
    tokens = torch.randint(VOCAB, (2, BATCH, model.position.num_embeddings))  # type: ignore[union-attr]
    return median(interleave({"": lambda: model(*tokens).backward()}, lambda way: model.zero_grad(), seconds)[""])


def costs(rows: list[dict[str, Any]], gradient: float, depth: int) -> list[dict[str, Any]]:
    """Rows of the second table for one width: seconds of a step in training, over those of a batch's gradient and of AdamW."""
    by_optimizer: dict[str, dict[str, float]] = {}
    for row in rows:
        by_optimizer.setdefault(row["optimizer"], {})[row["phase"]] = row["seconds_ours"] * depth / row["depth"]
    adamw, table = by_optimizer.get("adamw", {}).get("step"), []
    for optimizer, phases in by_optimizer.items():
        if renewal := next((phase for phase in phases if phase.startswith("step with")), None):
            config = load_config([f"optimizer={optimizer}"])
            interval = config.optimizer.algorithms[optimizer].args["interval"]
            phases[f"step, mean at interval {interval}"] = phases["step between"] + (
                (phases[renewal] - phases["step between"]) / interval
            )
        table += [
            {
                "width": rows[0]["width"], "optimizer": optimizer, "phase": phase, "seconds": s, "over_gradient": s / gradient,
                "over_adamw": adamw and s / adamw,
            }
            for phase, s in phases.items()
        ]  # fmt: skip
    return table


def show(rows: list[dict[str, Any]], table: list[dict[str, Any]]) -> None:
    print("\nwidth  optimizer  phase                against                    ratio [quartiles]    rounds  seconds of ours")
    for r in rows:
        low, high = r["quartiles"]
        missed = f"  MISSES {r['target']}" if r["target"] and r["ratio"] > r["target"] else ""
        print(
            f"{r['width']:<5}  {r['optimizer']:<9}  {r['phase']:<19}  {r['theirs']:<25}  "
            f"{r['ratio']:.2f} [{low:.2f}, {high:.2f}]    {r['rounds']:>6}  {r['seconds_ours']:.4f}{missed}"
        )
    for optimizer, note in {r["optimizer"]: r["note"] for r in rows if r["note"]}.items():
        print(f"{optimizer}: {note}")
    print(f"\nwidth  optimizer  phase                     seconds     × gradient of {BATCH} sequences  × AdamW's step")
    for r in table:
        adamw = f"{r['over_adamw']:.2f}" if r["over_adamw"] else "-"
        print(
            f"{r['width']:<5}  {r['optimizer']:<9}  {r['phase']:<24}  "
            f"{r['seconds']:<10.4f}  {r['over_gradient']:<27.3f}  {adamw}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=[c.optimizer for c in COMPARISONS], help="these optimizers alone")
    parser.add_argument(
        "--seconds",
        type=float,
        default=12.0,
        help="for each measurement, but at least four rounds, one of what takes long (default 12)",
    )
    parser.add_argument("--out", type=Path, help="JSON file for all rows")
    args = parser.parse_args()
    if not MALLOC.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    warnings.simplefilter("ignore")  # torch-adopt calls functions that torch has deprecated
    torch.set_num_threads(1)
    about = {"machine": machine(), "torch": torch.__version__, "commit": commit(), "depth": args.depth, "batch": BATCH}
    print(", ".join(f"{k} {v}" for k, v in about.items()), flush=True)

    jobs = [(w, c) for w in args.width for c in COMPARISONS if not args.only or c.optimizer in args.only]
    expected = [sum(args.seconds + p.seconds * (w / 1024) ** 3 for p in c.phases) for w, c in jobs]
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    for i, (width, comparison) in enumerate(jobs):
        pace = (time.perf_counter() - begin) / sum(expected[:i]) if i else 1.0
        left = format_duration(pace * sum(expected[i:]))
        print(f"[{i + 1}/{len(jobs)}, about {left} left] width {width}, {comparison.optimizer}", file=sys.stderr, flush=True)
        rows += compare(comparison, width, 1 if len(comparison.phases) > 1 and width > 512 else args.depth, args.seconds)
    table = []
    for width in args.width:
        gradient = forward_backward(width, args.depth, args.seconds)
        table += costs([r for r in rows if r["width"] == width], gradient, args.depth)
    show(rows, table)
    if args.out:
        args.out.write_text(json.dumps(about | {"rows": rows, "costs": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
