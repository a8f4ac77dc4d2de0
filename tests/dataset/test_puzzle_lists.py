"""The fixed lists of puzzles are what their names say."""

import random
from pathlib import Path

import pytest

from dataset.arc_tasks import Task
from dataset.build_arc_dataset import largest_side
from dataset.subsets import load_subset
from inference.adapt_evaluation import read_puzzle_list

LISTS = Path(__file__).parents[2] / "dataset" / "puzzle_lists"


@pytest.fixture(scope="module")
def evaluation() -> list[Task]:
    return load_subset("evaluation")[0]


@pytest.mark.parametrize(("side", "count"), [(10, 77), (20, 282)])
def test_all_grids_of_the_listed_puzzles_are_within_the_side(evaluation: list[Task], side: int, count: int) -> None:
    within = [task.id for task in evaluation if largest_side(task) <= side]
    listed = read_puzzle_list(LISTS / f"arc_agi_1_evaluation_{side}x{side}.txt")
    assert listed == sorted(within)
    assert len(listed) == count


def test_the_puzzles_of_the_demo_are_drawn_by_a_seed() -> None:
    drawn = random.Random(0).sample(read_puzzle_list(LISTS / "arc_agi_1_evaluation_10x10.txt"), 4)
    assert drawn == read_puzzle_list(LISTS / "demo.txt")
