"""Ranks: started by torchrun, or a single process that needs no process group."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import ConfigError, MachineError
from utils.launch import Launch, launch_of_environment
from utils.waiting import saying

log = logging.getLogger(__name__)
GATHERED_AT_ONCE = 4096
WATCH_SECONDS = 1.0
SAID_BY_FIRST_RANK = "rank 0 says so too"
ENDED_BY_ANOTHER = "ended, because another rank failed: %s"
_leaving = threading.Event()  # this process ends by itself and is not to be ended by its watch
T = TypeVar("T")


class MeetingError(MachineError):
    """The ranks that a launcher has started have not found each other."""


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
        ConfigError: `cuda` is asked for and there is none, or none for this rank.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device; use device=auto or device=cpu")
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    if use_cuda and local_rank >= (found := torch.cuda.device_count()):
        raise ConfigError(f"LOCAL_RANK={local_rank}, but torch finds {found} CUDA devices: start as many ranks a host")
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def start(device_name: str, timeout_s: float = 1800) -> Ranks:
    """Join torchrun's process group, where there is one: NCCL on CUDA, gloo on the CPU.

    Args:
        timeout_s: a collective that takes longer raises (gloo) or ends the process (NCCL).

    Raises:
        ConfigError: the launcher's variables, or the device, cannot be used.
        MeetingError: the ranks have not come together within the timeout.
    """
    launch = launch_of_environment()
    device = choose_device(device_name, launch.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ranks = Ranks(launch.rank, launch.world_size, device)
    if launch.world_size > 1 and not dist.is_initialized():
        _meet("nccl" if device.type == "cuda" else "gloo", launch, timeout_s)
        _leaving.clear()
        threading.Thread(target=_watch_for_failure, name="failure watch", daemon=True).start()
    return ranks


def _meet(backend: str, launch: Launch, timeout_s: float) -> None:
    what = f"all {launch.world_size} ranks at {launch.meeting_point}"
    try:
        with saying(f"{what}; this is rank {launch.rank}"):
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (dist.DistError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise MeetingError(f"{what} did not come together (distributed_timeout_s={timeout_s:g}): {why}") from error


def stop(ranks: Ranks) -> None:
    """Leave the process group."""
    _leaving.set()
    if ranks.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _failure_store() -> dist.Store:
    """A connection of its own to the store that torchrun keeps, under a name that a restart does not share."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    attempt = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore("/".join(("failure", *attempt)), store)


def _watch_for_failure() -> None:
    """End this process soon after another rank has said that it failed, whatever this one is waiting for."""
    try:
        store = _failure_store()
        while not store.check(["reason"]):
            if _leaving.wait(WATCH_SECONDS):
                return
        reason = store.get("reason").decode()
    except RuntimeError:  # the store is gone: so is the launcher, or the run is over; collectives notice the rest
        return
    if not _leaving.is_set():
        log.error(ENDED_BY_ANOTHER, reason)
        logging.shutdown()
        os._exit(1)


def announce_failure(reason: str, ranks: Ranks) -> str | None:
    """Tell the other ranks that this one ends, so that they end within seconds and not at a collective's timeout.

    Returns:
        What another rank has announced before, `rank <r>: <reason>`, where one has.
    """
    _leaving.set()
    if ranks.world_size > 1:
        try:
            mine = f"rank {ranks.rank}: {reason}"
            found = _failure_store().compare_set("reason", "", mine).decode()
            return None if found == mine else found
        except RuntimeError as error:
            log.warning("the other ranks could not be told (%s); they end at their next collective", error)
    return None


def sum_over_ranks(tensors: list[Tensor], ranks: Ranks) -> None:
    """Add the tensors up over all ranks, in place, in one flat reduction."""
    if ranks.world_size == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on any rank, on every rank."""
    if ranks.world_size == 1:
        return flag
    count = torch.tensor(float(flag), device=ranks.device)
    dist.all_reduce(count)
    return bool(count.item())


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks one after another, on every rank; each has the same number."""
    if ranks.world_size == 1:
        return rows
    joined = rows.new_empty(ranks.world_size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(joined, rows.contiguous())
    return joined


def gather_padded_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """`gather_rows` of rows (B, T, ...) whose T may differ between ranks: padded with zeros to the largest."""
    if ranks.world_size == 1:
        return rows
    longest = max(gather_lists([rows.shape[1]], ranks))
    padded = rows.new_zeros(len(rows), longest, *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    return gather_rows(padded, ranks)


def gather_lists(items: list[Any], ranks: Ranks) -> list[Any]:
    """The lists of all ranks joined, on every rank; lengths may differ, and no message holds more than
    `GATHERED_AT_ONCE` items of a rank."""
    if ranks.world_size == 1:
        return items
    lengths = [0] * ranks.world_size
    dist.all_gather_object(lengths, len(items))
    joined: list[list[Any]] = [[] for _ in range(ranks.world_size)]
    for first in range(0, max(lengths), GATHERED_AT_ONCE):
        parts: list[list[Any]] = [[] for _ in range(ranks.world_size)]
        dist.all_gather_object(parts, items[first : first + GATHERED_AT_ONCE])
        for whole, part in zip(joined, parts, strict=True):
            whole += part
    return [item for part in joined for item in part]


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.world_size > 1:
        dist.barrier()


def from_first_rank(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value, on every rank."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first_rank(make: Callable[[], T], ranks: Ranks) -> T:
    """What `make()` returns on rank 0, on every rank.

    Raises:
        ValueError, RuntimeError, OSError: what `make` raises there, on every rank.
    """
    if ranks.world_size == 1:
        return make()
    outcome: tuple[Any, Exception | None] = (None, None)
    if ranks.is_first:
        try:
            outcome = (make(), None)
        except (ValueError, RuntimeError, OSError) as error:
            outcome = (None, error)
    value, error = from_first_rank(outcome, ranks)
    if error is not None:
        if not ranks.is_first:
            error.add_note(SAID_BY_FIRST_RANK)
        raise error
    return value


def raise_together(error: Exception | None, ranks: Ranks) -> None:
    """Raise on every rank the error of the first rank that has one, so that none waits for another."""
    if ranks.world_size == 1:
        if error is not None:
            raise error
        return
    errors = gather_lists([] if error is None else [(ranks.rank, error)], ranks)
    if errors:
        rank, found = errors[0]
        if not ranks.is_first:
            found.add_note(SAID_BY_FIRST_RANK)
        raise type(found)(f"rank {rank}: {found}") if rank else found


def together(make: Callable[[], T], ranks: Ranks) -> T:
    """What `make()` returns on this rank, as soon as it has returned on all of them; ranks do not meet inside it.

    Raises:
        ValueError, RuntimeError, OSError: what `make` raises on the first rank where it does, on every rank.
    """
    value, fault = None, None
    try:
        value = make()
    except (ValueError, RuntimeError, OSError) as error:
        fault = error
    raise_together(fault, ranks)
    return cast(T, value)
