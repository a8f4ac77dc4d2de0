"""The task canvas, against the spec's rule written out pair by pair."""

from fractions import Fraction
from math import ceil

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.fewshot_puzzle_dataset import Batch, FewshotEvalDataset
from dataset.grids import place_grid
from dataset.store import PuzzleStore
from models.canvas import task_canvas, task_canvas_bounds

side = st.integers(1, 30)
size = st.tuples(side, side)


def tokens(size: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> torch.Tensor:
    return torch.from_numpy(place_grid(np.full(size, 3, dtype=np.uint8), offset))


def batch_of(demos: list[tuple[tuple[int, int], tuple[int, int]]], query: tuple[int, int], offset=(0, 0)) -> Batch:
    """One sample with an empty third slot whose contents must not matter."""
    slots = [*demos, ((30, 30), (30, 30))]
    return {
        "demo_inputs": torch.stack([tokens(a) for a, _ in slots])[None],
        "demo_labels": torch.stack([tokens(b) for _, b in slots])[None],
        "demo_mask": torch.tensor([[True] * len(demos) + [False]]),
        "inputs": tokens(query, offset)[None],
    }


def expected_side(demos: list[tuple[int, int]], query: int) -> int:
    """Rows (or columns) by the rule of the spec, without the border."""
    ratios = {Fraction(out, into) for into, out in demos}
    candidates = [query, *(n for pair in demos for n in pair)]
    if len(ratios) == 1:
        candidates.append(ceil(ratios.pop() * query))
    return max(candidates)


@given(demos=st.lists(st.tuples(size, size), min_size=1, max_size=3), query=size, data=st.data())
@settings(max_examples=80, deadline=None)
def test_canvas_follows_the_rule(
    demos: list[tuple[tuple[int, int], tuple[int, int]]], query: tuple[int, int], data: st.DataObject
) -> None:
    offset = tuple(data.draw(st.integers(0, 30 - n)) for n in query)
    start, end = task_canvas_bounds(batch_of(demos, query, offset), include_labels=False)
    for axis in range(2):
        needed = expected_side([(a[axis], b[axis]) for a, b in demos], query[axis])
        assert int(start[0, axis]) == offset[axis]
        assert int(end[0, axis]) == min(30, offset[axis] + needed + 1)


@given(scale=st.integers(1, 4), query=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_a_constant_ratio_scales_the_query(scale: int, query: int) -> None:
    demos = [((n, n), (n * scale, n * scale)) for n in (2, 3)]
    _, end = task_canvas_bounds(batch_of(demos, (query, query)), include_labels=False)
    assert int(end[0, 0]) >= min(30, query * scale + 1)


def test_canvas_never_depends_on_the_label_in_evaluation(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=64, max_groups=20, max_augmentations=2)
    batch = data[0]
    changed = {**batch, "labels": torch.full_like(batch["labels"], 7)}
    assert torch.equal(task_canvas(batch, include_labels=False), task_canvas(changed, include_labels=False))
    without = {key: value for key, value in batch.items() if key != "labels"}
    assert torch.equal(task_canvas(batch, include_labels=False), task_canvas(without, include_labels=False))


def test_in_training_every_label_fits(store: PuzzleStore, batch: Batch) -> None:
    large = {**batch, "labels": tokens((30, 30)).expand(len(batch["inputs"]), -1)}
    for data in (batch, large):
        active = task_canvas(data, include_labels=True)
        assert active[data["labels"] > 0].all()


def test_labels_of_arc_agi_1_fit_as_often_as_measured(store: PuzzleStore) -> None:
    """The design's figure: the label fits for 98.1-98.6 % of the test inputs of ARC-AGI-1."""
    for split in ("train", "test"):
        data = FewshotEvalDataset(store, batch_size=1000, split=split, max_augmentations=1)  # pyright: ignore[reportArgumentType]
        batch = data[0]
        active = task_canvas(batch, include_labels=False)
        fits = (active | (batch["labels"] == 0)).all(dim=1)
        assert 0.98 <= float(fits.float().mean()) <= 0.99
