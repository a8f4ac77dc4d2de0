"""Evaluation batches that are cut by cells: each query once, within the budget, and as full as it allows."""

import itertools

import numpy as np
import pytest
import torch

from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import PAD
from dataset.store import PuzzleStore
from dataset.token_batches import bounds_by_cells, cells_of_queries
from models.canvas import task_canvas


def data_of(store: PuzzleStore, batch_tokens: int | None = None, **options: int) -> FewshotEvalDataset:
    return FewshotEvalDataset(
        store, batch_size=10, batch_tokens=batch_tokens, max_demos=3, max_groups=8, max_augmentations=4, **options
    )


def test_the_cells_of_a_query_are_those_of_its_demonstrations_and_canvas(store: PuzzleStore) -> None:
    """And of the corner that a border leaves out. The canvas is the task's, which a ratio of sizes may enlarge."""
    data = data_of(store)
    cells = torch.from_numpy(cells_of_queries(store, data.demo_pairs(data.mine), data.query_pair))
    batch = data.queries(data.mine)
    shown = sum(((batch[key] != PAD).sum((1, 2)) for key in ("demo_inputs", "demo_labels")), torch.tensor(0))
    canvas = task_canvas(batch, include_labels=False).sum(1)
    corners = 2 * batch["demo_mask"].sum(1)
    assert (cells > shown).all()
    assert (cells <= shown + canvas + corners).all()
    assert (cells >= shown + canvas).float().mean() > 0.5


@pytest.mark.parametrize("budget", [1, 4000, 20_000, 10**9])
@pytest.mark.parametrize("rank", [0, 1])
def test_every_query_is_asked_once_in_batches_as_full_as_the_budget_allows(
    store: PuzzleStore, budget: int, rank: int
) -> None:
    plain, data = (data_of(store, tokens, rank=rank, world_size=2) for tokens in (None, budget))
    cells = cells_of_queries(store, data.demo_pairs(data.mine), data.query_pair[data.mine])
    sizes = [len(data[number]["query_indices"]) for number in range(len(data))]
    asked = np.concatenate([data[number]["query_indices"] for number in range(len(data))])
    assert asked.tolist() == plain.mine.tolist()
    starts = np.cumsum([0, *sizes])
    totals = [int(cells[a:b].sum()) for a, b in itertools.pairwise(starts)]
    assert all(total <= budget or size == 1 for total, size in zip(totals, sizes, strict=True))
    assert all(total + cells[b] > budget for total, b in zip(totals, starts[1:-1], strict=False))
    if budget == 20_000:
        assert len(set(sizes)) > 1
    with pytest.raises(IndexError, match=f"batch {len(data)} of {len(data)}"):
        data[len(data)]


def test_no_queries_are_no_batches() -> None:
    assert bounds_by_cells(np.zeros(0, dtype=np.int64), 5).tolist() == [0]
    assert bounds_by_cells(np.array([9, 1, 1, 9]), 5).tolist() == [0, 1, 3, 4]
