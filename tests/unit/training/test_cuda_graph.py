"""A replayed step is the step itself, whatever the optimizer; on a CPU, where a tape stands for the graph."""

import json

import numpy as np
import pytest
import torch
from support import tape
from support.runs import bury, first_point, run_point

from spectral_mup.config.compose import ConfigError
from spectral_mup.data import Shards
from spectral_mup.optim.lamb import LAMB
from spectral_mup.training import cuda_graph
from spectral_mup.training.text import StaticText, text_batches

CASES = {
    "adamw": ["train.clip=0.5", "train.accumulate=2"],
    "adopt": ["model=llama2"],
    "lamb": ["model.dropout=0.1"],
    "muon": ["train.weight_decay=independent"],
    "sophia": ["optimizer.algorithms.sophia.args.hessian_interval=4"],
    "shampoo": ["optimizer.algorithms.shampoo.args.interval=5", "optimizer.algorithms.shampoo.args.betas=[0.9,0.8]"],
    "soap": ["optimizer.algorithms.soap.args.interval=4"],
}
EAGER = {"adopt": 1, "shampoo": 5 + 4, "soap": 6}  # steps of 24 that are not steady


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """Let a tape be the graph; returns the numbers of the steps that were replayed, all runs together."""
    replayed: list[int] = []

    def capture(step, device):
        replay = tape.capture(step, device)
        return lambda: (replayed.append(len(replayed)), replay())

    monkeypatch.setattr(cuda_graph, "has_graphs", lambda device: True)
    monkeypatch.setattr(cuda_graph, "capture", capture)
    return replayed


def files(folder) -> list[bytes]:
    result = json.loads((folder.path / "result.json").read_text())
    result.pop("graph")
    return [(folder.path / name).read_bytes() for name in ("metrics.jsonl", "norms.jsonl")] + [json.dumps(result).encode()]


def overrides(optimizer: str) -> list[str]:
    return [f"optimizer={optimizer}", "train.steps=24", "probe.steps=[1,9,24]", *CASES[optimizer]]


@pytest.mark.parametrize("optimizer", CASES)
def test_replayed_steps_give_the_bytes_of_usual_ones(optimizer, tiny, corpus, tmp_path, graphs):
    usual, _ = run_point(first_point(tiny(*overrides(optimizer), "train.graph=false")), tmp_path / "usual", corpus)
    assert not graphs
    graphed, result = run_point(first_point(tiny(*overrides(optimizer))), tmp_path / "graphed", corpus)
    assert files(graphed) == files(usual) and result["graph"] == "true"
    probed = 3
    assert 10 <= len(graphs) <= 24 - cuda_graph.WARMUP - probed - EAGER.get(optimizer, 0) + 4  # some are both


@pytest.mark.parametrize("optimizer", ["adamw", "sophia", "shampoo"])
def test_a_run_that_was_stopped_resumes_to_the_same_bytes(optimizer, tiny, corpus, tmp_path, graphs):
    point = first_point(tiny(*overrides(optimizer)))
    whole, _ = run_point(point, tmp_path / "whole", corpus)
    steps = iter(range(100))
    folder, result = run_point(point, tmp_path / "twice", corpus, should_stop=lambda: next(steps) == 14)
    assert result is None and len(graphs) > 12
    bury(folder)
    folder, _ = run_point(point, tmp_path / "twice", corpus)
    assert files(folder) == files(whole)


def test_a_number_that_an_optimizer_keeps_to_itself_is_found_out(tiny, corpus, tmp_path, graphs, monkeypatch):
    direction, numbers = LAMB.direction, LAMB.numbers
    monkeypatch.setattr(LAMB, "numbers", lambda self, group, step: {})

    def own(self, gradient, weight, state, group, step):
        return direction(self, gradient, weight, state, group | numbers(self, group, step), step)

    monkeypatch.setattr(LAMB, "direction", own)
    usual, _ = run_point(first_point(tiny(*overrides("lamb"), "train.graph=false")), tmp_path / "usual", corpus)
    graphed, _ = run_point(first_point(tiny(*overrides("lamb"))), tmp_path / "graphed", corpus)
    assert graphs and files(graphed) != files(usual)


def test_a_step_that_waits_for_a_value_is_found_out(tiny, corpus, tmp_path, graphs, monkeypatch):
    direction = LAMB.direction
    monkeypatch.setattr(LAMB, "direction", lambda self, *a: direction(self, *a).mul_(1 + (float(a[0].sum()) > 1e9)))
    with pytest.raises(AssertionError, match="waits for the device"):
        run_point(first_point(tiny(*overrides("lamb"))), tmp_path, corpus)


def test_who_is_captured():
    weight = [torch.nn.Parameter(torch.zeros(2, 2))]
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert cuda_graph.can_capture([torch.optim.AdamW(weight), LAMB(weight)], gpu)
    assert not cuda_graph.can_capture([torch.optim.AdamW(weight)], cpu)
    assert not cuda_graph.can_capture([torch.optim.SGD(weight)], gpu)  # torch's takes its lr from the host


def test_what_cannot_be_captured_must_not_be_asked_for(tiny, corpus, tmp_path):
    with pytest.raises(ValueError, match="train.graph"):
        run_point(first_point(tiny("train.graph=true")), tmp_path, corpus)
    with pytest.raises(ConfigError, match="train.graph"):
        tiny("train.graph=maybe")


@pytest.mark.parametrize("resident", [True, False])
def test_static_text_is_that_of_the_batches(resident, monkeypatch):
    tokens = np.arange(1000, dtype=np.uint16)
    for text in (tokens, Shards([tokens[:300], tokens[300:]])):
        where = (text, 3, 12, 8, range(1, 3), 3, torch.device("cpu"))
        batches, static = text_batches(*where), StaticText(*where)
        if not resident:
            static.resident = None
        own = static.batches()
        for step in (0, 7):
            static.fill(step)
            for ours, theirs in zip(own, batches(step), strict=True):
                assert ours.x.equal(theirs.x) and ours.y.equal(theirs.y)
                assert ours.x.stride() == theirs.x.stride() and ours.y.stride() == theirs.y.stride()
