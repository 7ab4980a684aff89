"""When runs leave the plateau on which a model predicts each byte from the one before, as it has not learned positions yet.

    python benchmarks/plateau.py RUNS > FILE.csv

A row a finished run below the folder RUNS: family, optimizer, which of its init stds, multipliers, weight decay and hidden lr
are given or otherwise than 1 (weight decay: 0.1), depth, log2 lr, seed, validation loss, and the step from which the mean
training loss of SPAN steps is below LEVEL; empty if it never is.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_rows

LEVEL = 2.35  # nats a byte; the entropy of a byte given the one before is 2.45 on Shakespeare's plays
SPAN = 20


def left_plateau(losses: np.ndarray) -> int | None:
    """The first step from which SPAN steps have a mean loss below LEVEL."""
    means = np.convolve(losses, np.ones(SPAN) / SPAN, "valid") if len(losses) >= SPAN else np.array([])
    below = np.flatnonzero(means < LEVEL)
    return int(below[0]) if len(below) else None


def row_of(folder: RunFolder) -> dict[str, Any]:
    config, result = folder.read("config.json"), folder.result()
    assert config and result
    model, optimizer = config["model"], config["optimizer"]
    set_apart = {f"init_std.{key}": std for key, std in model["init_std"].items() if std is not None}
    set_apart |= {f"multipliers.{key}": factor for key, factor in model.get("multipliers", {}).items() if factor != 1}
    set_apart |= {f"weight_decay.{kind}": x for kind, x in optimizer["weight_decay"].items() if kind != "vector" and x != 0.1}
    hidden = optimizer["by_kind"]["hidden"]["lr"]
    set_apart |= {} if hidden == 1 else {"hidden lr": hidden}
    losses = np.array([row["loss"] for row in read_rows(folder.path / "metrics.jsonl")], float)
    return {
        "family": model["family"],
        "optimizer": optimizer["name"],
        "changed": ", ".join(f"{key} {value:.4g}" for key, value in set_apart.items()),
        "steps": config["train"]["steps"],
        "depth": config["depth"],
        "log2_lr": config["log2_lr"],
        "seed": config["seed"],
        "val_loss": result["val_loss"],
        "left_plateau": left_plateau(losses),
    }


def main(runs: Path) -> None:
    folders = [RunFolder(runs, path.parent.name) for path in runs.glob("*/result.json")]
    if not folders:
        sys.exit(f"{runs}: no finished run here; give the folder in which sweeps keep theirs, as in runs")
    table = pd.DataFrame([row_of(folder) for folder in folders]).astype({"left_plateau": "Int64"})
    order = ["family", "optimizer", "changed", "steps", "depth", "log2_lr", "seed"]
    table.sort_values(order).drop_duplicates().to_csv(sys.stdout, index=False, float_format="%.5g", lineterminator="\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
