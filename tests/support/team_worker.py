"""One of the two processes of test_team.py: FOLDER RANK. Each case leaves a run folder and FOLDER/<case>.<rank>.json."""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import spectral_mup.runs.run_folder
import spectral_mup.training.checkpoint
import spectral_mup.training.run
import spectral_mup.training.weights
from spectral_mup import data
from spectral_mup.config.compose import load_config
from spectral_mup.models import layers
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.training.distributed import SINGLE_PROCESS, ProcessGroup, init_process_group
from spectral_mup.training.run import train_run as train
from support.runs import TINY, first_point

out, rank = sys.argv[1], int(sys.argv[2])
faulthandler.dump_traceback_later(150, exit=True)  # should they wait for each other
torch.set_num_threads(1)
corpus = data.load("pydoc", None, None)

OPTIONS = {
    "adamw": ["train.accumulate=2", "train.clip=0.5", "train.eval_every=5"],
    "muon": ["optimizer=muon", "train.keep=last"],
    "shampoo": ["optimizer=shampoo", "optimizer.algorithms.shampoo.args.interval=4"],
    "sophia": ["optimizer=sophia", "optimizer.algorithms.sophia.args.hessian_interval=4"],
    "lamb": ["optimizer=lamb", "train.clip=0.5"],
    "tied": ["model=llama2", "model.tied=true", "model.kv_ratio=null"],
}
points = {name: first_point(load_config([*TINY, "train.steps=20", *options])) for name, options in OPTIONS.items()}
again = ["train.steps=20", "train.checkpoint_activations=true"]
points["large"] = first_point(load_config([*TINY, *again, *OPTIONS["tied"]]))
points["diverging"] = first_point(load_config([*TINY, "train.warmup=0"]), log2_lr=16)


def refuse(path: Path, content: bytes) -> None:
    raise AssertionError(f"rank 1 wrote {path}")


if rank == 1:
    modules = (spectral_mup.runs.run_folder, spectral_mup.training.run, spectral_mup.training.checkpoint)
    for module in (*modules, spectral_mup.training.weights):
        setattr(module, "write_atomic", refuse)  # noqa: B010


def at(step: int | None, done: int = 0):
    """should_stop that says so before a step (from 0) of a run that was `done` so far."""
    asked = iter(range(done, 10**6))
    return lambda: next(asked) == step


def run(
    case: str, point: Any, processes: ProcessGroup, shard: bool = False, **more: Any
) -> tuple[RunFolder, dict[str, Any] | None]:
    """Train the run in its own folder, which the leader takes from whoever held it."""
    folder = RunFolder(Path(out) / case, point.run_id)
    if processes.is_main:
        folder.write_config(point.to_json())
        folder.claim(lambda owner: False)
    rows: list[dict[str, Any]] = []
    device = torch.device("cpu")
    result = train(
        point, folder, corpus, device=device, log_every=4, on_rows=rows.extend, processes=processes, shard=shard, **more
    )
    note(case, result=result, rows=rows)
    return folder, result


def note(case: str, **values: Any) -> None:
    path = Path(out) / f"{case}.{rank}.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def port(case: str) -> int:
    """A free port, chosen by rank 0 just before it is taken."""
    path = Path(out) / f"{case}.port"
    if rank == 0:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            path.with_suffix(".new").write_text(str(s.getsockname()[1]))
        path.with_suffix(".new").rename(path)
    while not path.exists():
        time.sleep(0.01)
    return int(path.read_text())


def alone(case: str, point: Any, **more: Any) -> None:
    """On rank 0 only, while the other waits for it where they next meet."""
    if rank == 0:
        run(case, point, SINGLE_PROCESS, **more)


def newest(folder: RunFolder) -> Path:
    return max(folder.checkpoints.glob("*.pt"))


def equal_runs(processes: ProcessGroup) -> None:
    for name in OPTIONS:
        alone(f"{name} alone", points[name])
        if name != "tied":
            run(f"{name} ddp", points[name], processes)
        if name not in ("sophia", "lamb"):
            run(f"{name} fsdp2", points[name], processes, shard=True)
    with mock.patch.object(layers, "LARGE_LOGITS", 2000):  # a fifth of a rank's
        for way in ("ddp", "fsdp2"):
            run(f"tied large {way}", points["large"], processes, shard=way == "fsdp2")
    run("diverged", points["diverging"], processes)
    if rank == 1:
        try:
            spectral_mup.runs.run_folder.write_atomic(Path("anything"), b"")
        except AssertionError as error:
            note("adamw ddp", write=str(error))


def same_half(processes: ProcessGroup) -> None:
    real = data.batch
    data.batch = lambda *args, microbatch, **more: real(*args, microbatch=microbatch % 2, **more)
    run("adamw same half", points["adamw"], processes)
    data.batch = real


def broken_runs(processes: ProcessGroup) -> None:
    for name in ("adamw", "muon"):
        case, saved, done = f"{name} broken", [], 0
        for stop, several, shard in (
            (5, True, False),
            (9, False, False),
            (13, True, True),
            (16, True, False),
            (None, False, False),
        ):
            if several:
                asked = at(stop, done) if rank == 1 else lambda: False
                folder, result = run(case, points[name], processes, shard, should_stop=asked)
                assert result is None
            else:
                alone(case, points[name], should_stop=at(stop, done))
                processes.any(False)
                folder = RunFolder(Path(out) / case, points[name].run_id)
            if stop is not None:
                saved.append(int(newest(folder).stem))
                done = stop
            processes.any(False)  # the file was looked at
        note(case, saved=saved)


def forgot(processes: ProcessGroup) -> None:
    run("adamw forgot", points["adamw"], processes, shard=True, should_stop=at(5))
    with mock.patch.object(torch.optim.AdamW, "load_state_dict", lambda self, state: None):
        run("adamw forgot", points["adamw"], processes, shard=True)


def damaged(processes: ProcessGroup) -> None:
    folder, _ = run("damaged", points["adamw"], processes, shard=True, should_stop=at(9), checkpoint_seconds=0)
    if rank == 0:
        newest(folder).write_bytes(b"noise")
    processes.any(False)
    with mock.patch.object(spectral_mup.training.checkpoint.log, "warning") as warned:
        run("damaged", points["adamw"], processes, shard=True)
    note("damaged", warned="".join(str(call.args[0]) for call in warned.call_args_list))


def fail(case: str) -> None:
    """Rank 1 fails before its seventh step; the other notes how it ended, and goes on alone."""
    asked, last = at(6), time.monotonic()

    def should_stop() -> bool:
        nonlocal last
        last = time.monotonic()
        if rank == 1 and asked():
            if case == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if case == "silent":
                time.sleep(6)
            raise RuntimeError("rank 1 failed")
        return False

    try:
        with init_process_group(rank, 2, "127.0.0.1", port(case), "cpu", timeout_seconds=4) as processes:
            run(case, points["adamw"], processes, shard=case == "killed", should_stop=should_stop, checkpoint_seconds=0)
    except RuntimeError as error:
        note(case, error=str(error), seconds=time.monotonic() - last)
    if rank == 0:
        folder = RunFolder(Path(out) / case, points["adamw"].run_id)
        note(case, **{"resumed at": int(newest(folder).stem)})
        run(case, points["adamw"], SINGLE_PROCESS)


if __name__ == "__main__":
    with init_process_group(rank, 2, "127.0.0.1", port("equal"), "cpu", timeout_seconds=60) as pair:
        for cases in (equal_runs, same_half, broken_runs, forgot, damaged):
            started = time.monotonic()
            cases(pair)
            if rank == 0:
                print(f"{cases.__name__}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    for case in ("raises", "silent", "killed"):
        fail(case)
