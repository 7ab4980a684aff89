"""How much sooner a verdict is reached: the field's way, the same grid with our trainer, and our search, each end to end.

    python benchmarks/time_to_verdict.py --nanogpt-mup CLONE [--share N] [--out FILE.json] [OVERRIDE ...]

The field's way is what the scripts of EleutherAI/nanoGPT-mup do: a loop over 12 learning rates × 3 seeds a width, one process a
run, here as many at once as there are cores, with one thread each (the fastest way for it), without checkpoints, evaluated at
the first step, which it cannot leave out, and at the last. Its trainer, model (tied, init 0.02) and µP; our corpus, sizes,
tokens, AdamW and length of schedule. Without a clone only the other two are measured.

`fixed` trains that grid with `launch.py lr.adaptive=false`, `search` is `launch.py` with its own search, to which OVERRIDE
goes, and both are judged by `analyze.py`. So field / fixed is what the trainer gives, fixed / search what the design gives.
Seconds are from the start of the first process to the verdict. Compare only where the search says the same, with an interval
that is not wider; what is printed says so.
"""

import argparse
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup import data
from spectral_mup.analysis.verdict import judge
from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import Config
from spectral_mup.runs.provenance import commit
from spectral_mup.util.system import machine, own_cores, package_root
from spectral_mup.util.text import table

REPOSITORY = "https://github.com/EleutherAI/nanoGPT-mup"
WAYS = {"field": "field: its trainer, fixed grid", "fixed": "ours, fixed grid", "search": "ours, own search"}


@dataclass(frozen=True)
class Grid:
    """What the field trains; `overrides` make our sweep the same one."""

    widths: tuple[int, ...] = (64, 128, 256)
    log2_lrs: tuple[int, ...] = tuple(range(-14, -2))  # as in mup_examples/mutransfer_lr_shakespeare_char of that repository
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[str, ...] = ("sweep=default", "rule=[spectral]")

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        return [(width, lr, seed) for width in self.widths for lr in self.log2_lrs for seed in self.seeds]


TINY = Grid(
    (32, 64), (-8, -6, -4), (0,),
    ("sweep=default", "rule=[spectral]", "sweep.width=[32,64]", "sweep.base_width=32", "sweep.lr=[-8,-6,-4]", "sweep.seed=[0]",
     "lr.budget=4", "train.steps=4", "train.warmup=1", "probe.steps=[1]", "train.eval_sequences=8", "cluster.workers=1"),
)  # fmt: skip


def write_corpus(config: Config, folder: Path) -> None:
    """Our tokens as the field's train.bin, val.bin and meta.pkl."""
    corpus = data.load(config.data.source, config.data.path, config.data.vocab_size)
    for name, tokens in (("train", corpus.train), ("val", corpus.val)):
        np.asarray(tokens).astype(np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.vocab_size}))


def field_settings(config: Config, folder: Path) -> dict[str, Any]:
    """Our config in the words of its train.py; of what is not ours (dtype, threads, evaluation), what is fastest."""
    model: Any = config.model
    t, adamw = config.train, config.optimizer.algorithms["adamw"]
    beta1, beta2 = adamw.args["betas"]
    return {
        "out_dir": str(folder), "dataset": str(folder), "device": "cpu", "dtype": "float32", "compile": False,
        "eval_interval": t.steps, "eval_iters": t.eval_sequences // t.batch_size, "log_interval": t.steps,
        "always_save_checkpoint": False, "never_save_checkpoint": True,
        "gradient_accumulation_steps": t.accumulate, "batch_size": t.batch_size, "block_size": model.context,
        "n_layer": config.sweep.depth[0], "bias": model.bias, "dropout": model.dropout,
        "max_iters": t.steps, "warmup_iters": t.warmup, "lr_decay_iters": t.steps, "min_lr": t.final_lr,
        "grad_clip": t.clip or 0.0, "beta1": beta1, "beta2": beta2, "weight_decay": config.optimizer.weight_decay["hidden"],
        "mup_enabled": True,
    }  # fmt: skip


def run_field(clone: Path, grid: Grid, runs: list[tuple[int, int, int]], folder: Path) -> pd.DataFrame:
    """Train these runs (width, log2 lr, seed), one process each, and read the table of their losses from what they print."""
    config = load_config(list(grid.overrides))
    model: Any = config.model
    write_corpus(config, folder)
    settings = field_settings(config, folder)
    (folder / "settings.py").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    commands, logs = [], [folder / f"{width}_{lr}_{seed}.log" for width, lr, seed in runs]
    for (width, lr, seed), log in zip(runs, logs, strict=True):
        own = f"--n_embd={width} --n_head={width // model.head_size} --mup_width_multiplier={width / grid.widths[0]}"
        call = f"{sys.executable} train.py {folder}/settings.py {own} --learning_rate={2.0**lr} --seed={seed}"
        commands.append(f"{call} > {log} 2>&1 || true")  # one that diverges ends with an error
    loop = ["xargs", "-d", "\n", "-P", str(own_cores()), "-I", "{}", "sh", "-c", "{}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(loop, input="\n".join(commands), text=True, check=True, cwd=clone, env=one_thread)
    losses = [final_loss(log.read_text(), config.train.steps) for log in logs]
    points = pd.DataFrame(runs, columns=["width", "log2_lr", "seed"]).assign(loss=losses, rule="mup")  # pyright: ignore
    return points.assign(status=["done" if math.isfinite(loss) else "diverged" for loss in losses])


def final_loss(log: str, steps: int) -> float:
    """The validation loss at the last step of a run of the field's, NaN if it diverged."""
    if found := re.search(rf"^step {steps}: train loss \S+, val loss (\S+)$", log, re.MULTILINE):
        return float(found[1])
    if "Exception: NaN loss" in log:
        return math.nan
    raise SystemExit(f"a run of the field's way failed:\n{log[-2000:]}")


def time_field(clone: Path, grid: Grid, share: int) -> dict[str, Any]:
    """With `share` > 1 only every share-th run is trained, its seconds stand for the rest, and nothing is judged."""
    runs = grid.runs[::share]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        points = run_field(clone, grid, runs, Path(folder))
        verdict = judge(points, base=grid.widths[0]) if share == 1 else None
        seconds = (time.perf_counter() - start) * len(grid.runs) / len(runs)
    losses = json.loads(str(points.to_json(orient="records")))  # with null for NaN
    row = {"seconds": seconds, "runs": len(grid.runs), "trained": len(runs), "losses": losses}
    if verdict is None:
        return row | {"verdict": None, "slope": None, "half": None}
    return row | _judged(verdict.verdict, verdict.slope, verdict.slope_lo, verdict.slope_hi)


def time_ours(overrides: list[str]) -> dict[str, Any]:
    """launch.py, then analyze.py without figures, as a user types them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*overrides, f"paths.runs={folder}/runs", f"paths.results={folder}/results"]
        start = time.perf_counter()
        for script, more in (("launch.py", []), ("analyze.py", ["figures.only=[]"])):
            subprocess.run([sys.executable, package_root() / script, *command, *more], stdout=sys.stderr, check=True)
        seconds = time.perf_counter() - start
        (results,) = Path(folder, "results").rglob("verdicts.json")
        (found,) = json.loads(results.read_text())["verdicts"]
        runs = len(pd.read_csv(results.with_name("curves.csv")))
    slope = [math.nan if found["slope"][key] is None else found["slope"][key] for key in ("estimate", "lo", "hi")]
    return {"seconds": seconds, "runs": runs, "trained": runs} | _judged(found["verdict"], *slope)


def _judged(verdict: str, slope: float, lo: float, hi: float) -> dict[str, Any]:
    known = math.isfinite(hi - lo)
    return {"verdict": verdict, "slope": slope if known else None, "half": (hi - lo) / 2 if known else None}


def compare(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios of seconds, and whether the search found what the others found, as precisely."""
    seconds = {way: found["seconds"] for way, found in ways.items()}
    ratios = {"design": seconds["fixed"] / seconds["search"]}
    if "field" in seconds:
        ratios |= {"trainer": seconds["field"] / seconds["fixed"], "end_to_end": seconds["field"] / seconds["search"]}
    search, fair = ways["search"], {}
    for way in ways.keys() - {"search"}:
        other = ways[way]
        narrow = None not in (search["half"], other["half"]) and search["half"] <= other["half"]
        fair[way] = {"same_verdict": search["verdict"] == other["verdict"], "interval_no_wider": narrow}
    return {"ratios": ratios, "fair": fair}


def show(result: dict[str, Any]) -> str:
    """The table for the screen."""
    cells, head = [], ["way", "seconds", "runs", "verdict", "slope ± half width"]
    for way, found in result["ways"].items():
        part = f" (from {found['trained']} runs)" * (found["trained"] < found["runs"])
        slope = "-" if found["half"] is None else f"{found['slope']:+.2f} ± {found['half']:.2f}"
        verdict = found["verdict"] or "not judged"
        cells.append([WAYS[way] + part, f"{found['seconds']:.0f}", str(found["runs"]), verdict, slope])
    lines = [f"{result['machine']}, commit {result['commit']}", *table(cells, header=head, right=range(1, 3))]
    lines += [f"{name.replace('_', ' ')}: × {ratio:.1f}" for name, ratio in result["ratios"].items()]
    for way, fair in result["fair"].items():
        unlike = [name.replace("_", " ") for name, holds in fair.items() if not holds]
        lines += [f"no fair ratio to '{WAYS[way]}', because this is false: {', '.join(unlike)}"] * bool(unlike)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt-mup", type=Path, metavar="CLONE", help=f"a clone of {REPOSITORY}")
    parser.add_argument("--share", type=int, default=1, metavar="N", help="train every N-th of the field's runs and scale up")
    parser.add_argument("--tiny", action="store_true", help="two widths, three lrs, four steps: whether it works at all")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("overrides", nargs="*", help="of our search, as sweep.seed=[0,1,2]")
    args = parser.parse_args()
    grid = TINY if args.tiny else Grid()
    ways = {}
    if args.nanogpt_mup:
        ways["field"] = time_field(args.nanogpt_mup, grid, args.share)
    else:
        print(f"the field's way is left out: git clone {REPOSITORY}, then --nanogpt-mup nanoGPT-mup", file=sys.stderr)
    lrs, seeds = (str(list(values)).replace(" ", "") for values in (grid.log2_lrs, grid.seeds))
    ways["fixed"] = time_ours([*grid.overrides, "lr.adaptive=false", f"sweep.lr={lrs}", f"sweep.seed={seeds}"])
    ways["search"] = time_ours([*grid.overrides, *args.overrides])
    result = {"machine": machine(), "commit": commit(), "ways": ways} | compare(ways)
    print(show(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
