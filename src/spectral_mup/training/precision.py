"""What `auto` precision, compilation and CUDA graphs mean on a machine.

A run that says `auto` accepts either, within the noise of a seed, so its id says `auto` as well; its result and its
checkpoints say what was used, and a run that was killed goes on with it. Set train.precision to be definite.
"""

import functools

from spectral_mup.config.schema import TrainConfig

COMPILE_STEPS = 5000  # a cold graph costs 10 to 60 s: shorter runs do not earn it back


def resolve_auto(
    t: TrainConfig, width: int, device_type: str, flags: frozenset[str] | None = None, capturable: bool = False
) -> dict[str, str]:
    """{precision, compile, graph} of a run on a device ('cpu' or 'cuda').

    `flags` are the CPU's features (default: this one's), `capturable` says whether a CUDA graph can replay
    the steps (cuda_graph.can_capture).

    bfloat16 where it was measured to be faster without compiling: on GPUs, from width 256 on CPUs with AVX512-BF16, and
    from 128 on those with AMX. Elsewhere a CPU emulates it, slowly.
    """
    precision, compiled = t.precision, t.compile
    if precision == "auto":
        flags = cpu_flags() if flags is None else flags
        from_width = 0 if device_type == "cuda" else 128 if "amx_bf16" in flags else 256 if "avx512_bf16" in flags else None
        precision = "bfloat16" if from_width is not None and width >= from_width else "float32"
    if compiled == "auto":
        compiled = "true" if t.steps >= COMPILE_STEPS else "false"
    graph = t.graph
    if graph == "auto":
        graph = "true" if capturable else "false"
    return {"precision": precision, "compile": compiled, "graph": graph}


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Features of this CPU as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as f:
            return next((frozenset(line.partition(":")[2].split()) for line in f if line.startswith("flags")), frozenset())
    except OSError:
        return frozenset()
