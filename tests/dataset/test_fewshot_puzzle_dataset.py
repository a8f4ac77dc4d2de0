"""Batches against a slow reading of the store, sample by sample: contract, sampling, order, ranks, coverage."""

import itertools
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dataset.augment import augment_grid
from dataset.batches import Batch, iterate
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset, FewshotTrainDataset
from dataset.grids import place_grid
from dataset.store import DatasetError, PuzzleStore

BuildStore = Callable[..., PuzzleStore]
Offset = tuple[int, int]
# One example on its canvases: input tokens, label tokens.
Example = tuple[np.ndarray, np.ndarray]


def train_data(store: PuzzleStore, **options: Any) -> FewshotTrainDataset:
    defaults: dict[str, Any] = {"global_batch_size": 6, "epochs": 20, "seed": 0, "max_demos": 4, "max_groups": 7}
    return FewshotTrainDataset(store, **{**defaults, **options})


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype, key
        assert torch.equal(one[key], other[key]), key


def is_same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def offset_of(tokens: np.ndarray) -> Offset:
    """Where the grid's top-left cell is: colours fill a whole rectangle, so the first of them."""
    row, column = divmod(int(np.argmax(tokens >= 2)), 30)
    return row, column


def pairs_of(store: PuzzleStore, puzzle: int) -> range:
    return range(store.puzzle_pairs[puzzle], store.puzzle_pairs[puzzle + 1])


def drawn(store: PuzzleStore, pair: int, augmentation: int, offset: Offset) -> Example:
    """The tokens that a pair has in one augmentation at one offset; an unknown output is PAD."""
    transform, colors = int(store.dihedral[augmentation]), store.colors[augmentation]
    grids = [store.grid(2 * pair), store.grid(2 * pair + 1)]
    tokens = [place_grid(augment_grid(grid, transform, colors), offset) if grid.size else None for grid in grids]
    return tuple(np.zeros(900, dtype=np.uint8) if t is None else t for t in tokens)  # type: ignore[return-value]


def recognised(store: PuzzleStore, puzzle: int, augmentation: int, example: Example) -> list[int]:
    """The pairs of the puzzle that this example shows, exactly, in this augmentation and at the offset it has."""
    offset = offset_of(example[0])
    found = []
    for pair in pairs_of(store, puzzle):
        try:
            expected = drawn(store, pair, augmentation, offset)
        except ValueError:  # a pair too large for this offset
            continue
        if all(np.array_equal(a, b) for a, b in zip(expected, example, strict=True)):
            found.append(pair)
    return found


class Sample:
    """One sample of a batch, read back: its puzzle, its augmentation and the pair that each example shows."""

    def __init__(self, store: PuzzleStore, batch: Batch, index: int):
        sample = {key: value[index].numpy() for key, value in batch.items()}
        self.puzzle = int(sample["puzzle_groups"])
        self.augmentation = int(sample["puzzle_identifiers"]) - 1
        assert store.puzzle_augmentations[self.puzzle] <= self.augmentation
        assert self.augmentation < store.puzzle_augmentations[self.puzzle + 1]
        mask = sample["demo_mask"]
        self.examples: list[Example] = [
            *zip(sample["demo_inputs"][mask], sample["demo_labels"][mask], strict=True),
            (sample["inputs"], sample["labels"]),
        ]
        matches = [recognised(store, self.puzzle, self.augmentation, example) for example in self.examples]
        assert all(matches), "an example is no pair of its puzzle in the sample's augmentation"
        # A puzzle may hold one pair twice; the first then stands for both.
        self.demos, self.query = [pairs[0] for pairs in matches[:-1]], matches[-1][0]
        self.empty_slots = (sample["demo_inputs"][~mask], sample["demo_labels"][~mask])
        self.mask = mask


def samples_of(store: PuzzleStore, batch: Batch) -> list[Sample]:
    return [Sample(store, batch, index) for index in range(len(batch["inputs"]))]


def first_of_equals(store: PuzzleStore, puzzle: int) -> dict[int, int]:
    """Each pair of a puzzle, and the first pair of the same content (itself, but for repeated pairs)."""
    first: dict[bytes, int] = {}
    return {
        pair: first.setdefault(
            b"".join(grid.tobytes() + bytes(grid.shape) for grid in (store.grid(2 * pair), store.grid(2 * pair + 1))),
            pair,
        )
        for pair in pairs_of(store, puzzle)
    }


def task(number: int, demos: int = 3, tests: int = 1, side: int = 2, labelled: bool = True) -> dict[str, Any]:
    """A hand-made task whose pairs all differ, also from those of other numbers: the number and the pair in colours."""

    def pair(index: int) -> dict[str, Any]:
        rows = [[1] * side for _ in range(side)]
        for place, color in enumerate((2 + number, 2 + index)):
            rows[0][place] = color
        return {"input": rows, "output": [[3] * index + [2 + number]]}

    queries = [pair(demos + i) for i in range(tests)]
    if not labelled:
        queries = [{"input": query["input"]} for query in queries]
    return {"train": [pair(i) for i in range(demos)], "test": queries}


# What is in a batch


def test_a_training_batch_has_the_shapes_and_dtypes_of_the_contract(batch: Batch) -> None:
    expected = {
        "demo_inputs": ((6, 4, 900), torch.uint8),
        "demo_labels": ((6, 4, 900), torch.uint8),
        "demo_mask": ((6, 4), torch.bool),
        "inputs": ((6, 900), torch.uint8),
        "labels": ((6, 900), torch.uint8),
        "puzzle_identifiers": ((6,), torch.int32),
        "puzzle_groups": ((6,), torch.int32),
    }
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == expected


def test_an_evaluation_batch_also_has_the_rows_of_its_queries(store: PuzzleStore, batch: Batch) -> None:
    evaluated = FewshotEvalDataset(store, batch_size=5, max_demos=4, max_groups=4, max_augmentations=3)[1]
    assert evaluated.keys() == {*batch, "query_indices"}
    for key in batch:
        assert evaluated[key].dtype == batch[key].dtype
        assert evaluated[key].shape[1:] == batch[key].shape[1:]
    assert evaluated["query_indices"].dtype == torch.int32
    assert evaluated["query_indices"].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("query_sampling", ["test", "leave_one_out"])
def test_training_samples_equal_the_slow_reading_of_the_store(
    store: PuzzleStore, query_sampling: Literal["test", "leave_one_out"]
) -> None:
    data = train_data(store, max_groups=None, global_batch_size=40, query_sampling=query_sampling, epochs=1)
    for sample in samples_of(store, data[3]):
        num_demos = len(sample.demos)
        assert num_demos >= 1
        # Demonstrations fill the first slots; what is left is PAD.
        assert sample.mask.tolist() == [True] * num_demos + [False] * (4 - num_demos)
        assert not any(slot.any() for slot in sample.empty_slots)
        is_demo = {pair: i < store.puzzle_demos[sample.puzzle] for i, pair in enumerate(pairs_of(store, sample.puzzle))}
        may_show = sum(is_demo.values()) if query_sampling == "test" else len(is_demo) - 1
        assert num_demos == min(4, may_show)
        if query_sampling == "test":
            assert all(is_demo[pair] for pair in sample.demos)
            assert not is_demo[sample.query]


def test_evaluation_samples_equal_the_slow_reading_of_the_store_at_the_corner(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=30, max_demos=4, max_groups=40, max_augmentations=2)
    for sample in samples_of(store, data[1]):
        assert all(offset_of(example[0]) == (0, 0) for example in sample.examples)


def test_input_and_output_of_an_example_share_their_offset_and_examples_have_their_own(store: PuzzleStore) -> None:
    offsets_of_samples = []
    data = train_data(store, max_groups=None, global_batch_size=64, epochs=1)
    for sample in samples_of(store, data[0]):
        offsets_of_samples.append([offset_of(example[0]) for example in sample.examples])
        for inputs, labels in sample.examples:
            assert offset_of(inputs) == offset_of(labels)
    moved = [{offset for offset in offsets if offset != (0, 0)} for offsets in offsets_of_samples]
    assert sum(len(offsets) > 1 for offsets in moved) > 32


def test_at_least_one_example_of_each_sample_stays_at_the_corner_and_each_may_be_it(store: PuzzleStore) -> None:
    in_place: Counter[int | str] = Counter()
    data = train_data(store, max_groups=None, global_batch_size=398, epochs=1)
    batch = data[0]
    for index in range(398):
        mask = batch["demo_mask"][index]
        inputs = [*batch["demo_inputs"][index][mask].numpy(), batch["inputs"][index].numpy()]
        corners = [slot for slot, tokens in enumerate(inputs) if offset_of(tokens) == (0, 0)]
        assert corners
        in_place.update(["query" if slot == len(inputs) - 1 else slot for slot in corners])
    # The query and each of the first demonstrations are left in place for a fair share of the samples.
    assert all(in_place[key] > 40 for key in ("query", 0, 1, 2))


def test_translation_reaches_every_offset_at_which_both_grids_of_a_pair_fit(build_store: BuildStore) -> None:
    # 28 rows and 27 columns of room come from different grids: the input is tall, the output is wide.
    pair = {"input": [[1]] * 28, "output": [[2] * 27]}
    one = build_store({"own": {"a": {"train": [pair], "test": [pair]}}})
    data = FewshotTrainDataset(one, global_batch_size=1, epochs=400, seed=0, max_demos=1)
    offsets = {
        offset_of(batch[key].numpy().reshape(-1, 900)[0])
        for batch in (data[number] for number in range(400))
        for key in ("demo_inputs", "demo_labels", "inputs", "labels")
    }
    assert offsets == set(itertools.product(range(3), range(4)))


def test_a_grid_that_fills_the_canvas_has_no_border_and_stays_in_place(build_store: BuildStore) -> None:
    full = [[1 + (r + c) % 9 for c in range(30)] for r in range(30)]
    pair = {"input": [[5]], "output": full}
    one = build_store({"own": {"a": {"train": [pair], "test": [pair]}}})
    batch = FewshotTrainDataset(one, global_batch_size=8, epochs=8, seed=0, max_demos=1)[0]
    assert (batch["labels"].reshape(8, 30, 30) == torch.tensor(full, dtype=torch.uint8) + 2).all()
    assert (batch["inputs"][:, 0] == 7).all()


# Which samples are drawn, and when


@pytest.mark.parametrize(("puzzles", "batch_size"), [(7, 7), (7, 5), (7, 3), (3, 8), (1, 4)])
def test_every_epoch_draws_each_puzzle_once_also_where_batches_straddle_epochs(
    store: PuzzleStore, puzzles: int, batch_size: int
) -> None:
    data = train_data(store, max_groups=puzzles, global_batch_size=batch_size, epochs=12)
    groups = torch.cat([data[number]["puzzle_groups"] for number in range(len(data))]).tolist()
    epochs = [groups[start : start + puzzles] for start in range(0, len(groups), puzzles)]
    whole = [epoch for epoch in epochs if len(epoch) == puzzles]
    assert len(whole) >= 12 - batch_size // puzzles - 1
    chosen = store.puzzles_of("train")[:puzzles].tolist()
    assert all(sorted(epoch) == chosen for epoch in whole)
    assert len(set(epochs[-1])) == len(epochs[-1])
    if puzzles == 7:
        assert len({tuple(epoch) for epoch in whole}) > len(whole) // 2, "epochs come in one order"


@pytest.mark.parametrize("world_size", [1, 2])
def test_versions_of_a_puzzle_stand_side_by_side(store: PuzzleStore, world_size: int) -> None:
    options: dict[str, Any] = {"global_batch_size": 12, "versions": 3, "world_size": world_size}
    ranks = [train_data(store, rank=rank, **options) for rank in range(world_size)]
    seen: Counter[int] = Counter()
    for number in range(7):  # of four puzzles each: four epochs of seven
        batch = {
            key: torch.cat([data[number][key] for data in ranks]) for key in ("puzzle_groups", "puzzle_identifiers")
        }
        groups, identifiers = (value.view(4, 3) for value in batch.values())
        assert (groups == groups[:, :1]).all()
        for puzzle, numbers in zip(groups[:, 0].tolist(), identifiers.tolist(), strict=True):
            first, last = store.puzzle_augmentations[puzzle : puzzle + 2].tolist()
            assert len({*numbers}) == min(3, last - first)
        seen.update(groups.flatten().tolist())
    assert {*seen.values()} == {4 * 3}
    assert ranks[0].epoch_of(7) == 4
    assert len(ranks[0]) == 20 * 7 * 3 // 12


def test_versions_that_would_be_torn_apart_are_refused(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match=r"data.versions=4: .* global_batch_size=6"):
        train_data(store, versions=4)


@pytest.mark.parametrize(("epochs", "puzzles", "batch_size"), [(20, 7, 6), (1, 7, 7), (3, 5, 15), (5, 3, 4), (9, 1, 2)])
def test_the_length_is_the_number_of_whole_batches_in_all_epochs(
    store: PuzzleStore, epochs: int, puzzles: int, batch_size: int
) -> None:
    data = train_data(store, epochs=epochs, max_groups=puzzles, global_batch_size=batch_size)
    assert len(data) == epochs * puzzles // batch_size
    assert sum(1 for _ in iterate(data)) == len(data)


def test_epoch_of_counts_complete_epochs(store: PuzzleStore) -> None:
    data = train_data(store, max_groups=7, global_batch_size=5, epochs=10)
    seen: list[int] = []
    for number in range(len(data)):
        assert data.epoch_of(number) == min(Counter(seen)[puzzle] for puzzle in store.puzzles_of("train")[:7])
        seen += data[number]["puzzle_groups"].tolist()
    assert data.epoch_of(len(data)) == 10


def test_max_groups_takes_the_first_puzzles_of_the_data_set(store: PuzzleStore) -> None:
    assert train_data(store, max_groups=7).puzzles.tolist() == store.puzzles_of("train")[:7].tolist()
    evaluated = FewshotEvalDataset(store, batch_size=4, max_groups=5)
    assert set(evaluated.query_puzzle.tolist()) == set(store.puzzles_of("test")[:5].tolist())


def test_training_draws_every_augmentation_and_every_test_pair_of_a_puzzle(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(0, tests=3)}}, num_aug=5)
    data = FewshotTrainDataset(built, global_batch_size=10, epochs=300, seed=0, max_demos=3)
    samples = [sample for number in range(len(data)) for sample in samples_of(built, data[number])]
    counts = Counter((sample.query, sample.augmentation) for sample in samples)
    assert set(counts) == set(itertools.product((3, 4, 5), range(6)))
    assert min(counts.values()) > 3  # 17 expected of each


def test_more_demonstrations_than_slots_are_drawn_as_random_subsets_in_training(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(0, demos=5)}})
    data = FewshotTrainDataset(built, global_batch_size=10, epochs=200, seed=0, max_demos=2)
    subsets: Counter[frozenset[int]] = Counter()
    for sample in itertools.chain.from_iterable(samples_of(built, data[number]) for number in range(len(data))):
        assert len(set(sample.demos)) == 2
        subsets[frozenset(sample.demos)] += 1
    assert set(subsets) == {frozenset(chosen) for chosen in itertools.combinations(range(5), 2)}
    assert min(subsets.values()) > 5  # 20 expected of each


def test_more_demonstrations_than_slots_are_the_first_ones_in_evaluation(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(0, demos=5, tests=2)}}, num_aug=3)
    data = FewshotEvalDataset(built, split="train", batch_size=8, max_demos=2)
    for sample in samples_of(built, data[0]):
        assert sample.demos == [0, 1]
    few = FewshotEvalDataset(built, split="train", batch_size=8, max_demos=7)
    assert [sample.demos for sample in samples_of(built, few[0])] == [[0, 1, 2, 3, 4]] * 8


def test_leave_one_out_asks_for_any_pair_and_shows_all_the_others(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(0, demos=3, tests=2)}}, num_aug=3)
    data = FewshotTrainDataset(
        built, global_batch_size=10, epochs=100, seed=0, max_demos=6, query_sampling="leave_one_out"
    )
    queries: Counter[int] = Counter()
    for sample in itertools.chain.from_iterable(samples_of(built, data[number]) for number in range(len(data))):
        assert sorted([*sample.demos, sample.query]) == [0, 1, 2, 3, 4]
        queries[sample.query] += 1
    assert set(queries) == {0, 1, 2, 3, 4}
    assert min(queries.values()) > 8  # 20 expected of each


def test_leave_one_out_never_shows_the_query_among_the_demonstrations_of_real_puzzles(store: PuzzleStore) -> None:
    data = train_data(
        store, max_groups=None, global_batch_size=100, epochs=1, max_demos=10, query_sampling="leave_one_out"
    )
    demonstration_queries = 0
    for sample in samples_of(store, data[0]):
        first = first_of_equals(store, sample.puzzle)
        available = Counter(first.values())
        shown = Counter(first[pair] for pair in (*sample.demos, sample.query))
        assert all(shown[pair] <= available[pair] for pair in shown), "one pair is shown twice in a sample"
        demonstration_queries += sample.query - store.puzzle_pairs[sample.puzzle] < store.puzzle_demos[sample.puzzle]
    assert 50 < demonstration_queries < 100


# Any batch can be made again


def test_a_batch_made_again_from_its_number_is_identical_in_any_order(store: PuzzleStore) -> None:
    in_order, backwards = train_data(store, epochs=60), train_data(store, epochs=60)
    batches = [in_order[number] for number in range(len(in_order))]
    assert len(batches) == 70
    for number in reversed(range(len(batches))):
        assert_same(backwards[number], batches[number])
    assert not is_same(batches[0], batches[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_iterating_from_any_start_gives_the_same_batches_with_and_without_workers(
    store: PuzzleStore, workers: int
) -> None:
    data = train_data(store, epochs=7)
    made = list(iterate(data, start=2, workers=workers))
    assert len(made) == len(data) - 2
    for number, batch in enumerate(made, start=2):
        assert_same(batch, train_data(store, epochs=7)[number])


def test_a_data_set_can_be_sent_to_a_worker_that_is_not_forked(store: PuzzleStore) -> None:
    # Where processes start by spawn or forkserver (macOS; Linux from Python 3.14), workers get a pickled data set.
    data = train_data(store)
    first = data[0]
    assert_same(pickle.loads(pickle.dumps(data))[0], first)
    evaluated = FewshotEvalDataset(store, batch_size=4, max_groups=3, max_augmentations=2)
    assert_same(pickle.loads(pickle.dumps(evaluated))[0], evaluated[0])


def test_the_seed_decides_the_batch(store: PuzzleStore) -> None:
    assert_same(train_data(store, seed=3)[5], train_data(store, seed=3)[5])
    assert not is_same(train_data(store, seed=3)[5], train_data(store, seed=4)[5])
    # The global generators have no say.
    torch.manual_seed(1)
    one = train_data(store)[0]
    torch.manual_seed(2)
    np.random.seed(2)
    assert_same(train_data(store)[0], one)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_batches_of_all_ranks_joined_are_the_batch_of_one(store: PuzzleStore, world_size: int) -> None:
    alone = train_data(store)
    ranks = [train_data(store, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(data) for data in ranks} == {len(alone)}
    for number in (0, 1, 7, len(alone) - 1):
        parts = [data[number] for data in ranks]
        assert_same({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, alone[number])


# Evaluation covers everything once


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_covers_each_test_pair_in_each_augmentation_exactly_once(
    store: PuzzleStore, batch_size: int, world_size: int
) -> None:
    # The 25th held-out puzzle is the first with two test inputs, of which the second could be lost.
    puzzles = store.puzzles_of("test")[:25].tolist()
    assert sum(len(pairs_of(store, puzzle)) - store.puzzle_demos[puzzle] for puzzle in puzzles) > 25
    expected = Counter(
        (puzzle, pair, augmentation)
        for puzzle in puzzles
        for pair in pairs_of(store, puzzle)[store.puzzle_demos[puzzle] :]
        for augmentation in range(store.puzzle_augmentations[puzzle], store.puzzle_augmentations[puzzle + 1])
    )
    found: Counter[tuple[int, int, int]] = Counter()
    rows: list[int] = []
    for rank in range(world_size):
        data = FewshotEvalDataset(
            store, batch_size=batch_size, max_demos=4, max_groups=25, rank=rank, world_size=world_size
        )
        batches = list(iterate(data))
        assert len(batches) == len(data)
        assert all(1 <= len(batch["inputs"]) <= batch_size for batch in batches)
        for batch in batches:
            rows += batch["query_indices"].tolist()
            for index, row in enumerate(batch["query_indices"].tolist()):
                pair, augmentation = int(data.query_pair[row]), int(data.query_augmentation[row])
                inputs, labels = drawn(store, pair, augmentation, (0, 0))
                assert np.array_equal(batch["inputs"][index].numpy(), inputs)
                assert np.array_equal(batch["labels"][index].numpy(), labels)
                assert int(batch["puzzle_identifiers"][index]) == augmentation + 1
                assert int(batch["puzzle_groups"][index]) == int(data.query_puzzle[row])
                found[int(data.query_puzzle[row]), pair, augmentation] += 1
    assert found == expected
    assert sorted(rows) == list(range(len(expected)))


def test_max_augmentations_takes_the_first_versions_beginning_with_the_puzzle_as_it_is(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=64, max_groups=6, max_augmentations=3)
    for puzzle in store.puzzles_of("test")[:6]:
        for pair in set(data.query_pair[data.query_puzzle == puzzle].tolist()):
            first = int(store.puzzle_augmentations[puzzle])
            assert data.query_augmentation[data.query_pair == pair].tolist() == [first, first + 1, first + 2]
    alone = FewshotEvalDataset(store, batch_size=64, max_groups=6, max_augmentations=1)
    assert not store.dihedral[alone.query_augmentation].any()
    assert (store.colors[alone.query_augmentation] == np.arange(10)).all()
    every = FewshotEvalDataset(store, batch_size=64, max_groups=6, max_augmentations=10_000)
    assert len(every.query_row) == len(FewshotEvalDataset(store, batch_size=64, max_groups=6).query_row)


def test_evaluation_on_the_training_split_asks_for_its_test_pairs(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=64, split="train", max_groups=5, max_augmentations=1)
    puzzles = store.puzzles_of("train")[:5].tolist()
    assert data.query_pair.tolist() == [pair for p in puzzles for pair in pairs_of(store, p)[store.puzzle_demos[p] :]]


def test_unlabelled_queries_are_evaluated_with_pad_labels(build_store: BuildStore) -> None:
    built = build_store({"held": {"a": task(0, tests=2, labelled=False)}}, test_set_name="held", num_aug=2)
    batch = FewshotEvalDataset(built, batch_size=10)[0]
    assert len(batch["labels"]) == 6
    assert not batch["labels"].any()
    assert batch["inputs"].any(dim=1).all()
    assert batch["demo_labels"][:, :3].any(dim=2).all()


def test_a_batch_number_out_of_range_is_an_index_error_in_evaluation(store: PuzzleStore) -> None:
    data = FewshotEvalDataset(store, batch_size=4, max_groups=4, max_augmentations=2)
    for number in (-1, len(data), len(data) + 50):
        with pytest.raises(IndexError):
            data[number]


# Errors


def test_too_few_samples_for_one_batch_is_an_error_that_gives_the_numbers(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match=r"epochs=2 of 7 puzzles are 14 samples.*global_batch_size=15"):
        train_data(store, epochs=2, global_batch_size=15)


def test_more_groups_than_puzzles_is_an_error_that_names_the_key(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match=r"max_train_groups=399, but the data set has 398 puzzles in its train"):
        train_data(store, max_groups=399)
    with pytest.raises(DatasetError, match=r"max_eval_groups=401, but the data set has 400 puzzles in its test"):
        FewshotEvalDataset(store, batch_size=4, max_groups=401)
    with pytest.raises(DatasetError, match=r"max_train_groups=399"):
        FewshotEvalDataset(store, batch_size=4, split="train", max_groups=399)


def test_a_batch_that_ranks_cannot_share_is_an_error(store: PuzzleStore) -> None:
    with pytest.raises(DatasetError, match=r"global_batch_size=6 is not a multiple of 4 ranks"):
        train_data(store, rank=0, world_size=4)


def test_a_data_set_without_training_puzzles_is_an_error(build_store: BuildStore) -> None:
    built = build_store({"held": {"a": task(0)}}, test_set_name="held")
    with pytest.raises(DatasetError, match="no training puzzles"):
        FewshotTrainDataset(built, global_batch_size=1, epochs=1, seed=0)


def test_unlabelled_training_puzzles_are_an_error_that_suggests_leave_one_out_which_works(
    build_store: BuildStore,
) -> None:
    built = build_store({"own": {"a": task(0), "b": task(1)}, "kaggle": {"c": task(2, labelled=False)}}, num_aug=2)
    with pytest.raises(DatasetError, match=r"'c' has 0 pairs.*try query_sampling=leave_one_out"):
        FewshotTrainDataset(built, global_batch_size=3, epochs=20, seed=0)
    data = FewshotTrainDataset(built, global_batch_size=3, epochs=20, seed=0, query_sampling="leave_one_out")
    for batch in iterate(data):
        # An unlabelled pair teaches nothing: neither asked for nor shown.
        assert batch["labels"].any(dim=1).all()
        assert batch["demo_labels"][batch["demo_mask"]].any(dim=1).all()
        assert batch["demo_mask"].sum(dim=1).tolist() == [2 if g == 2 else 3 for g in batch["puzzle_groups"].tolist()]


def test_a_puzzle_with_one_labelled_pair_cannot_be_left_one_out(build_store: BuildStore) -> None:
    built = build_store({"own": {"a": task(0), "single": task(1, demos=1, labelled=False)}})
    with pytest.raises(DatasetError, match=r"'single' has 1 pairs.*needs 2"):
        FewshotTrainDataset(built, global_batch_size=1, epochs=1, seed=0, query_sampling="leave_one_out")


def shown_counts(dataset: FewshotTrainDataset) -> Counter[int]:
    return Counter(int(count) for number in range(len(dataset)) for count in dataset[number]["demo_mask"].sum(1))


def test_a_random_number_of_demonstrations_is_shown_from_min_demos_on(store: PuzzleStore) -> None:
    """As often each, where there are so many; the first ones of those that are shown without it."""
    options = {"query_sampling": "leave_one_out", "max_groups": 30, "epochs": 60}
    some, all_of_them = (train_data(store, **options, min_demos=number) for number in (1, None))
    most = np.minimum(all_of_them.may_show.sum(1) - 1, 4)
    counts = shown_counts(some)
    assert sorted(counts) == [1, 2, 3, 4]
    expected = {k: sum(1 / m for m in most if m >= k) / len(most) for k in (1, 2, 3, 4)}
    for count, share in expected.items():
        assert abs(counts[count] / counts.total() - share) < 0.05
    assert set(shown_counts(train_data(store, **options, min_demos=3))) <= {
        2,
        3,
        4,
    }  # two, of puzzles that have three pairs
    assert shown_counts(train_data(store, **options, min_demos=4)) == shown_counts(all_of_them)


def test_demonstrations_are_shown_first_slots_first(store: PuzzleStore) -> None:
    dataset = train_data(store, query_sampling="leave_one_out", min_demos=1)
    for number in range(len(dataset)):
        mask = dataset[number]["demo_mask"]
        assert torch.equal(mask, mask.sort(dim=1, descending=True, stable=True).values)


def test_without_translation_every_grid_is_at_the_corner(store: PuzzleStore) -> None:
    dataset = train_data(store, translate=False)
    for number in range(len(dataset)):
        batch = dataset[number]
        shown = batch["demo_inputs"][batch["demo_mask"]]
        assert (torch.cat([shown, batch["inputs"]])[:, 0] >= 2).all()
