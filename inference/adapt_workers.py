"""Jobs given to processes one at a time, each to the first that is free."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from utils.errors import MachineError

PARENT_SECONDS = 0.5
Setting = TypeVar("Setting")
Result = TypeVar("Result")


class WorkerError(MachineError):
    """A process that works has ended."""


def worked_on(
    prepare: Callable[[Setting], Callable[[Any], Result]],
    setting: Setting,
    jobs: Iterable[tuple[int, Any]],
    processes: int,
) -> Iterator[tuple[int, Result]]:
    """The number and result of each job, as they come.

    Args:
        prepare: a function of a module, called once in each process with `setting`; what it returns does the jobs.
        jobs: numbered; each is asked for when a process is free.
        processes: 1: this one does them all.

    Raises:
        WorkerError: a process has ended without a result. Errors of a job are raised as they are.
    """
    if processes == 1:
        work = prepare(setting)
        for number, job in jobs:
            yield number, work(job)
        return
    context = multiprocessing.get_context("spawn")
    workers = [Worker(context, prepare, setting) for _ in range(processes)]
    try:
        yield from _divided(workers, iter(jobs))
    finally:
        for worker in workers:
            worker.end()


class Worker:
    """A process with a pipe to it. It ends with this process, however that ends."""

    def __init__(self, context: Any, prepare: Callable[[Any], Callable[[Any], Any]], setting: Any):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, setting, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.number: int | None = None

    def give(self, number: int, job: Any) -> None:
        """
        Raises:
            WorkerError: the process has ended.
        """
        self.number = number
        try:
            self.pipe.send(job)
        except ConnectionError as error:
            raise self._has_ended() from error

    def _has_ended(self) -> WorkerError:
        self.process.join()
        return WorkerError(
            f"a process that answers puzzles has ended (status {self.process.exitcode}); the same command goes on"
        )

    def take(self) -> tuple[int, Any]:
        """The result of the job that it was given.

        Raises:
            WorkerError: the process has ended.
        """
        assert self.number is not None
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._has_ended() from error
        if isinstance(result, BaseException):
            raise result
        number, self.number = self.number, None
        return number, result

    def end(self) -> None:
        self.pipe.close()
        if self.number is not None:
            self.process.kill()
        self.process.join()


def _divided(workers: list[Worker], jobs: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    for worker in workers:
        _give_next(worker, jobs)
    while busy := {worker.pipe: worker for worker in workers if worker.number is not None}:
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # pyright: ignore[reportArgumentType]
            found = worker.take()
            _give_next(worker, jobs)
            yield found


def _give_next(worker: Worker, jobs: Iterator[tuple[int, Any]]) -> None:
    job = next(jobs, None)
    if job is not None:
        worker.give(*job)


def _serve(pipe: Connection, prepare: Callable[[Any], Callable[[Any], Any]], setting: Any, parent: int) -> None:
    """What a process does until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to hear
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    try:
        work = prepare(setting)
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 - the parent raises it
        pipe.send(error)


def _end_with(parent: int) -> None:
    """End this process soon after its parent."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
