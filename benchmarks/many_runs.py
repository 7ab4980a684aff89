"""Seconds of analyze.py and of action=plan on ten thousand finished runs, that nobody trained: cold, then warm.

    python benchmarks/many_runs.py [--seeds 50] [--warm 3] [--folder DIR]

20 learning rates × 50 seeds × 5 widths × 2 rules: losses are parabolas of the lr with noise, norms as many as a NanoGPT of
depth 2 has at the default probe steps. Cold: nothing is cached but by the disk; warm: the median of the later calls, which find
nothing changed. The folders (450 MB, some minutes to write) are made in DIR unless it has them, by default in a temporary one.
"""

import argparse
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from spectral_mup.config.compose import load_config
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan
from spectral_mup.util.system import machine

ROOT = Path(__file__).resolve().parents[1]
LRS = [-12 + 0.5 * i for i in range(20)]
TENSORS = {  # of a NanoGPT: (kind, fan_out and fan_in over the width, 0: 256 whatever the width)
    "token": ("embedding", 1, 0),
    "position": ("embedding", 1, 0),
    **{f"blocks.{i}.attention.{name}": ("hidden", 1, 1) for i in (0, 1) for name in ("query", "key", "value", "out")},
    **{f"blocks.{i}.mlp.{name}": ("hidden", *of) for i in (0, 1) for name, of in {"up": (4, 1), "down": (1, 4)}.items()},
    "readout": ("readout", 0, 1),
}
FEATURES = {name: kind for name, (kind, _, _) in TENSORS.items() if name != "readout"}
FEATURES |= {"blocks.0": "hidden", "blocks.1": "hidden", "logits": "readout"}


def overrides(folder: Path, seeds: int) -> list[str]:
    """The sweep; its base is not one of its runs, or both rules would share a fifth of theirs."""
    lists = {"sweep.width": [64, 128, 256, 512, 1024], "sweep.lr": LRS, "sweep.seed": list(range(seeds))}
    chosen = [f"{key}={values}".replace(" ", "") for key, values in lists.items()]
    paths = [f"paths.{name}={folder / name}" for name in ("runs", "results")]
    return [*chosen, "lr.adaptive=false", "sweep.base_width=32", "sweep.name=many", "data=pydoc", *paths]


def finish(run: RunConfig, runs: Path) -> None:
    """Write a run's folder: under `standard` the optimum falls by half an octave a doubling of the width, and norms grow."""
    rng, folder, standard = np.random.default_rng(int(run.run_id, 16)), RunFolder(runs, run.run_id), run.rule.name == "standard"
    doublings = math.log2(run.width / 64)
    octaves = run.log2_lr + 7 + 0.5 * doublings * standard
    diverged = octaves > 4
    folder.write_config(run.to_json())
    folder.claim()
    grown = 2.0 ** (run.log2_lr + 7 + 0.5 * doublings * standard)
    folder.append("norms.jsonl", [row for step in (0, *run.probe.steps) for row in norm_rows(step, run.width, grown, rng)])
    loss = 3 - 0.1 * doublings + 0.01 * octaves**2 + rng.normal(0, 0.005)
    steps = 300 if diverged else run.train.steps
    folder.finish(
        {
            "status": "diverged" if diverged else "done", "diverged_step": steps if diverged else None, "steps": steps,
            "val_loss": None if diverged else loss, "train_loss": None if diverged else loss - 0.1,
            "tokens": 4096 * steps, "epochs": steps / 1000, "parameters": 24 * run.width**2, "precision": "float32",
            "compile": "false", "corpus": {"name": "pydoc", "sha256": "0" * 64, "train_tokens": 450_000, "val_tokens": 50_000},
        }
    )  # fmt: skip


def norm_rows(step: int, width: int, grown: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What a probe writes at a step; changes are `grown`, give or take a hundredth."""
    rows = []
    for name, kind in FEATURES.items():
        change = 0.01 * step * grown * math.exp(rng.normal(0, 0.01))
        rows.append({"step": step, "name": name, "what": "feature", "kind": kind, "rms": 1.0 + change, "delta_rms": change})
    for name, (kind, *shape) in TENSORS.items():
        out, fan_in = (times * width or 256 for times in shape)
        row = {"step": step, "name": f"{name}.weight", "what": "tensor", "kind": kind, "fan_out": out, "fan_in": fan_in}
        row |= {"multiplier": 1.0, "weight_norm": math.sqrt(out / fan_in), "weight_alignment": rng.uniform(0.2, 0.4)}
        if step:
            update = 0.1 * grown * math.sqrt(out / fan_in) * math.exp(rng.normal(0, 0.01))
            row |= {"lr": grown * 2.0**-7, "update_norm": update, "update_stable_rank": rng.uniform(3, 5)}
            row |= {"grad_norm": rng.uniform(0.01, 0.1), "grad_stable_rank": rng.uniform(1, 3)}
            row |= {"update_alignment": rng.uniform(0.5, 0.9)}
        rows.append(row)
    return rows


def seconds(script: str, *argv: str) -> tuple[float, float]:
    """Seconds of a command, which must succeed: on the clock, and of the processor, from which neighbours steal less."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, ROOT / script, *argv], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path, seeds: int, warm: int) -> None:
    """Make the run folders that lack, and print the seconds."""
    argv = overrides(folder, seeds)
    runs = make_plan(open_sweep(load_config(argv)), lambda run: None).todo
    print(f"{machine()}, commit {commit()}, {len(runs)} runs", flush=True)
    for run in runs:
        if RunFolder(folder / "runs", run.run_id).result() is None:
            finish(run, folder / "runs")
    shutil.rmtree(folder / "results", ignore_errors=True)
    commands = {"action=plan": ["launch.py", *argv, "action=plan"], "analyze.py": ["analyze.py", *argv]}
    cold = {name: [seconds(*command)] for name, command in commands.items()}  # in this order: analyze.py leaves the cache
    for name, command in commands.items():
        for state, taken in {"cold": cold[name], "warm": [seconds(*command) for _ in range(warm)]}.items():
            clock, cpu = map(median, zip(*taken, strict=True))
            print(f"{name}, {state}: {clock:.1f} s, {cpu:.1f} s of the processor", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(args.folder or Path(temporary), args.seeds, args.warm)


if __name__ == "__main__":
    main()
