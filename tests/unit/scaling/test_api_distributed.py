"""Two processes on this machine train as one does: DistributedDataParallel and FSDP2, with torch's AdamW and our Muon."""

import json
import socket
import subprocess
import sys
import textwrap

import pytest
from support.processes import reaped

WORKER = """
import copy, json, sys, warnings
from datetime import timedelta

warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


from spectral_mup import init_, make_optimizers, param_groups, scale

rank, port = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60))


def build(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def shard(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def batch(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=g), torch.randint(0, 3, (16,), generator=g)


def descend(model, optimizers, mine):
    for step in range(3):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def loss(model):
    x, y = batch(9)
    return float(nn.functional.cross_entropy(model(x), y))


def run(optimizer, wrap, seed=0, lr=0.05):
    torch.manual_seed(rank)  # what modules draw by themselves differs; init_ must not
    with torch.device("meta"):
        base = build(16)
    model = build(33)  # rows that two processes cannot share evenly
    scalings = scale(model, base, optimizer=optimizer)
    for p in model.parameters():
        nn.init.zeros_(p)
    model = wrap(model)
    init_(model, scalings, seed=seed)
    if optimizer == "adamw":
        optimizers = [torch.optim.AdamW(param_groups(model, scalings, lr=lr, weight_decay=0.1))]
    else:
        optimizers = make_optimizers(model, scalings, lr=lr, weight_decay=0.1)
    alone = wrap is whole
    descend(model, optimizers, slice(0, 16) if alone else slice(8 * rank, 8 * rank + 8))
    return loss(model)


def whole(model):
    return model


found = {}
for optimizer in ("adamw", "muon", "lamb", "shampoo"):
    found[f"{optimizer} alone"] = run(optimizer, whole)
    found[f"{optimizer} fsdp2"] = run(optimizer, shard)
found["adamw ddp"] = run("adamw", DistributedDataParallel)
found["adamw another seed"] = run("adamw", shard, seed=1)
found["muon another lr"] = run("muon", shard, lr=0.06)
if rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, float]:
    """Loss after three steps by optimizer and way of training, from one pair of processes."""
    script = tmp_path_factory.mktemp("distributed") / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen([sys.executable, str(script), str(rank), str(port)], **pipes) for rank in (0, 1)]
    with reaped(*pair):
        said = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0][1] + said[1][1]
    return json.loads(said[0][0].splitlines()[-1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb", "shampoo"])
def test_sharded_training_is_that_of_one_process(losses, optimizer):
    assert losses[f"{optimizer} fsdp2"] == pytest.approx(losses[f"{optimizer} alone"], rel=1e-5)


def test_replicated_training_is_that_of_one_process(losses):
    assert losses["adamw ddp"] == pytest.approx(losses["adamw alone"], rel=1e-5)


def test_another_seed_or_lr_is_seen(losses):
    assert losses["adamw another seed"] != pytest.approx(losses["adamw alone"], rel=1e-3)
    assert losses["muon another lr"] != pytest.approx(losses["muon alone"], rel=1e-3)
