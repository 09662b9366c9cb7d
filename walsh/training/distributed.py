"""One process or many, by torch.distributed: who we are, how the model is wrapped, sums over processes.

Started by ``torchrun`` (which sets RANK, WORLD_SIZE and LOCAL_RANK), a run joins the process group; otherwise it is
alone. ``ddp`` keeps a whole model in each process and averages gradients; ``fsdp`` also shards parameters and optimizer
state by block (FSDP2, ``fully_shard``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from walsh.errors import BackendError
from walsh.model.transformer import Walsh


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
        device: of this one.
        patient: group in which processes wait for one another; the default one if None.
    """

    rank: int
    size: int
    device: torch.device
    patient: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.patient)


def choose_device(name: str | None) -> torch.device:
    """The device of this name; a GPU if there is one and none was named.

    Raises:
        BackendError: if PyTorch cannot use it here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # device "meta" has no values to give
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(f"device {name!r} cannot be used: {reason}; try --device cpu") from None
    return device


@contextmanager
def open_world(device: str | None = None) -> Iterator[World]:
    """Join the process group that torchrun made, or be alone; it is left at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, choose_device(device))
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        # Collectives that hang fail within minutes; one process preparing a large corpus may take hours.
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=2))
        yield World(dist.get_rank(), dist.get_world_size(), chosen, patient)
    finally:
        dist.destroy_process_group()


def wrap(model: Walsh, world: World, shard: str) -> nn.Module:
    """The model as it is called in training.

    Args:
        model: on the device of this process.
        world: the processes.
        shard: ``ddp`` or ``fsdp``.
    """
    if world.size == 1:
        return model
    if shard == "ddp":
        return DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Samples are drawn through these two, which must gather the parameters as ``forward`` does.
    register_fsdp_forward_method(model, "features")
    register_fsdp_forward_method(model, "logits")
    return model


@contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Average gradients over processes only in the last micro-batch of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    skip: Any = nullcontext()
    if isinstance(module, DistributedDataParallel) and not last:
        skip = module.no_sync()
    with skip:
        yield


def whole(value: Tensor) -> Tensor:
    """The full tensor of a sharded one."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else full()
