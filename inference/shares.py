"""A total of seconds, divided among tasks as they are begun."""

import heapq
import time
from collections.abc import Callable

from dataset.arc_tasks import Task
from inference.adapt_options import Budget

MIN_SECONDS = 0.001  # of a task for which no time is left: the base answers


class Shares:
    """How many seconds each of some tasks is given as it is begun, so that none is promised more than is left.

    Args:
        budget: of each task, where there is no total; else the most that one is given.
        total: seconds of all tasks together (None: each is given the budget).
        count: tasks.
        jobs: how many are worked on at a time.
        used: of the total, before now.
        clock: seconds of a clock that goes on.
    """

    def __init__(
        self,
        budget: Budget | None,
        total: float | None,
        count: int,
        *,
        jobs: int = 1,
        used: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.budget, self.left, self.clock = budget, count, clock
        self.deadline = None if total is None else clock() + total - used
        self.promised = [clock()] * max(1, min(jobs, count))  # until when each process is, the earliest first

    def next(self) -> Budget:
        """The budget of the next task: of a total, what all processes have left divided among the tasks left."""
        self.left, left = self.left - 1, self.left
        if self.deadline is None:
            assert self.budget is not None
            return self.budget
        now = self.clock()
        heapq.heappop(self.promised)  # the process that is free
        rest = max(0.0, self.deadline - now)
        room = rest + sum(max(0.0, self.deadline - max(now, until)) for until in self.promised)
        share = max(MIN_SECONDS, min(rest, room / left))
        cap = None if self.budget is None else self.budget.seconds
        share = share if cap is None else min(share, cap)
        heapq.heappush(self.promised, now + share)
        return Budget(seconds=share)


def cells_shown(task: Task) -> int:
    """Cells of a task's demonstrations: what an update costs goes by them."""
    return sum(pair.input.size + (0 if pair.output is None else pair.output.size) for pair in task.train)
