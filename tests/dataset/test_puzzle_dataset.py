"""TRM's training batches: which pairs are asked for, and that a held-out test pair never is."""

import numpy as np
import pytest
import torch

from dataset.puzzle_dataset import PuzzleTrainDataset
from dataset.store import DatasetError, PuzzleStore


def queried(data: PuzzleTrainDataset, store: PuzzleStore) -> dict[int, set[int]]:
    """By puzzle, the pairs that all its batches ask for, told by their tokens: the grids are looked up in the store."""
    found: dict[int, set[int]] = {}
    for number in range(len(data)):
        batch = data[number]
        for i, puzzle in enumerate(batch["puzzle_groups"].tolist()):
            augmentation = int(batch["puzzle_identifiers"][i]) - 1
            colors = store.colors[augmentation]
            counts = np.bincount(batch["inputs"][i].numpy(), minlength=12)[2:]
            first, last = store.puzzle_pairs[puzzle], store.puzzle_pairs[puzzle + 1]
            # Colour counts do not change under the dihedral group.
            pairs = [
                p
                for p in range(first, last)
                if np.array_equal(np.bincount(colors[store.grid(2 * p)].ravel(), minlength=10), counts)
            ]
            assert pairs, "the query must be a pair of its puzzle"
            if len(pairs) == 1:
                found.setdefault(puzzle, set()).add(pairs[0] - int(first))
    return found


def test_training_puzzles_ask_for_every_pair_and_held_out_ones_for_demonstrations_only(store: PuzzleStore) -> None:
    data = PuzzleTrainDataset(
        store,
        held_out_demonstrations=True,
        max_held_out_groups=6,
        max_groups=6,
        global_batch_size=12,
        epochs=150,
        seed=0,
    )
    found = queried(data, store)
    train, test = store.puzzles_of("train")[:6], store.puzzles_of("test")[:6]
    assert set(found) == {*train.tolist(), *test.tolist()}
    asked_for_test_pairs = 0
    for puzzle, pairs in found.items():
        demos = int(store.puzzle_demos[puzzle])
        if puzzle in test:
            assert max(pairs) < demos
        asked_for_test_pairs += max(pairs) >= demos
    assert asked_for_test_pairs >= 4


def test_without_held_out_demonstrations_only_training_puzzles_are_drawn(store: PuzzleStore) -> None:
    data = PuzzleTrainDataset(
        store, held_out_demonstrations=False, max_groups=5, global_batch_size=10, epochs=20, seed=0
    )
    drawn = torch.cat([data[i]["puzzle_groups"] for i in range(len(data))])
    assert set(drawn.tolist()) == set(store.puzzles_of("train")[:5].tolist())


def test_a_query_is_not_among_its_own_demonstrations(store: PuzzleStore) -> None:
    """One demonstration fewer is shown where one is asked for, which for held-out puzzles is always."""
    data = PuzzleTrainDataset(
        store, held_out_demonstrations=True, max_held_out_groups=4, max_groups=4, global_batch_size=8, epochs=40, seed=0
    )
    missing: dict[bool, set[int]] = {True: set(), False: set()}
    for number in range(len(data)):
        batch = data[number]
        puzzles = batch["puzzle_groups"].numpy()
        fewer = store.puzzle_demos[puzzles] - batch["demo_mask"].sum(1).numpy()
        for puzzle, count in zip(puzzles, fewer, strict=True):
            missing[store.metadata.puzzle_splits[puzzle] == "test"].add(int(count))
    assert missing == {True: {1}, False: {0, 1}}


def test_more_held_out_puzzles_than_there_are_is_an_error_that_names_the_key(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match="max_eval_groups=5000"):
        PuzzleTrainDataset(
            store, held_out_demonstrations=True, max_held_out_groups=5000, global_batch_size=4, epochs=1, seed=0
        )
