"""Which task each row belongs to, while the weights of several tasks stand side by side.

A stacked weight has one more dimension in front, the task. The samples of a batch are sorted by task, so that the rows
of a task stand next to each other wherever samples are packed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TaskRows:
    """Rows sorted by task.

    Attributes:
        task: (n) whose each row is.
        ends: (t) int32, where the rows of each task end.
    """

    task: Int[Tensor, " n"]
    ends: Int[Tensor, " t"]

    @classmethod
    def of(cls, task: Int[Tensor, " n"], tasks: int) -> "TaskRows":
        numbers = torch.arange(tasks, device=task.device, dtype=task.dtype)
        return cls(task, torch.searchsorted(task, numbers, right=True).to(torch.int32))


class TaskStack:
    """The samples of a batch by task, and the rows that are worked on."""

    def __init__(self, task_of_sample: Int[Tensor, " batch"], tasks: int):
        self.tasks = tasks
        self.samples = TaskRows.of(task_of_sample, tasks)
        self.rows = self.samples

    def enter(self, sequence: Int[Tensor, " n"]) -> TaskRows:
        """Work on packed rows from now on.

        Args:
            sequence: the sample that each row belongs to.
        """
        self.rows = TaskRows.of(self.samples.task[sequence], self.tasks)
        return self.rows


_ACTIVE: ContextVar[TaskStack | None] = ContextVar("task_stack", default=None)


def active_stack() -> TaskStack | None:
    """The stack of tasks that is worked on; None: there is one set of weights."""
    return _ACTIVE.get()


@contextmanager
def stacked_tasks(task_of_sample: Int[Tensor, " batch"], tasks: int) -> Iterator[TaskStack]:
    """Inside the block weights are stacked, and the samples of a batch belong to these tasks, in ascending order."""
    token = _ACTIVE.set(stack := TaskStack(task_of_sample, tasks))
    try:
        yield stack
    finally:
        _ACTIVE.reset(token)


def the_stack() -> TaskStack:
    """The stack of tasks that is worked on, which there must be."""
    stack = active_stack()
    assert stack is not None, "stacked weights are used inside `stacked_tasks`"
    return stack


def of_each_sample(weight: Float[Tensor, "*tasks hidden"], size: int) -> Float[Tensor, "batch hidden"]:
    """A vector of weights, or that of its task, for each of `size` samples."""
    return weight.expand(size, -1) if weight.dim() == 1 else weight[the_stack().samples.task]


def in_stack(numbers: Int[Tensor, "batch *shape"], table: Float[Tensor, "*tasks rows hidden"]) -> Tensor:
    """Each sample's row numbers of a table, as they are in the stacked tables one below another."""
    if table.dim() == 2:
        return numbers
    task = the_stack().samples.task.to(numbers.dtype)
    return numbers + table.shape[1] * task.view(-1, *[1] * (numbers.dim() - 1))
