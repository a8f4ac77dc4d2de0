"""Processes that answer puzzles: one that has ended is told of, whether it is to be given a job or to give a result."""

import multiprocessing
from collections.abc import Callable

import pytest

from inference.adapt_workers import Worker, WorkerError, worked_on


def doubling(setting: int) -> Callable[[int], int]:
    """What a process does: twice its job, and the setting."""
    return lambda job: 2 * job + setting


def test_jobs_are_done_by_all_processes_and_numbered() -> None:
    assert dict(worked_on(doubling, 1, enumerate(range(5)), 2)) == {number: 2 * number + 1 for number in range(5)}


@pytest.mark.parametrize("is_given_before", [False, True])
def test_a_process_that_has_ended_is_told_of(is_given_before: bool) -> None:
    worker = Worker(multiprocessing.get_context("spawn"), doubling, 1)
    if is_given_before:
        worker.give(0, 1)
        assert worker.take() == (0, 3)
    worker.process.kill()
    worker.process.join()

    def asked() -> None:
        worker.give(1, 1)
        worker.take()

    with pytest.raises(WorkerError, match=r"has ended \(status -9\); the same command goes on"):
        asked()
    worker.end()
