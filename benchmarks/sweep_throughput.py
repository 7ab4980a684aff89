"""How much sooner a sweep ends here than the usual way, measured in one interleaved run.

    python benchmarks/sweep_throughput.py [--rounds 2] [--out FILE.json]

The usual way: one fresh process a run, one after the other, eager float32, torch's default threads and unfused AdamW.
Ours: resident workers with one thread each and the fused step, (a) at float32, (b) with `auto` precision and compilation.
A round trains a block of the default sweep's runs (widths in the sweep's proportion) each way, A B C A B C.

Prints ratios of medians, the losses' largest difference and the machine.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from spectral_mup.cluster.local import run_local
from spectral_mup.cluster.progress import Event
from spectral_mup.config.compose import load_config
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import Sweep, open_sweep, result_reader
from spectral_mup.util.system import machine

BLOCK = {64: 4, 128: 3, 256: 3}  # widths, about as the default sweep trains them
USUAL = ["train.precision=float32", "train.compile=false", "optimizer.algorithms.adamw.args.fused=false"]
WAYS = {"usual": USUAL, "float32": ["train.precision=float32", "train.compile=false"], "auto": []}


def block(sweep: Sweep) -> list[RunConfig]:
    """Runs near the optimum, largest first."""
    lrs_and_seeds = [(-6.0, 0), (-6.0, 1), (-6.5, 0), (-6.5, 1)]
    runs = [sweep.run(Curve("spectral", w, 2), lr, seed) for w, n in BLOCK.items() for lr, seed in lrs_and_seeds[:n]]
    return sorted(runs, key=lambda run: -run.width)


def train_alone(run_file: str, root: str) -> None:
    """What a fresh process of the usual way does."""
    import torch

    from spectral_mup import data
    from spectral_mup.training.run import train_run

    run: RunConfig = pickle.loads(Path(run_file).read_bytes())
    folder = RunFolder(Path(root), run.run_id)
    folder.write_config(run.to_json())
    folder.claim()
    train_run(run, folder, data.load(run.data.source, None, run.data.vocab_size), device=torch.device("cpu"))


def run_usual(runs: list[RunConfig], root: Path) -> dict[int, list[float]]:
    """Seconds of each run by width."""
    seconds: dict[int, list[float]] = {}
    for run in runs:
        file = root / f"{run.run_id}.pickle"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(run))
        start = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--one", str(file), str(root)], check=True)
        seconds.setdefault(run.width, []).append(time.perf_counter() - start)
    return seconds


def run_ours(overrides: list[str], runs: list[RunConfig], root: Path) -> dict[int, list[float]]:
    """Seconds of each run by width, as its worker took them."""
    config = load_config([*overrides, f"paths.runs={root}"])
    outcome = result_reader(root)
    seconds: dict[int, list[float]] = {}

    def note(event: Event) -> None:
        if event.kind == "done":
            seconds.setdefault(event.run.width, []).append(event.payload["seconds"])

    failed = run_local(config, lambda: [run for run in runs if outcome(run) is None], note)
    assert not failed, failed
    return seconds


def compare(rounds: int) -> dict:
    """Wall seconds and losses of the block each way, A B C A B C."""
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    per_run: dict[str, dict[int, list[float]]] = {way: {} for way in WAYS}
    losses: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for number in range(rounds):
        for way, overrides in WAYS.items():
            runs = block(open_sweep(load_config(overrides)))
            with tempfile.TemporaryDirectory() as folder:
                root, start = Path(folder), time.perf_counter()
                seconds = run_usual(runs, root) if way == "usual" else run_ours(overrides, runs, root)
                walls[way].append(time.perf_counter() - start)
                for width, values in seconds.items():
                    per_run[way].setdefault(width, []).extend(values)
                for run in runs:
                    key = f"{run.width} {run.log2_lr} {run.seed}"
                    losses[way][key] = RunFolder(root, run.run_id).result()["val_loss"]  # type: ignore[index]
            print(f"round {number + 1}, {way}: {walls[way][-1]:.0f} s for {len(runs)} runs", flush=True)
    usual = median(walls["usual"])
    result = {
        "machine": machine(), "commit": commit(), "block": BLOCK, "walls": walls,
        "seconds_a_run": {way: {w: median(v) for w, v in by.items()} for way, by in per_run.items()},
        "ratio": {way: usual / median(walls[way]) for way in WAYS},
        "largest_loss_difference": {
            way: max(abs(losses[way][k] - losses["usual"][k]) for k in losses["usual"]) for way in WAYS
        },
        "seed_noise": seed_noise(losses["usual"]),
    }  # fmt: skip
    print(f"\n{result['machine']}, commit {result['commit']}; wall-clock of the usual way over ours, medians of {rounds}:")
    for way, name in (("float32", "(a) float32"), ("auto", "(b) auto")):
        difference = result["largest_loss_difference"][way]
        print(f"  {name:12s} {result['ratio'][way]:.2f}   largest difference of a loss {difference:.4f}")
    print(f"  (two seeds at one width and lr differ by {result['seed_noise']:.4f}, median)")
    for way in WAYS:
        print(f"  seconds a run, {way}: " + ", ".join(f"width {w} {s:.1f}" for w, s in result["seconds_a_run"][way].items()))
    return result


def seed_noise(losses: dict[str, float]) -> float:
    """Median difference of two seeds' losses at one width and lr, the yardstick for the differences above."""
    pairs: dict[str, list[float]] = {}
    for key, loss in losses.items():
        pairs.setdefault(key.rpartition(" ")[0], []).append(loss)
    return median(abs(v[0] - v[1]) for v in pairs.values() if len(v) == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each way is timed (default 2)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        train_alone(*args.one)
    else:
        result = compare(args.rounds)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
