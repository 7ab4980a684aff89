"""The processes that train one run together, one a device: each with the whole model (DDP) or a shard of it (FSDP2).

    with init_process_group(rank, size, host, port, "cuda") as processes:
        train_run(run, folder, corpus, device=device, processes=processes)

Every method is a collective: all ranks call it in the same order. A process alone is a group of one and asks nothing of
torch.distributed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectral_mup.util.seeds import seed_of


@dataclass(frozen=True)
class ProcessGroup:
    """Rank `rank` of `size` processes; the leader, rank 0, alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        set_on_any = torch.tensor(int(flag))  # in main memory, where it waits for no GPU
        dist.all_reduce(set_on_any, dist.ReduceOp.MAX)
        return bool(set_on_any)

    def broadcast(self, value: Any) -> Any:
        """Return the leader's value, which can be pickled; those of the others are dropped."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def mean(self, t: Tensor) -> Tensor:
        """Average over the ranks, the same bits on each."""
        if self.size == 1:
            return t
        total = t.clone()
        dist.all_reduce(total)
        dist.broadcast(total, src=0)  # a sum of many may be rounded differently on each
        return total / self.size

    def wrap(self, model: nn.Module, device: torch.device, shard: bool) -> nn.Module:
        """Move the model to the device and return what its forward is called on, which averages gradients over the ranks.

        With `shard`, parameters become DTensors in place, each residual block (an item of a ModuleList) gathered for as long
        as it runs; the whole model is never on a device at once.
        """
        if self.size == 1:
            return model.to(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not shard:
            return DistributedDataParallel(model.to(device), gradient_as_bucket_view=True)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        for blocks in (m for m in model.modules() if isinstance(m, nn.ModuleList)):
            for block in blocks:
                fully_shard(block, mesh=mesh)
        # The root too, so that its parameters are DTensors after a forward that no backward follows.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        return model

    def seed(self, seed: int, step: int) -> None:
        """Let torch's generators (dropout) draw differently on every rank, by (seed, step, rank); alone do nothing."""
        if self.size > 1:
            torch.manual_seed(seed_of(seed, step, self.rank))


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def init_process_group(
    rank: int, size: int, host: str, port: int, device_type: str, timeout_seconds: float = 600.0
) -> Iterator[ProcessGroup]:
    """Be rank `rank` of `size` processes that meet at host:port, where rank 0 listens, and leave them at the end.

    Collectives of GPU tensors go by NCCL, those of tensors in main memory by gloo. A rank that waits `timeout_seconds` for
    another raises RuntimeError (or is aborted by NCCL), and so do all at once when the process of one ends.
    """
    if size == 1:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, f"tcp://{host}:{port}", rank=rank, world_size=size, timeout=timeout)
    group = dist.group.WORLD
    try:
        yield ProcessGroup(rank, size)
    except BaseException as error:
        # Who lets go of a group last waits for its threads, and after an error one may still need Python's lock. `del` gives
        # the lock up meanwhile, a DDP model in one of these frames would not: each waited for the other, for ever.
        clear_frames(error.__traceback__)
        raise
    finally:
        dist.destroy_process_group()
        del group
