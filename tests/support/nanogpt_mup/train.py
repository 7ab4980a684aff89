"""Stands in for EleutherAI/nanoGPT-mup's train.py: takes its arguments, prints its lines, and trains nothing."""

import math
import pickle
import sys
from pathlib import Path

config = {}
exec(Path(sys.argv[1]).read_text(), config)
config |= {name.lstrip("-"): float(value) for name, value in (argument.split("=") for argument in sys.argv[2:])}
folder = Path(config["dataset"])
assert pickle.loads((folder / "meta.pkl").read_bytes())["vocab_size"] == 256
assert all((folder / f"{name}.bin").stat().st_size > 2 * config["block_size"] for name in ("train", "val"))
assert config["mup_width_multiplier"] == config["n_embd"] / 32 and config["n_embd"] == 32 * config["n_head"]
log2_lr = math.log2(config["learning_rate"])
print("step 0: train loss 5.5000, val loss 5.5000")
if log2_lr > -5:
    raise Exception("NaN loss")
print(f"step {config['max_iters']}: train loss 3.0000, val loss {3 + (log2_lr + 6) ** 2 / 100:.4f}")
