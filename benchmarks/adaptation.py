"""`make bench-adapt`: an update of test-time training, as it is and without what makes it fast.

Random tasks of 4 demonstrations, all grids of one side; the base that comes along. Every variant makes the same
updates, in turn, each with weights of its own. Times are those that the process spends on its CPUs. `--write` puts the
table into docs/performance.md, between its marks.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measure import in_turn
from benchmarks.pages import show_or_write, table
from dataset.arc_tasks import Pair, Task
from dataset.build_arc_dataset import store_of_tasks
from inference.adapt_options import AdaptOptions
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
PLAIN, ANSWERS, FAST = "float32, all rows", "float32", "machine's dtype"


def random_task(side: int) -> Task:
    """Demonstrations without a rule; how long an update takes does not depend on one."""
    rng = np.random.default_rng(side)
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


def updates(solver: Solver, side: int, dtype: torch.dtype, *, answers_alone: bool) -> Callable[[], None]:
    """The next updates of one adaptation, at each call."""
    options = AdaptOptions(translate=False)
    learner = create_task_learner(solver.model, solver.config.arch, options)
    computed_in(learner.model.train(), dtype, answers_alone=answers_alone)
    views = TaskViews(
        store_of_tasks([random_task(side)], 0, 0),
        range(DEMOS),
        0,
        views=options.views,
        max_demos=DEMOS,
        translate=False,
    )
    course = Course(learner, views, options, None, CPU)

    def call() -> None:
        for _ in range(UPDATES_A_CALL):
            assert course.update() is None

    return call


def report(rounds: int, sides: tuple[int, ...] = SIDES) -> str:
    """The table, and what it was measured on."""
    solver, fast = Solver.load(shipped_base(), device="cpu"), getattr(torch, best_dtype(CPU))
    rows = []
    with one_thread(CPU):
        for side in sides:
            variants = {
                PLAIN: updates(solver, side, torch.float32, answers_alone=False),
                ANSWERS: updates(solver, side, torch.float32, answers_alone=True),
                FAST: updates(solver, side, fast, answers_alone=True),
            }
            timed = in_turn(variants, rounds, clock=time.process_time)
            rows.append((f"{side} x {side}", *(str(timed.ratio(PLAIN, name)) for name in (ANSWERS, FAST))))
    head = ("an update, 4 demonstrations", "all rows of the last block / the answer's", "and float32 / machine's dtype")
    return (
        f"Torch {torch.__version__}, one thread, {DEMOS} demonstrations, {AdaptOptions().views} views; this machine's "
        f"dtype is {best_dtype(CPU)}. Medians of {rounds} rounds, with their extremes.\n\n{table(head, rows)}"
    )


def main() -> None:
    show_or_write("bench-adapt", __doc__, report, rounds=15)


if __name__ == "__main__":
    main()
