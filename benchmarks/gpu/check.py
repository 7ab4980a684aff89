"""One part of the check of a GPU, as check.sh calls it: `check.py PART OUT` writes OUT/PART.json anew with every row.

correctness   six optimizers × two families: by how much losses differ between ways of taking the same steps
throughput    runs an hour of the default sweep, and steps a second at its sizes, of 1 to 8 processes on one GPU
large         ms a step and model FLOP utilisation at 16k tokens, against a plain loop, which is written below
optimizers    ms and memory of an optimizer's step, against torch's own
ladder        sweep=mini/ladder with one optimizer after the other

With --tiny the same code takes small models; on a CPU there are no graphs.
"""

import argparse
import functools
import gc
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectral_mup import data
from spectral_mup.cluster.worker import release_memory
from spectral_mup.config.compose import load_config
from spectral_mup.models.configs import FamilyConfig
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import hyperparameters, scale_run
from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup
from spectral_mup.training.run import build_trainer, make_task, train_run
from spectral_mup.util.files import read_json, read_rows, write_atomic
from spectral_mup.util.system import machine

ROOT = Path(__file__).resolve().parents[2]
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, by a part of the device's name
WAYS = {
    "eager": {"graph": "false", "compile": "false"},
    "graph": {"graph": "auto", "compile": "false"},
    "compile": {"graph": "auto", "compile": "true"},
}
WARMUP = 5  # steps: the first compiles, the fourth is captured
BFLOAT16_MUON = "optimizer.algorithms.muon.args.dtype=bfloat16"  # as its authors and torch run it
Step = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured; lists of strings are overrides."""

    common: Sequence[str] = ()
    optimizers: Sequence[str] = ("adamw", "adopt", "lamb", "sophia", "muon", "shampoo")
    short: Sequence[str] = ("train.steps=30", "train.warmup=4", "train.eval_sequences=32", "probe.steps=[9]")
    workers: Sequence[int] = (1, 2, 4, 8)
    runs: Sequence[int] = (64, 128, 64, 256)  # widths, about as the default sweep has them: 28, 15 and 15 runs
    seconds: float = 1.0  # of a measurement
    large: Sequence[int] = (2048, 1024, 512)
    depth: int = 8
    batch: Sequence[str] = (
        "model.context=1024", "train.batch_size=16", "model.head_size=128",
        "sweep.width=[512]", "sweep.base_width=512", "derive.width=[512,1024,2048]",  # multiples of it
    )  # fmt: skip
    calls: int = 5
    rounds: int = 6
    ladder: Sequence[str] = ()
    ladders: Sequence[str] = ("muon", "shampoo", "adamw", "sophia", "adopt", "lamb")


TINY = Sizes(
    common=[
        "model.context=16", "train.batch_size=4", "train.steps=8", "train.warmup=2", "train.eval_sequences=8",
        "probe.sequences=2", "probe.steps=[1]",
    ],
    optimizers=["adamw", "muon"], short=[], workers=[1, 2], runs=[32, 64], seconds=0.05, large=[64], depth=2, batch=[],
    calls=1, rounds=2, ladder=["sweep.width=[32,64]", "sweep.base_width=32", "lr.adaptive=false"], ladders=["muon"],
)  # fmt: skip


@dataclass
class Record:
    """The JSON of a part, and the time that is left to the part."""

    path: Path
    about: dict[str, Any]
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        self.write()
        print(" ", *(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {str(v)[:100]}" for k, v in row.items()), flush=True)

    def write(self, **more: Any) -> None:
        self.about |= more
        write_atomic(self.path, (json.dumps(self.about | {"rows": self.rows}, indent=1) + "\n").encode())


def start_device(name: str) -> torch.device:
    """The device, set up as in a worker of a sweep."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    if name == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    return torch.device("cuda", 0)


def make_run(overrides: Sequence[str], width: int, depth: int = 2) -> RunConfig:
    return open_sweep(load_config([*overrides])).run(Curve("spectral", width, depth), -8.0, 0)


def in_way(run: RunConfig, **train: str) -> RunConfig:
    """The run in bfloat16, on a CPU too, with these keys of `train`."""
    return replace(run, train=run.train.model_copy(update={"precision": "bfloat16", "compile": "false"} | train))


@functools.cache
def corpus(source: str) -> data.Corpus:
    return data.load(source, None, None)


def claimed(run: RunConfig, root: str) -> RunFolder:
    folder = RunFolder(Path(root), run.run_id)
    folder.write_config(run.to_json())
    folder.claim(lambda owner: False)
    return folder


# --- the one clock ----------------------------------------------------------------------------------------------------


def seconds_a_call(step: Step, device: torch.device, calls: int) -> float:
    """From an idle device to an idle device, on a GPU by its own events."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - begin) / calls
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def race(steps: dict[str, Step], device: torch.device, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Call each until it is warm, noting by how much memory rises, then time them A B A B: {way: median ms, peak GB}."""
    found: dict[str, dict[str, Any]] = {way: {"ms": None, "peak_gb": None} for way in steps}
    for way, step in steps.items():
        if device.type == "cuda":
            gc.collect()  # graphs of an earlier race
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        try:
            seconds_a_call(step, device, WARMUP)
        except Exception as error:
            found[way]["error"] = f"{type(error).__name__}: {error}"
        if device.type == "cuda":
            found[way]["peak_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    able = {way: step for way, step in steps.items() if "error" not in found[way]}
    taken = [{way: seconds_a_call(step, device, sizes.calls) for way, step in able.items()} for _ in range(sizes.rounds)]
    for way in able:
        found[way]["ms"] = 1e3 * median(seconds[way] for seconds in taken)
    return found


# --- correctness ------------------------------------------------------------------------------------------------------


class OneRank(ProcessGroup):
    """A process alone that trains by DDP nevertheless."""

    def wrap(self, model: nn.Module, device: torch.device, shard: bool) -> nn.Module:
        if not dist.is_initialized():
            store = f"file://{tempfile.mkdtemp()}/store"
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store, rank=0, world_size=1)
        return DistributedDataParallel(model.to(device), gradient_as_bucket_view=True)


def losses(
    run: RunConfig, device: torch.device, stop: int | None = None, processes: ProcessGroup = SINGLE_PROCESS
) -> list[float] | str:
    """All losses of a run, that of validation last, or why there are none; with `stop` it is resumed after that many steps."""
    asked, result = iter(range(run.train.steps)), None
    try:
        with tempfile.TemporaryDirectory() as root:
            while result is None:
                folder = claimed(run, root)
                result = train_run(
                    run, folder, corpus(run.data.source), device=device, processes=processes,
                    should_stop=lambda: stop is not None and next(asked, None) == stop,
                )  # fmt: skip
            return [row["loss"] for row in read_rows(folder.path / "metrics.jsonl")] + [result["val_loss"]]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        release_memory(device)


def difference(a: list[float] | str, b: list[float] | str) -> float | str:
    """The largest, 0 where losses are equal to the bit."""
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else str(b)
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def short_run(sizes: Sizes, optimizer: str, family: str) -> RunConfig:
    overrides = [f"optimizer={optimizer}", f"model={family}", "sweep.width=[32]", "sweep.base_width=32"]
    if optimizer == "shampoo":  # roots are renewed at every step until this window is full
        overrides.append("optimizer.algorithms.shampoo.args.betas=[0.9,0.8]")
    return make_run([*overrides, *sizes.common, *sizes.short], 64)


def correctness(record: Record, sizes: Sizes, device: torch.device) -> None:
    took = 0.0
    for optimizer, family in [(o, f) for o in sizes.optimizers for f in ("nanogpt", "llama2")]:
        if record.left < took:
            return record.write(cut="no time for the rest")
        begin = time.monotonic()
        run = short_run(sizes, optimizer, family)
        eager = losses(in_way(run, graph="false"), device)
        usual = losses(in_way(run, graph="true"), device) if device.type == "cuda" else eager
        resumed = losses(in_way(run), device, stop=run.train.steps * 2 // 3)
        float32 = losses(in_way(run, precision="float32"), device)
        record.add(
            optimizer=optimizer, family=family,
            graph=difference(usual, eager) if device.type == "cuda" else "no graph on cpu",
            repeat=difference(losses(in_way(run), device), usual), resume=difference(resumed, usual),
            ddp=difference(losses(in_way(run, graph="false"), device, processes=OneRank()), eager),
            bf16=difference(float32[-1:], usual[-1:]),
        )  # fmt: skip
        took = time.monotonic() - begin
    if dist.is_initialized():
        dist.destroy_process_group()


# --- throughput -------------------------------------------------------------------------------------------------------


def run_step(run: RunConfig, way: str, device: torch.device) -> Step:
    """The step of a run as train_run takes it."""
    run, nowhere = in_way(run, **WAYS[way]), RunFolder(Path(tempfile.gettempdir()), "nowhere")  # has no checkpoint
    text = corpus(run.data.source)
    task = make_task(run, text, device, SINGLE_PROCESS)
    trainer, step, *_ = build_trainer(run, nowhere, task, text.vocab_size, device, SINGLE_PROCESS, False)
    trainer.model.train()
    return step


STEPS: dict[tuple[str, int], Step] = {}  # of this process, by way and width


def build_steps(index: int, sizes: Sizes, device: torch.device, way: str) -> None:
    """Warm up steps of every width. Processes begin with different ones, so that each finds compiled code of others."""
    widths = sorted(set(sizes.runs))
    for width in (widths * 2)[index % len(widths) :][: len(widths)]:
        run = make_run([*sizes.common, "train.schedule=constant"], width)
        STEPS[way, width] = run_step(run, way, device)
        seconds_a_call(STEPS[way, width], device, WARMUP)


def steps_a_second(index: int, sizes: Sizes, device: torch.device, way: str, width: int) -> float:
    """As in a run, the host waits for the device every ten steps."""
    steps, seconds = 0, 0.0
    while seconds < sizes.seconds:
        seconds, steps = seconds + 10 * seconds_a_call(STEPS[way, width], device, 10), steps + 10
    return steps / seconds


def seconds_of_runs(index: int, sizes: Sizes, device: torch.device, count: int) -> float:
    """Of that many of the default sweep's runs, one after the other, each from its config to its result."""
    runs = [make_run(sizes.common, sizes.runs[(index + i) % len(sizes.runs)]) for i in range(count)]
    begin = time.perf_counter()
    for run in runs:
        with tempfile.TemporaryDirectory() as root:
            data.fingerprint(run.data.source, None, None)  # a worker looks whether the text is still the same
            train_run(run, claimed(run, root), corpus(run.data.source), device=device)
    return time.perf_counter() - begin


def throughput(record: Record, sizes: Sizes, device: torch.device) -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"  # of each process
    most = max(sizes.workers)
    pools = [ProcessPoolExecutor(1, get_context("spawn"), start_device, (device.type,)) for _ in range(most)]

    def ask(count: int, function: Callable[..., Any], *values: Any) -> list[Any]:
        """Answers of the first `count` processes, which work at the same time."""
        futures = [pool.submit(function, i, sizes, device, *values) for i, pool in enumerate(pools[:count])]
        return [future.result() for future in futures]

    ask(most, seconds_of_runs, 1)  # loads libraries
    for n in sizes.workers:
        seconds = max(ask(n, seconds_of_runs, len(sizes.runs)))
        record.add(workers=n, runs_an_hour=3600 * n * len(sizes.runs) / seconds)
    for way in ("eager", "graph"):  # to compile for every process takes longer than all the rest
        ask(most, build_steps, way)
        for width, n in [(width, n) for width in sorted(set(sizes.runs)) for n in sizes.workers]:
            if record.left < 3 * sizes.seconds:
                return record.write(cut="no time for the rest")
            record.add(way=way, width=width, workers=n, steps_a_second=sum(ask(n, steps_a_second, way, width)))


# --- large models -----------------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    """The architecture of model=nanogpt, as one writes it by hand."""

    def __init__(self, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(PlainBlock(width, heads) for _ in range(depth)))
        self.norm, self.readout = nn.LayerNorm(width, bias=False), nn.Linear(width, 256, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.norm(self.blocks(self.token(x) + self.position.weight))
        return F.cross_entropy(self.readout(h).flatten(0, 1).float(), y.flatten())


def plain_step(run: RunConfig, device: torch.device) -> Step:
    """A step of a plain loop, on a batch that stays on the device and so costs it nothing."""
    assert isinstance(run.model, FamilyConfig)
    with device:
        model = PlainGPT(run.model.context, run.width, run.depth, run.model.head_count(run.width))
        x, y = torch.randint(256, (2, run.train.batch_size, run.model.context))
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = compiled(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def large_step(run: RunConfig, way: str, device: torch.device) -> Step:
    """A step as a worker takes it, deterministic, or that of the plain loop, which need not be; built at the first call."""
    step: Step | None = None

    def take() -> None:
        nonlocal step
        torch.use_deterministic_algorithms(way != "plain" and device.type == "cuda", warn_only=True)
        step = step or (plain_step(run, device) if way == "plain" else run_step(run, way, device))
        step()

    return take


def compile_alone(run: RunConfig, way: str, device: torch.device) -> None:
    """Leave compiled code on disk."""
    seconds_a_call(large_step(run, way, device), device, 1)


def large_runs(sizes: Sizes) -> list[RunConfig]:
    overrides = [*sizes.common, *sizes.batch, "train.schedule=constant"]
    return [make_run(overrides, width, sizes.depth) for width in sizes.large]


def large(record: Record, sizes: Sizes, device: torch.device) -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "3"  # of each process
    runs = large_runs(sizes)
    with ProcessPoolExecutor(2 * len(runs), get_context("spawn"), start_device, (device.type,)) as pool:  # else for minutes
        for future in [pool.submit(compile_alone, run, way, device) for run in runs for way in ("compile", "plain")]:
            future.exception()  # it will be raised again below
    peak = next((peak for name, peak in PEAKS.items() if name in record.about["device"]), None)
    for run in runs:
        tokens = run.train.batch_size * run.model.context
        # 6 FLOP for each parameter that multiplies, the readout's too, and causal attention, which skips half
        flops = 6 * (12 * run.depth * run.width**2 + 256 * run.width + run.depth * run.width * run.model.context) * tokens
        steps = {way: large_step(run, way, device) for way in ("graph", "compile", "plain")}
        found = race(steps, device, sizes)
        for way, row in found.items():
            ms, plain = row["ms"], found["plain"]["ms"]
            mfu = flops / (ms / 1e3 * peak) if ms and peak else None
            record.add(width=run.width, way=way, mfu=mfu, speed_of_plain=plain / ms if ms and plain else None, **row)
        if record.left < 5:
            return record.write(cut="no time for the rest")


# --- optimizers -------------------------------------------------------------------------------------------------------


def optimizers(record: Record, sizes: Sizes, device: torch.device) -> None:
    """Of AdamW all tensors, of Muon matrices; ours in the groups of a run, torch's in one, with the same random gradients."""
    for name, theirs in {"AdamW": {"fused": True, "betas": (0.9, 0.95)}, "Muon": {}}.items():
        overrides = [f"optimizer={name.lower()}", *[BFLOAT16_MUON] * (name == "Muon")]
        run = make_run([*overrides, *sizes.common], sizes.large[len(sizes.large) // 2], sizes.depth)
        model = run.model.build(256, run.width, run.depth)
        scaling = scale_run(run, model, 256)
        init_(model, scaling, seed=0)
        made = make_optimizers(model.to(device), scaling, **hyperparameters(run))
        ours = next(optimizer for optimizer in made if type(optimizer).__name__ == name)
        params = [p for group in ours.param_groups for p in group["params"]]
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        for p, copy in zip(params, copies, strict=True):
            p.grad = copy.grad = 1e-3 * torch.randn_like(p)
        steps: dict[str, Step] = {"ours": ours.step}
        if hasattr(torch.optim, name):  # Muon since torch 2.9
            steps["torch"] = getattr(torch.optim, name)(copies, lr=1e-4, weight_decay=0.1, **theirs).step
        for way, found in race(steps, device, sizes).items():
            record.add(optimizer=name, whose=way, width=run.width, **found)


# --- ladder -----------------------------------------------------------------------------------------------------------


def ladder(record: Record, sizes: Sizes, device: torch.device) -> None:
    """Each optimizer but the last has half of the time that is left, so that a slow one leaves some to the next."""
    known = read_json(record.path.with_name("throughput.json")) or {"rows": []}
    rates = {row["runs_an_hour"]: row["workers"] for row in known["rows"] if "runs_an_hour" in row}
    workers = rates[max(rates)] if rates else max(sizes.workers)
    names = os.environ.get("LADDER", "").split() or sizes.ladders
    for name in names:
        seconds = (record.left - 25) / (1 if name == names[-1] else 2)  # 25: to stop and to analyse
        if seconds < 10:
            return record.write(cut="no time for the rest")
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder, "results")
            overrides = ["sweep=mini/ladder", f"optimizer={name}", *[BFLOAT16_MUON] * (name == "muon"), *sizes.common]
            overrides += [
                *sizes.ladder,
                f"cluster.device={device.type}",
                f"cluster.workers={workers}",
                "figures.only=[lr_transfer]",
            ]
            overrides += [f"paths.runs={folder}/runs", f"paths.results={results}"]
            begin = time.monotonic()
            launch = subprocess.Popen([sys.executable, ROOT / "launch.py", *overrides], stdout=subprocess.DEVNULL)
            with suppress(subprocess.TimeoutExpired):
                launch.wait(seconds)
            launch.send_signal(signal.SIGINT)  # unless it has ended; each worker ends with a step
            code, took = launch.wait(), time.monotonic() - begin
            said = subprocess.run([sys.executable, ROOT / "analyze.py", *overrides], capture_output=True, text=True)
            kept = record.path.parent / "ladder" / name
            kept.mkdir(parents=True, exist_ok=True)
            for path in [path for path in results.rglob("*") if path.suffix in (".csv", ".json", ".png")]:
                shutil.copy(path, kept)
        judged = (read_json(kept / "verdicts.json") or {"verdicts": []})["verdicts"]
        rules = [{key: v[key] for key in ("rule", "verdict", "slope", "regret", "counts", "optima")} for v in judged]
        record.add(optimizer=name, finished=code == 0, seconds=took, workers=workers, said=said.stderr[-500:], rules=rules)


PARTS = {"correctness": correctness, "throughput": throughput, "large": large, "optimizers": optimizers, "ladder": ladder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which nothing more is begun")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; `--device cpu --tiny` tries the code without one")
    deadline, device = time.monotonic() + args.seconds, start_device(args.device)
    about = {
        "part": args.part, "device": torch.cuda.get_device_name(device) if args.device == "cuda" else machine(),
        "torch": torch.__version__, "python": platform.python_version(), "commit": os.environ.get("COMMIT") or commit(),
        "finished": False,
    }  # fmt: skip
    record = Record(args.out / f"{args.part}.json", about, deadline)
    record.write()
    try:
        PARTS[args.part](record, TINY if args.tiny else Sizes(), device)
        record.write(finished=True)
    except Exception:
        record.write(error=traceback.format_exc())
        raise


if __name__ == "__main__":
    main()
