"""The weights that come along: they are read, and a puzzle that they cannot answer is solved after adapting to it."""

from pathlib import Path

import numpy as np

from dataset.arc_tasks import Task
from dataset.subsets import load_subset
from inference.adapt_options import AdaptOptions
from inference.solver import Solution, Solver

BASE = Path(__file__).parents[1] / "weights" / "arc_base"
PUZZLE = "00576224"


def puzzle() -> Task:
    return next(task for task in load_subset("evaluation")[0] if task.id == PUZZLE)


def test_the_base_solves_an_evaluation_puzzle_by_adapting_that_it_does_not_solve_by_itself() -> None:
    """Seed 0, 150 updates; the outputs of test inputs are not there to be seen."""
    solver, task = Solver.load(BASE), puzzle()
    assert PUZZLE not in solver.checkpoint.trained_on.puzzle_ids
    (by_itself,) = solver.predict(task)
    (adapted,) = solver.predict(task, adapt_updates=150, adapt_with=AdaptOptions(translate=False))
    assert not is_right(by_itself, task)
    assert is_right(adapted, task)


def is_right(solution: Solution, task: Task) -> bool:
    (query,) = task.test
    return any(np.array_equal(attempt.grid, query.output) for attempt in solution.attempts)
