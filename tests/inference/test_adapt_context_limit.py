"""Adapting heeds `max_context_tokens` as training and evaluation do: whole demonstrations are left out, and counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.arc_tasks import Pair, Task
from dataset.batches import Batch
from dataset.build_arc_dataset import store_of_tasks
from dataset.store import DatasetError
from inference.adapt import Adaptation, Tell, adapt, tell_nothing
from inference.adapt_figures import figures
from inference.adapt_options import AdaptOptions, Budget
from inference.adapt_record import Answered
from inference.adapt_terminal import sentences
from inference.adapt_views import TaskViews, asked_of_the_others
from inference.solver import Solver
from tests.inference.test_adapt import TINY

MOST = 60
QUICK = AdaptOptions(votes=2, views=8, agreement_views=2, fork_every=2, warmup_updates=2, lr=3e-3)


def task_of(*sides: int) -> Task:
    """Demonstrations of these sides: 2 · side² cells each."""
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, (side, side)).astype(np.uint8) for side in (*sides, 2)]
    pairs = tuple(Pair(grid, grid[::-1].copy()) for grid in grids)
    return Task("t", "toy", pairs[:-1], pairs[-1:])


TASK = task_of(4, 3, 2, 7)  # 32, 18, 8 and 98 cells


def cells(batch: Batch) -> torch.Tensor:
    return (batch["demo_inputs"] >= 2).sum(dim=(1, 2)) + (batch["demo_labels"] >= 2).sum(dim=(1, 2))


def views_of(task: Task, most: int | None) -> TaskViews:
    options: dict[str, Any] = {"views": 8, "max_demos": 4, "translate": True, "max_context_tokens": most}
    return TaskViews(store_of_tasks([task], 0, 0), range(len(task.train)), 3, **options)


def test_views_leave_out_whole_demonstrations_and_count_them() -> None:
    """The same are asked for in the same versions, and one is always shown."""
    plain, limited = views_of(TASK, None), views_of(TASK, MOST)
    lacking = 0
    for number in range(20):
        whole, batch = plain[number], limited[number]
        assert "demos_left_out" not in whole
        assert (cells(batch) <= MOST).all()
        assert batch["demo_mask"].any(dim=1).all()
        for key in ("inputs", "labels"):
            assert torch.equal(whole[key], batch[key])
        assert torch.equal(whole["demo_mask"].sum(1) - batch["demo_mask"].sum(1), batch["demos_left_out"])
        lacking += int(batch["demos_left_out"].sum())
    assert lacking


def test_a_demonstration_is_asked_for_beside_those_that_fit() -> None:
    """Those that never fit come last, so that they take no slot from others."""
    store = store_of_tasks([task_of(7, 2, 3)], 0, 0)
    batch = asked_of_the_others(store, range(3), [1], views=1, max_demos=1, max_context_tokens=MOST)
    assert cells(batch).tolist() == [18]
    every = asked_of_the_others(store, range(3), range(3), views=1, max_demos=4, max_context_tokens=MOST)
    assert cells(every).tolist() == [26, 18, 8]
    assert every["demos_left_out"].tolist() == [0, 1, 1]


@pytest.fixture(scope="module")
def solver(untrained: Callable[..., Path]) -> Solver:
    loaded = Solver.load(untrained(*TINY), device="cpu")
    loaded.config = loaded.config.model_copy(update={"max_context_tokens": MOST})
    return loaded


def adapted(solver: Solver, task: Task, most: int | None = MOST, options: AdaptOptions = QUICK) -> Adaptation:
    config = solver.config.model_copy(update={"max_context_tokens": most})
    return adapt(solver.model, config, task, options, Budget(updates=4))


def test_an_adaptation_trains_within_the_limit_and_says_what_it_leaves_out(solver: Solver) -> None:
    limited, whole = adapted(solver, TASK), adapted(solver, TASK, most=None)
    assert limited.ended == whole.ended == "updates"
    assert limited.marks[-1].loss != whole.marks[-1].loss
    assert (limited.demos_left_out, whole.demos_left_out) == (1, 0)
    answered = Answered.of(limited, None)
    assert Answered.from_json(answered.to_json()).demos_left_out == 1
    assert any("1 demonstrations are left out" in sentence for sentence in sentences(answered))
    seen = solver.checkpoint.trained_on
    counts = [figures([TASK], [Answered.of(done, None)], seen, QUICK, None) for done in (limited, whole)]
    assert [found.get("adapt/demos_left_out") for found in counts] == [1.0, None]


@pytest.mark.parametrize(("sides", "ended"), [((2, 7), "no_room"), ((2, 3, 7), "updates"), ((2, 7, 7), "no_room")])
def test_where_one_has_no_other_that_fits_the_base_answers(solver: Solver, sides: Any, ended: str) -> None:
    done = adapted(solver, task_of(*sides))
    assert done.ended == ended
    assert (done.model is solver.model) == (ended == "no_room")


def test_what_is_paired_wrongly_may_have_no_room_either(solver: Solver) -> None:
    """Each fits with its own output, and none with the next one's."""
    small, large = np.zeros((2, 2), dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    task = Task("t", "toy", (Pair(small, small), Pair(small, small), Pair(large, large)), (Pair(small, None),))
    mispaired = QUICK.model_copy(update={"control": "mispaired", "fork_every": 0})
    assert adapted(solver, task, options=mispaired).ended == "no_room"
    assert adapted(solver, task).ended == "updates"


def test_a_task_without_any_demonstration_that_fits_is_refused_before_anything_is_done(solver: Solver) -> None:
    begun: list[str] = []

    def tell(task: Task, budget: Budget) -> Tell:
        begun.append(task.id)
        return tell_nothing

    tasks = [replace(task_of(2, 2), id="small"), task_of(7, 7)]
    with pytest.raises(DatasetError, match=f"max_context_tokens={MOST} leaves puzzle 't' without any .* it needs 98"):
        solver.solve_adapted(tasks, QUICK, Budget(updates=1), tell=tell)
    assert not begun
