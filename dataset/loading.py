"""Worker processes that read data, watched: one that is dead, stuck or cannot be started is noticed and named."""

import logging
import multiprocessing
import resource
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.profiler import record_function
from torch.utils.data import DataLoader

from utils.errors import MachineError

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0  # how long one look waits for a batch
LOOKS = 9
SAID_AT_LOOK = 3
WORKER_ERROR = "Caught "  # how torch begins the message of what a worker has raised itself
T = TypeVar("T")


class DataSourceError(MachineError):
    """The processes that read data give none any more, or could not be started."""


def outlive_signals(worker: int) -> None:
    """A signal to the whole process group asks the main process to finish its step, for which it needs its data.
    Workers end when the main process says so, or is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def watched(loader: DataLoader[T], what: str) -> Iterator[T]:
    """The batches of a loader.

    Args:
        what: it reads, for a message.

    Raises:
        DataSourceError: the workers could not be started, one has died, or none came in LOOKS looks.
    """
    loader.timeout = LOOK_SECONDS if loader.num_workers else 0
    _load_what_torch_loads_late()
    before = multiprocessing.active_children()
    batches: Any = None
    try:
        batches = iter(loader)
        while True:
            try:
                batch = _next_batch(batches, loader, what)
            except StopIteration:
                break
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        if not loader.num_workers or str(error).startswith(WORKER_ERROR):
            raise
        _kill_workers(batches, [child for child in multiprocessing.active_children() if child not in before])
        raise error if isinstance(error, DataSourceError) else _explained(error, loader, what) from error


def _load_what_torch_loads_late() -> None:
    """A part of torch's profiler, imported at the first batch: a worker's death, an error wherever the main process is,
    would be logged with a traceback in that import, and forgotten."""
    with record_function("batches"):
        pass


def _next_batch(batches: Iterator[T], loader: DataLoader[T], what: str) -> T:
    """The next batch, in several looks: a process that was suspended does not take that for the workers' fault."""
    for look in range(1, LOOKS + 1):
        try:
            return next(batches)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
        if look == SAID_AT_LOOK:
            log.warning("waiting for %s from %s", what, _workers_of(loader))
    seconds = LOOKS * LOOK_SECONDS
    raise DataSourceError(f"{_workers_of(loader)} gave none of {what} for {seconds:.0f} s; {_remedy(loader)}")


def _explained(error: Exception, loader: DataLoader[Any], what: str) -> DataSourceError:
    why = str(error).splitlines()[0] if str(error) else "the connection to them has ended"
    return DataSourceError(f"{_workers_of(loader)} cannot read {what}: {why}; {_remedy(loader)}")


def _workers_of(loader: DataLoader[Any]) -> str:
    return f"the worker processes (data_workers={loader.num_workers})"


def _remedy(loader: DataLoader[Any]) -> str:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"data_workers=0 reads without them; each needs open files (ulimit -n is {files}), /dev/shm and memory"


def _kill_workers(batches: Any, started: list[BaseProcess]) -> None:
    """End workers that cannot be asked to: they take no other signal, and this process would wait for them at its end.

    Args:
        batches: of torch, which is to take their end as it comes; None where starting them has failed on the way.
    """
    if batches is not None:
        torch._C._remove_worker_pids(id(batches))  # pyright: ignore[reportAttributeAccessIssue]
        batches._worker_pids_set, batches._shutdown = False, True
        for queue in batches._index_queues:
            queue.cancel_join_thread()
    for worker in started if batches is None else batches._workers:
        worker.kill()
        worker.join()
