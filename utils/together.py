"""Programs of several ranks: how a command divides its work over those that a launcher started, and how a rank ends."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from utils import distributed
from utils.distributed import ENDED_BY_ANOTHER, SAID_BY_FIRST_RANK, Ranks
from utils.faults import of_machine
from utils.launch import is_one_of_several, rank_of_environment
from utils.run_status import EXIT_STATUS, USER_ERROR
from utils.signals import INTERRUPTED

log = logging.getLogger(__name__)


@contextmanager
def divided_work(device: str, faults: tuple[type[Exception], ...]) -> Iterator[Ranks]:
    """This process among the ranks that divide the work of the block, or alone. Rank 0 alone logs.

    A fault ends the process with one line and status 2. Where a rank fails, all of them end.

    Args:
        faults: errors that are the user's.
    """
    try:
        with _joined(device) as ranks:
            yield ranks
    except faults as error:
        leave(USER_ERROR, error)
    except BaseException as error:
        if is_one_of_several():
            _leave_for(error)
        raise


@contextmanager
def _joined(device: str) -> Iterator[Ranks]:
    ranks = distributed.start(device)
    if not ranks.is_first:
        logging.disable(logging.ERROR)
    try:
        yield ranks
    except BaseException as error:
        if SAID_BY_FIRST_RANK not in getattr(error, "__notes__", ()):
            _announce(error, ranks)
        raise
    distributed.stop(ranks)


def _announce(error: BaseException, ranks: Ranks) -> None:
    """Tell the other ranks of an error, or end as they do: what another has announced before is this one's cause, or
    the same."""
    reason = f"{type(error).__name__}: {error}"
    earlier = distributed.announce_failure(reason, ranks)
    if earlier is None:
        return
    if earlier.partition(": ")[2] != reason:
        log.error(ENDED_BY_ANOTHER, earlier)
        end_process(EXIT_STATUS["failed"])
    error.add_note(SAID_BY_FIRST_RANK)


def _leave_for(error: BaseException) -> NoReturn:
    """End one of several ranks for an error that is not the user's."""
    if isinstance(error, KeyboardInterrupt):
        leave(INTERRUPTED, error, "interrupted")
    if (said := of_machine(error)) is not None:
        leave(EXIT_STATUS["failed"], RuntimeError(said))
    log.critical("rank %d failed", rank_of_environment(), exc_info=error)
    end_process(EXIT_STATUS["failed"])


def leave(status: int, error: BaseException, word: str = "error") -> NoReturn:
    """End the process with one line that says why, unless another rank says it."""
    rank = rank_of_environment()
    if SAID_BY_FIRST_RANK not in getattr(error, "__notes__", ()):
        sys.stderr.write(f"{f'rank {rank}: ' if rank else ''}{word}{f': {error}' if str(error) else ''}\n")
    end_process(status)


def end_process(status: int) -> NoReturn:
    """Exit; as one of several ranks without waiting for a process group that a rank has left."""
    if is_one_of_several():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
