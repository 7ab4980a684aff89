"""What `auto` means: bfloat16 where it is fast, compilation where it is expected to save more seconds than it takes."""

import pytest
from support.runs import first_point

from spectral_mup.training.precision import COMPILATION, FLOPS_PER_COST, resolve_auto

AMX = frozenset({"avx512_bf16", "amx_bf16"})


def compiled(run, device_type: str, processes: int = 1) -> bool:
    return resolve_auto(run.train, run.width, run.cost / processes, device_type, AMX)["compile"] == "true"


@pytest.mark.parametrize("device_type, precision", COMPILATION)
def test_a_run_is_compiled_from_where_it_saves_what_compiling_takes(tiny, device_type, precision):
    c = COMPILATION[device_type, precision]
    t = tiny("train.compile=auto", f"train.precision={precision}").train
    enough = c.seconds / c.saved * c.flops_per_second / FLOPS_PER_COST
    found = [resolve_auto(t, 64, cost, device_type)["compile"] for cost in (0.99 * enough, 1.01 * enough)]
    assert found == ["false", "true"]
    for asked in ("true", "false"):
        told = t.model_copy(update={"compile": asked})
        assert [resolve_auto(told, 64, cost, device_type)["compile"] for cost in (1.0, 1e30)] == [asked] * 2


def test_short_and_small_runs_are_not_compiled_and_long_large_ones_are(tiny):
    """The default sweep's largest run takes 22 s on one core, whose cold graph takes 20 to 80 (sweeps/LOG.md)."""
    auto = ("train.compile=auto", "train.precision=auto", "train.batch_size=8", "model.context=64", "model.head_size=32")

    def run(width: int, steps: int, *more: str):
        return first_point(tiny(*auto, f"train.steps={steps}", f"sweep.width=[32,{width}]", *more), width=width)

    assert not compiled(run(256, 400), "cpu") and compiled(run(256, 10_000), "cpu")
    assert not compiled(run(64, 10_000), "cpu")  # a minute in all, of which float32 saves little
    assert not compiled(run(256, 10_000), "cuda")  # some seconds there
    large = run(2048, 20_000, "sweep.depth=[8]", "sweep.base_depth=8", "train.batch_size=256")
    assert compiled(large, "cuda") and not compiled(large, "cuda", processes=64)
