"""How fast a run trains and in how much memory: the rows of timing.jsonl, which alone depend on the machine."""

import resource
import sys
import time
from typing import Any

import torch
from torch import nn

from spectral_mup.runs.run_config import RunConfig

# Dense bfloat16 FLOP/s by the whole name of a GPU, from NVIDIA's data sheets; a part of one (MIG) has another name.
PEAK_FLOPS = {
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), 989e12),
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312e12),
}


class Stopwatch:
    """Speed and memory of one attempt at a run; start it when training begins.

    `tokens` is their number per step, None where a batch has none; then examples are counted.
    """

    def __init__(
        self, run: RunConfig, model: nn.Module, tokens: int | None, precision: str, device: torch.device, devices: int
    ):
        self.unit, self.per_step = ("examples", run.train.batch_size) if tokens is None else ("tokens", tokens)
        self.device, self.last_step = device, 0
        peak = peak_flops(device, precision) if run.model.ours else None
        self.mfu = flops_per_token(model, run.depth, run.width, run.model.context) / (peak * devices) if peak else None
        self.begun = self.last = time.perf_counter()

    def begin(self, step: int) -> None:
        """Count from a step that was taken before."""
        self.last_step, self.begun = step, time.perf_counter()
        self.last = self.begun

    def row(self, step: int) -> dict[str, Any]:
        """Return the row of a step just taken, whose speed is that since the row before."""
        now = time.perf_counter()
        rate = (step - self.last_step) * self.per_step / max(1e-9, now - self.last)
        self.last_step, self.last = step, now
        row = {"step": step, "seconds": round(now - self.begun, 3), f"{self.unit}_per_second": round(rate, 1)}
        return row | {"memory": peak_bytes(self.device)} | ({"mfu": round(rate * self.mfu, 4)} if self.mfu else {})


def flops_per_token(model: nn.Module, depth: int, width: int, context: int) -> float:
    """6·N + 12·depth·context·width FLOP of a forward and backward pass, N the weights of linear maps, the readout among them.

    As PaLM counts them (2204.02311, appendix B): all of the T × T attention, nothing that is computed twice.
    """
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6 * linear + 12 * depth * context * width


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device could reach in this precision; None where that is not known."""
    if device.type != "cuda" or precision != "bfloat16":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))


def peak_bytes(device: torch.device) -> int:
    """Bytes that this process has had at most: of the GPU for its tensors, else resident, the runs before this one included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
