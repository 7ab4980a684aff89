"""Machines with GPUs, as nvidia-smi would describe them, and workers that need none to be placed on them."""

import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from spectral_mup.cluster.progress import Event
from spectral_mup.config.schema import Config
from spectral_mup.runs.run_folder import RunFolder


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, count: int, gigabytes: float = 80, uuids: Sequence[str] | None = None) -> None:
    """Let this process find `count` GPUs with so much free memory, and no CUDA_VISIBLE_DEVICES."""
    names = uuids or [f"GPU-{i}" for i in range(count)]
    answer = "".join(f"{i}, {name}, {gigabytes * 1e9 / 2**20:.0f}, NVIDIA H100\n" for i, name in enumerate(names))
    monkeypatch.setattr("spectral_mup.util.gpus.ask_nvidia_smi", lambda: answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


ENDED = {  # what every result has
    "status": "done", "val_loss": 3.0, "steps": 12, "tokens": 768, "epochs": 0.1, "diverged_step": None, "parameters": 1000,
    "precision": "float32", "corpus": {"sha256": "none"},
}  # fmt: skip


def pretend_to_work(pipe: Connection, config: Config, launcher: int, rank: int, team: Sequence[Connection]) -> None:
    """In place of worker.work: a run takes a moment, and where more than $CAPACITY share a GPU it runs out of memory.

    No run ends before $WORKERS workers have been there, so that they are surely at work at once.
    """
    runs, gpu = Path(config.paths.runs), os.environ["CUDA_VISIBLE_DEVICES"]
    there, busy = runs.parent / "there", runs.parent / f"busy.{gpu}"
    for folder in (there, busy):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        while run := pipe.recv():
            (there / f"{rank}.{gpu}.{os.getpid()}").touch()
            if rank:
                continue
            (busy / str(os.getpid())).touch()
            while len(list(there.iterdir())) < int(os.environ["WORKERS"]):
                time.sleep(0.01)
            crowded = len(list(busy.iterdir())) > int(os.environ["CAPACITY"])
            time.sleep(0.2)
            folder = RunFolder(runs, run.run_id)
            if crowded:
                folder.write_error("OutOfMemoryError: CUDA out of memory")
            else:
                seen = {"pid": os.getpid(), "gpu": gpu, "torch": "torch" in sys.modules}
                folder.write("result.json", ENDED | seen)
            (busy / str(os.getpid())).unlink()
            out_of_memory = {"error": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."}
            pipe.send(Event("failed", run, out_of_memory) if crowded else Event("done", run))
    except EOFError:
        pass


def fake_nvidia_smi(folder: Path, count: int) -> Path:
    """A folder for the PATH whose nvidia-smi lists `count` GPUs; torch sees none, so their workers train on the CPU."""
    folder.mkdir(parents=True)
    rows = "".join(f"{i}, GPU-{i}, 80000, NVIDIA H100\\n" for i in range(count))
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    return folder
