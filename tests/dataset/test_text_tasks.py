"""The finite table of tasks that training draws from, and the latents that batches bring along."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.augment import augment_grid
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.grids import place_grid
from dataset.store import DatasetError, PuzzleStore
from dataset.text_tasks import TaskLatents, TaskTable, TextTrainDataset, eval_tasks


def dataset(store: PuzzleStore, **changed: Any) -> TextTrainDataset:
    options = {"global_batch_size": 8, "epochs": 40, "seed": 0, "max_groups": 8, "max_demos": 3}
    return TextTrainDataset(store, **{"text_augmentations": 2, "curriculum": "none", **options, **changed})


def expected_tokens(table: TaskTable, store: PuzzleStore, task: int) -> tuple[np.ndarray, np.ndarray]:
    pair, augmentation = int(table.query_pair[task]), int(table.augmentation[task])
    transform, colors = int(store.dihedral[augmentation]), store.colors[augmentation]
    query, answer = (place_grid(augment_grid(store.grid(2 * pair + side), transform, colors)) for side in range(2))
    return query, answer


@pytest.mark.parametrize("query_sampling", ["test", "leave_one_out"])
def test_the_table_has_each_query_in_the_first_versions_with_demonstrations_in_order(
    store: PuzzleStore, query_sampling: str
) -> None:
    data = dataset(store, query_sampling=query_sampling, max_demos=10)
    table = data.tasks
    expected = []
    for puzzle in store.puzzles_of("train")[:8]:
        first, last, demos = store.puzzle_pairs[puzzle], store.puzzle_pairs[puzzle + 1], store.puzzle_demos[puzzle]
        pairs = list(range(first, last))
        for query in pairs if query_sampling == "leave_one_out" else pairs[demos:]:
            shown = pairs if query_sampling == "leave_one_out" else pairs[:demos]
            for version in range(2):
                augmentation = store.puzzle_augmentations[puzzle] + version
                expected.append((puzzle, augmentation, query, [pair for pair in shown if pair != query]))
    found = [
        (table.puzzle[i], table.augmentation[i], table.query_pair[i], [p for p in table.demo_pairs[i] if p >= 0])
        for i in range(len(table))
    ]
    assert found == expected


def test_batches_are_tasks_of_the_table_untranslated(store: PuzzleStore) -> None:
    data = dataset(store)
    drawn: Counter[int] = Counter()

    class Numbers:
        def of(self, samples: np.ndarray) -> dict[str, torch.Tensor]:
            return {"z_init": torch.from_numpy(samples.astype(np.float32)[:, None])}

    data.conditions = Numbers()
    for number in range(len(data)):
        batch = data[number]
        for i, task in enumerate(batch["z_init"][:, 0].int().tolist()):
            drawn[task] += 1
            query, answer = expected_tokens(data.tasks, store, task)
            assert np.array_equal(batch["inputs"][i].numpy(), query)
            assert np.array_equal(batch["labels"][i].numpy(), answer)
            assert int(batch["demo_mask"][i].sum()) == (data.tasks.demo_pairs[task] >= 0).sum()
            assert int(batch["puzzle_groups"][i]) == data.tasks.puzzle[task]
    assert set(drawn) == set(range(len(data.tasks)))
    by_puzzle = Counter(int(data.tasks.puzzle[task]) for task in drawn.elements())
    assert set(by_puzzle.values()) == {40}


def test_more_versions_than_any_puzzle_has_are_refused(store: PuzzleStore) -> None:
    assert len(dataset(store, text_augmentations=13).tasks) > len(dataset(store).tasks)
    with pytest.raises(DatasetError, match=r"text_augmentations=14.*more than 13 versions; build it with --num-aug"):
        dataset(store, text_augmentations=14)


def test_the_grids_of_a_task_are_those_that_the_batch_shows(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=64, max_groups=3, max_augmentations=3, max_demos=2)
    table, batch = eval_tasks(data), data[0]
    for task in range(len(table)):
        demonstrations, query = table.grids(store, task)
        assert np.array_equal(place_grid(query), batch["inputs"][task].numpy())
        assert len(demonstrations) == int(batch["demo_mask"][task].sum())
        for slot, pair in enumerate(demonstrations):
            for key, one in zip(("demo_inputs", "demo_labels"), pair, strict=True):
                assert np.array_equal(place_grid(one), batch[key][task, slot].numpy())


def test_donors_are_tasks_of_one_other_puzzle(store: PuzzleStore) -> None:
    table = dataset(store, query_sampling="leave_one_out").tasks
    donors = table.donors(0)
    assert (table.puzzle[donors] != table.puzzle).all()
    for puzzle in np.unique(table.puzzle):
        assert len(np.unique(table.puzzle[donors[table.puzzle == puzzle]])) == 1
    assert not np.array_equal(donors, table.donors(1))
    with pytest.raises(DatasetError, match="needs two puzzles"):
        dataset(store, max_groups=1).tasks.donors(0)


def test_the_curriculum_begins_with_the_smallest_grids_and_ends_with_all(store: PuzzleStore) -> None:
    data = dataset(store, curriculum="grid_size")
    largest = {
        int(puzzle): max(
            int(store.grid_shapes[i].astype(int).prod())
            for i in range(2 * store.puzzle_pairs[puzzle], 2 * store.puzzle_pairs[puzzle + 1])
        )
        for puzzle in data.puzzles
    }
    smallest = sorted(data.puzzles.tolist(), key=lambda puzzle: largest[puzzle])
    assert [data.admitted(epoch) for epoch in (0, 10, 20, 39)] == [2, 5, 8, 8]
    for epoch in (0, 5, 10, 15, 20, 39):
        groups = Counter(data[epoch]["puzzle_groups"].tolist())  # a batch is an epoch here
        admitted = data.admitted(epoch)
        assert set(groups) == set(smallest[:admitted])
        assert max(groups.values()) - min(groups.values()) <= 1
    plain = dataset(store)
    assert all(len(set(plain[epoch]["puzzle_groups"].tolist())) == 8 for epoch in range(3))


def test_latents_are_the_sources_padded_and_masked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z_init = rng.standard_normal((2, 4)).astype(np.float32)
    states = [rng.standard_normal((length, 4)).astype(np.float32) for length in (3, 5)]
    files = tuple(tmp_path / f"{i}.npy" for i in range(2))
    for path, array in zip(files, states, strict=True):
        np.save(path, array)
    source = np.array([1, 0, 1])
    batch = TaskLatents(z_init, source, files, longest=6).of(np.array([0, 1]))
    assert torch.equal(batch["z_init"], torch.from_numpy(z_init[[1, 0]]))
    assert batch["text_mask"].sum(1).tolist() == [5, 3]
    assert batch["text_states"].shape == (2, 6, 4)
    for i, length in enumerate((5, 3)):
        assert np.array_equal(batch["text_states"][i, :length].numpy(), states[source[i]])
        assert not batch["text_states"][i, length:].any()
    zero = TaskLatents(z_init, source, files, longest=6, is_zero=True).of(np.array([0, 1]))
    assert not zero["z_init"].any()
    assert not zero["text_states"].any()
    assert torch.equal(zero["text_mask"], batch["text_mask"])
    assert list(TaskLatents(z_init, source).of(np.array([2]))) == ["z_init"]
