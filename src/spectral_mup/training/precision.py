"""What `auto` precision, compilation and CUDA graphs mean on a machine.

A run that says `auto` accepts either, within the noise of a seed, so its id says `auto` as well; its result and its
checkpoints say what was used, and a run that was killed resumes with it. Set train.precision to be definite.
"""

import functools
from typing import NamedTuple

from spectral_mup.config.schema import TrainConfig

FLOPS_PER_COST = 6  # a forward and backward pass multiply and add each parameter three times a token


class Compilation(NamedTuple):
    """Seconds that it takes, FLOP a second of steps that are not compiled, and the share of their time that it saves."""

    seconds: float
    flops_per_second: float
    saved: float


COMPILATION = {
    # Measured on one core (sweeps/LOG.md): 20 to 80 s for a cold graph; 66 GFLOP/s at width 256 and 77 at 1024 in float32, up
    # to 1.3 times as many in bfloat16; compiled steps take 0.8 to 1.0 of the time in float32, 0.6 to 0.7 in bfloat16.
    ("cpu", "float32"): Compilation(60.0, 7e10, 0.05),
    ("cpu", "bfloat16"): Compilation(60.0, 9e10, 0.3),
    # Estimates, not measured, that err on the side of not compiling: half of what an H100 could reach, and less than the 10 to
    # 20 % that fused kernels should save. What launches cost is not counted, for a captured step has none.
    ("cuda", "float32"): Compilation(120.0, 3e13, 0.1),
    ("cuda", "bfloat16"): Compilation(120.0, 4e14, 0.1),
}


def resolve_auto(
    t: TrainConfig, width: int, cost: float, device_type: str, flags: frozenset[str] | None = None, capturable: bool = False
) -> dict[str, str]:
    """Return {precision, compile, graph} of a run on a device ('cpu' or 'cuda').

    `flags` are the CPU's features (default: this one's), `capturable` says whether a CUDA graph can replay the steps
    (cuda_graph.can_capture).

    `cost` is that of RunConfig, about parameters times tokens, of one process. Compiled where its steps are so expected to
    save more seconds than compiling takes; how long they do take is never asked, so a run that starts anew decides the same.

    bfloat16 where it was measured to be faster without compiling: on GPUs, from width 256 on CPUs with AVX512-BF16, and
    from 128 on those with AMX. Elsewhere a CPU emulates it, slowly.
    """
    precision, compiled = t.precision, t.compile
    if precision == "auto":
        flags = cpu_flags() if flags is None else flags
        from_width = 0 if device_type == "cuda" else 128 if "amx_bf16" in flags else 256 if "avx512_bf16" in flags else None
        precision = "bfloat16" if from_width is not None and width >= from_width else "float32"
    if compiled == "auto":
        c = COMPILATION[device_type, precision]
        compiled = "true" if c.saved * FLOPS_PER_COST * cost / c.flops_per_second > c.seconds else "false"
    graph = t.graph
    if graph == "auto":
        graph = "true" if capturable else "false"
    return {"precision": precision, "compile": compiled, "graph": graph}


@functools.cache
def cpu_flags() -> frozenset[str]:
    """List the features of this CPU as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as f:
            return next((frozenset(line.partition(":")[2].split()) for line in f if line.startswith("flags")), frozenset())
    except OSError:
        return frozenset()
