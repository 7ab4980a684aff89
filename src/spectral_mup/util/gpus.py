"""The GPUs that this process may use, as nvidia-smi lists them. Imports no torch."""

import os
import subprocess
from dataclasses import dataclass, replace

from spectral_mup.errors import Unanswered

SECONDS = 20
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free,name", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its `id` is what CUDA_VISIBLE_DEVICES may call it, `free` the bytes of its memory, 0 if unknown."""

    id: str
    free: float
    name: str = "GPU"


def ask_nvidia_smi() -> str:
    """Return what nvidia-smi answers to QUERY: nothing where it is missing, no GPUs without a driver.

    Raises Unanswered if it does not end.
    """
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except OSError:  # there is none, or not for this user: a folder of the PATH may be another's
        return ""
    except subprocess.TimeoutExpired:
        raise Unanswered(f"nvidia-smi gave no answer in {SECONDS} s; cluster.device=cpu trains without GPUs") from None
    return done.stdout  # also where it failed for one GPU of several


def visible_gpus() -> list[Gpu]:
    """List those that CUDA_VISIBLE_DEVICES leaves, in its order and by its names for them; without it all, by UUID.

    As for CUDA, an entry that is no GPU ends the list. Indices are taken as nvidia-smi counts.
    """
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in ask_nvidia_smi().splitlines() if line.count(",") >= 3]
    gpus = {index: Gpu(uuid, int(free) * 2**20 if free.isdigit() else 0, name) for index, uuid, free, name in rows}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not gpus:
        return list(gpus.values())
    visible = []
    for entry in map(str.strip, named.split(",")):
        gpu = gpus.get(entry) or next((g for g in gpus.values() if entry.startswith("GPU-") and g.id.startswith(entry)), None)
        if entry.startswith("MIG-"):  # a part of a GPU, which the query does not list
            gpu = Gpu(entry, 0, "part of a GPU")
        if gpu is None:
            break
        visible.append(replace(gpu, id=entry))
    return visible
