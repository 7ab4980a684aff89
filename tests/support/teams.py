"""A run that two processes train together, and what one process makes of it."""

import json
from pathlib import Path

from spectral_mup.config.compose import load_config
from support.runs import TINY, first_point, run_point

PAIR = [*TINY, "rule=[spectral]", "sweep.width=[32]", "sweep.lr=[-6]", "lr.adaptive=false", "train.devices=2"]
LONG = [*PAIR, "train.steps=500", "cluster.checkpoint_seconds=0.2", "cluster.log_every=5"]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def alone(overrides: list[str], tmp: Path, corpus) -> tuple[str, list[float]]:
    """Run id and losses of the same RunConfig in this process; the team is no part of its id."""
    config = load_config([o for o in overrides if not o.startswith(("train.devices", "train.shard", "cluster.cpus"))])
    folder, _ = run_point(first_point(config), tmp / "alone", corpus)
    return folder.run_id, losses(folder.path)


def close(ours: list[float], theirs: list[float]) -> bool:
    return len(ours) == len(theirs) and all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(ours, theirs, strict=True))
