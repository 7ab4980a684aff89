"""What probes add to a run at the default cadence, as a ratio of wall-clock with over without, A B A B, medians.

python benchmarks/probe_cost.py [--rounds 3]
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from spectral_mup import data
from spectral_mup.config.compose import load_config
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.training.run import train_run
from spectral_mup.util.system import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ways = {"with": load_config([]), "without": load_config(["probe.steps=[]"])}
    corpus = data.load(ways["with"].data.source, None, None)
    print(f"{machine()}, commit {commit()}, probe steps {ways['with'].probe.steps} of {ways['with'].train.steps}")
    for width in ways["with"].sweep.width:
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, config in ways.items():
                run = open_sweep(config).run(Curve("spectral", width, 2), -6.0, 0)
                with tempfile.TemporaryDirectory() as runs:
                    folder = RunFolder(Path(runs), run.run_id)
                    folder.write_config(run.to_json())
                    folder.claim()
                    start = time.perf_counter()
                    train_run(run, folder, corpus, device=torch.device("cpu"))
                    seconds[way].append(time.perf_counter() - start)
        ratio = median(seconds["with"]) / median(seconds["without"])
        print(f"width {width}: {median(seconds['with']):.1f} s with probes, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
