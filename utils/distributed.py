"""Ranks: started by torchrun, or a single process that needs no process group."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from config.schema import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def local_slots(self, global_batch_size: int) -> slice:
        """This rank's samples of a global batch."""
        local = global_batch_size // self.world_size
        return slice(self.rank * local, (self.rank + 1) * local)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        ConfigError: `cuda` is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device; use device=auto or device=cpu")
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def start(device_name: str) -> Ranks:
    """Join torchrun's process group, where there is one: NCCL on CUDA, gloo on the CPU."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank, world_size, device)


def stop(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensors: list[Tensor], ranks: Ranks) -> None:
    """Add the tensors up over all ranks, in place, in one flat reduction."""
    if ranks.world_size == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks one after another, on every rank; each has the same number."""
    if ranks.world_size == 1:
        return rows
    joined = rows.new_empty(ranks.world_size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(joined, rows.contiguous())
    return joined


def gather_lists(items: list[Any], ranks: Ranks) -> list[Any]:
    """The lists of all ranks joined, on every rank."""
    if ranks.world_size == 1:
        return items
    parts: list[list[Any]] = [[] for _ in range(ranks.world_size)]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def from_first_rank(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value, on every rank."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
