"""`make bench-adapt`: an update of test-time training, as it is and without what makes it fast.

Random tasks of 4 demonstrations, all grids of one side; the base that comes along. Every variant makes the same
updates, in turn, each with weights of its own; the last two make them of four tasks, one after another and side by
side. Times are those that the process spends on its CPUs. `--write` puts the table into docs/performance.md, between
its marks.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.measure import in_turn
from benchmarks.pages import show_or_write, table
from dataset.arc_tasks import Pair, Task
from dataset.build_arc_dataset import store_of_tasks
from inference.adapt_options import AdaptOptions
from inference.adapt_stack import Stack
from inference.adapt_views import TaskViews
from inference.adapt_weights import Course, create_task_learner
from inference.shipped import shipped_base
from inference.solver import Solver
from models.act import RecursiveReasoner
from models.machine import best_dtype
from utils.threads import one_thread

CPU = torch.device("cpu")
SIDES = (3, 6, 10)
DEMOS = 4
UPDATES_A_CALL = 4
TOGETHER = 4
PLAIN, ANSWERS, FAST = "float32, all rows", "float32", "machine's dtype"
ONE_BY_ONE, STACKED = "one after another", "side by side"
KEPT = 5  # numbers for each parameter of a task: weight, gradient, two moments, average


def random_task(side: int, number: int = 0) -> Task:
    """Demonstrations without a rule; how long an update takes does not depend on one."""
    rng = np.random.default_rng((side, number))
    grids = rng.integers(0, 10, (DEMOS + 1, 2, side, side), dtype=np.uint8)
    pairs = tuple(Pair(first, second) for first, second in grids)
    return Task(f"random-{side}", "random", pairs[:DEMOS], pairs[DEMOS:])


def computed_in(model: RecursiveReasoner, dtype: torch.dtype, *, answers_alone: bool) -> RecursiveReasoner:
    """The model, computing in another dtype, its last block the answer's rows alone or all."""
    for module in model.modules():
        if "dtype" in vars(module):
            module.dtype = dtype
    model.inner.answers_alone = answers_alone
    return model


def course_of(solver: Solver, side: int, dtype: torch.dtype, *, answers_alone: bool = True, number: int = 0) -> Course:
    """The adaptation of a copy of the base to a random task."""
    options = AdaptOptions(translate=False)
    learner = create_task_learner(solver.model, solver.config.arch, options)
    computed_in(learner.model.train(), dtype, answers_alone=answers_alone)
    views = TaskViews(
        store_of_tasks([random_task(side, number)], 0, 0),
        range(DEMOS),
        number,
        views=options.views,
        max_demos=DEMOS,
        translate=False,
    )
    return Course(learner, views, options, None, CPU)


def updates(courses: Sequence[Course], stack: Stack | None = None) -> Callable[[], None]:
    """The next updates of some adaptations, at each call: one after another or in one pass."""

    def call() -> None:
        for _ in range(UPDATES_A_CALL):
            faults = [course.update() for course in courses] if stack is None else stack.update(courses)
            assert not any(faults)

    return call


def variants_of(solver: Solver, side: int) -> dict[str, Callable[[], None]]:
    """What is timed in turn."""
    fast = getattr(torch, best_dtype(CPU))

    def several() -> list[Course]:
        return [course_of(solver, side, torch.float32, number=number) for number in range(TOGETHER)]

    return {
        PLAIN: updates([course_of(solver, side, torch.float32, answers_alone=False)]),
        ANSWERS: updates([course_of(solver, side, torch.float32)]),
        FAST: updates([course_of(solver, side, fast)]),
        ONE_BY_ONE: updates(several()),
        STACKED: updates(several(), Stack(solver.model)),
    }


def report(rounds: int, sides: tuple[int, ...] = SIDES) -> str:
    """The table, and what it was measured on."""
    solver, rows = Solver.load(shipped_base(), device="cpu"), []
    with one_thread(CPU):
        for side in sides:
            timed = in_turn(variants_of(solver, side), rounds, clock=time.process_time)
            pairs = ((PLAIN, ANSWERS), (PLAIN, FAST), (ONE_BY_ONE, STACKED))
            rows.append((f"{side} x {side}", *(str(timed.ratio(*pair)) for pair in pairs)))
    head = (
        "an update, 4 demonstrations",
        "all rows of the last block / the answer's",
        "and float32 / machine's dtype",
        f"{TOGETHER} tasks, one after another / side by side",
    )
    weights = 4e-6 * sum(parameter.numel() for parameter in solver.model.parameters())
    return (
        f"Torch {torch.__version__}, one thread, {DEMOS} demonstrations, {AdaptOptions().views} views; this machine's "
        f"dtype is {best_dtype(CPU)}. Medians of {rounds} rounds, with their extremes. Each task side by side keeps "
        f"{KEPT * weights:.1f} MB (weights, gradients, moments, average), a pass stacks {2 * weights:.1f} MB more of "
        f"it.\n\n{table(head, rows)}"
    )


def main() -> None:
    show_or_write("bench-adapt", __doc__, report, rounds=15)


if __name__ == "__main__":
    main()
