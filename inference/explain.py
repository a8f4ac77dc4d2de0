"""How a prediction came about: what each ACT step changed, and whether the demonstrations matter to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dataset.arc_tasks import Task, parse_task
from dataset.build_arc_dataset import store_of_tasks
from dataset.grids import Grid
from dataset.splits import pair_hashes
from dataset.task_files import shipped_tasks
from inference.solver import Solver
from inference.traces import QueryTrace, plain_queries

DONOR_SUBSET = "training"


@dataclass(frozen=True)
class Explanation:
    """One test input of a task as it is (not augmented).

    changed: the cells that each ACT step changed; for the first, all that it predicted.
    donor: the task whose demonstrations were shown instead.
    swapped: the grid that was predicted with those.
    same_demonstrations: the donor has the demonstrations of the task itself, so that nothing was swapped.
    """

    trace: QueryTrace
    changed: tuple[int, ...]
    donor: str
    swapped: Grid
    same_demonstrations: bool

    @property
    def last_change(self) -> int:
        """The last step, from 1, that changed the prediction; 0 where none predicted anything."""
        return max((step for step, count in enumerate(self.changed, start=1) if count), default=0)

    @property
    def swap_changes(self) -> int:
        """In how many cells the last prediction differs with the other demonstrations."""
        return changed_cells(self.trace.prediction, self.swapped)


def changed_cells(before: Grid, after: Grid) -> int:
    """In how many cells two grids differ; cells that only one of them has count."""
    height, width = np.maximum(before.shape, after.shape)
    drawn = np.full((2, height, width), -1)
    for canvas, grid in zip(drawn, (before, after), strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    return int((drawn[0] != drawn[1]).sum())


def explain(solver: Solver, tasks: Sequence[Task], traces: Sequence[QueryTrace], seed: int = 0) -> list[Explanation]:
    """Explain the traces of all test inputs of the tasks, in order.

    Each is asked again with the demonstrations of another of the tasks; a task that is alone, with those of a puzzle of
    ARC-AGI-1's training set, drawn by the seed.
    """
    shown = list(tasks) if len(tasks) > 1 else [*tasks, donor_for(tasks[0], seed)]
    data = solver.shuffled_queries(store_of_tasks(shown, 0, seed), seed)
    rows = plain_queries(data, len(traces))  # those of the tasks, without the donor's own
    donors = data.query_puzzle[data.donor[rows]]
    others = solver.trace(data, rows)
    tasks_by_id, most = {task.id: task for task in shown}, solver.config.max_demos
    return [
        Explanation(
            trace=trace,
            changed=_changes(trace),
            donor=shown[donor].id,
            swapped=other.prediction,
            same_demonstrations=_shown(tasks_by_id[trace.puzzle], most) == _shown(shown[donor], most),
        )
        for trace, other, donor in zip(traces, others, donors, strict=True)
    ]


def _changes(trace: QueryTrace) -> tuple[int, ...]:
    grids = [np.zeros((0, 0), dtype=np.uint8), *(step.grid for step in trace.steps)]
    return tuple(changed_cells(*pair) for pair in pairwise(grids))


def _shown(task: Task, max_demos: int) -> list[tuple[list[list[int]], ...]]:
    """The demonstrations that the model reads, in an order of their own."""
    return sorted(tuple(g.tolist() for g in (p.input, p.output) if g is not None) for p in task.train[:max_demos])


def donor_for(task: Task, seed: int) -> Task:
    """A puzzle of ARC-AGI-1's training set that shares no pair and no id with the task."""
    values = shipped_tasks(DONOR_SUBSET)
    own = set(pair_hashes(task))
    for index in np.random.default_rng(seed).permutation(len(values)):
        name = list(values)[index]
        donor = parse_task(name, values[name], DONOR_SUBSET, DONOR_SUBSET)
        if name != task.id and own.isdisjoint(pair_hashes(donor)):
            return donor
    raise AssertionError("no task shares pairs with the whole training set")
