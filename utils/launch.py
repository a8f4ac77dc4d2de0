"""What a launcher (torchrun) says of this process in its variables; read without torch."""

import os
from dataclasses import dataclass

from utils.errors import ConfigError

BY_TORCHRUN = "torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    meeting_point: `address:port` where they meet; empty for a process by itself.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    meeting_point: str = ""


def rank_of_environment() -> int:
    """The rank that torchrun gave to this process; 0 without torchrun, or where the variable is no number."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def is_one_of_several() -> bool:
    """Whether a launcher has started other ranks beside this process."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def launch_of_environment() -> Launch:
    """What the variables say, complete and consistent.

    Raises:
        ConfigError: names the variable that is missing or wrong.
    """
    rank, size, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None and (size is None or size == 1):
        return Launch(local_rank=local_rank or 0)
    if rank is None or size is None:
        there, missing = ("RANK", "WORLD_SIZE") if size is None else ("WORLD_SIZE", "RANK")
        raise ConfigError(
            f"{there}={os.environ[there]} is set, but {missing} is not: {BY_TORCHRUN}; start with torchrun, or unset "
            f"{there} for a single process"
        )
    if not rank < size:
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={size}")
    if size == 1:
        return Launch(local_rank=local_rank or 0)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(
                f"WORLD_SIZE={size} ranks, but {name} does not say where they meet: {BY_TORCHRUN}; start with "
                "torchrun, or unset RANK and WORLD_SIZE for a single process"
            )
    _number("MASTER_PORT")
    return Launch(rank, size, local_rank or 0, f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}")


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} is not a number: {BY_TORCHRUN}")
    return int(text)
