"""The estimate of a run's memory holds what training it keeps, and gives way to what was measured."""

import pytest
import torch
from support.runs import build_run, composed, first_point, optimizers_of

from spectral_mup.optim.stacked import UsesSampledLabels
from spectral_mup.runs.memory import CONTEXT_BYTES, RunMemory, estimate_bytes
from spectral_mup.runs.run_folder import RunFolder

MODELS = {
    "nanogpt": (), "llama2": ("model=llama2",), "tied": ("model.tied=true",),
    "narrow": ("sweep.width=[32]", "sweep.base_width=32"),
    "many tokens": ("train.batch_size=64",), "accumulated": ("train.batch_size=64", "train.accumulate=8"),
}  # fmt: skip
WIDE = ("data=pydoc", "sweep.width=[256]", "sweep.base_width=256", "model.context=64", "model.dropout=0")


def kept_bytes(run) -> int:
    """Of parameters, gradients, what backward needs and the optimizer's state, each tensor's memory counted once."""
    memory: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        memory[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    model, scaling = build_run(run)
    x = torch.randint(256, (run.train.batch_size // run.train.accumulate, run.model.context))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x, x).backward()
    optimizers = optimizers_of(model, scaling, run)
    for optimizer in optimizers:
        if isinstance(optimizer, UsesSampledLabels):
            optimizer.update_hessian(x.numel())
        optimizer.step()
    states = [t for o in optimizers for state in o.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    for tensor in [*model.parameters(), *(p.grad for p in model.parameters()), *states]:
        note(tensor)
    return sum(memory.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "sophia", "shampoo", "soap"])
def test_the_estimate_is_above_what_is_kept_and_not_far(model, optimizer):
    run = first_point(composed(*WIDE, *MODELS[model], f"optimizer={optimizer}"))
    kept, estimated = kept_bytes(run), estimate_bytes(run, 256) - CONTEXT_BYTES
    assert kept < estimated < 4 * kept


def test_the_estimate_grows_with_each_of_its_parts():
    base = estimate_bytes(first_point(composed(*WIDE)), 256)
    for more in ("sweep.depth=[8]", "train.batch_size=512", "model.context=1024", "optimizer=shampoo"):
        deeper = ["sweep.base_depth=8"] if "depth" in more else []
        assert estimate_bytes(first_point(composed(*WIDE, more, *deeper)), 256) > 1.1 * base - 0.1 * CONTEXT_BYTES
    assert estimate_bytes(first_point(composed(*WIDE)), 50257) > base + 4 * 2 * 50000 * 256
    accumulated = composed(*WIDE, "train.batch_size=512", "train.accumulate=64")
    assert estimate_bytes(first_point(accumulated), 256) == base


def test_what_was_measured_on_a_gpu_of_its_own_stands_for_the_shape(tmp_path):
    small, large = (
        first_point(composed(*WIDE[1:], "data=pydoc", f"sweep.width=[{w}]", f"sweep.base_width={w}")) for w in (64, 512)
    )
    memory = RunMemory(tmp_path, 256)
    other = first_point(composed(*WIDE, "sweep.width=[64]", "sweep.base_width=64"), log2_lr=-7)
    estimated = estimate_bytes(small, 256)
    assert memory.largest([small]) == (estimated, "estimated")
    timing = {"seconds": 1.0, "steps": 1, "device": "cuda", "memory": {"allocated": 1e9, "reserved": 5e9}}
    for unfit in (
        timing | {"devices": 2},
        timing | {"devices": 1, "memory": None},
        {"seconds": 1.0, "steps": 1, "device": "cpu"},
    ):
        RunFolder(tmp_path, other.run_id).write("timing.json", unfit)
        memory.learn([other])
        assert memory.largest([small]) == (estimated, "estimated")
    RunFolder(tmp_path, other.run_id).write("timing.json", timing | {"devices": 1})
    memory.learn([small, other])
    assert memory.largest([small]) == memory.largest([small, large]) == (5e9 + CONTEXT_BYTES, "measured")
    assert memory.largest([large])[1] == "estimated"
