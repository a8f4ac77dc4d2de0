"""Batches of queries with their demonstrations, augmented and placed on the canvas as they are read.

A batch holds uint8 tokens: `demo_inputs`, `demo_labels` (B, K, 900), `demo_mask` (B, K) bool, `inputs`, `labels`
(B, 900), and int32 `puzzle_identifiers` (B) (index of the augmentation + 1), `puzzle_groups` (B) (index of the
puzzle). Unknown labels and empty demonstration slots are PAD. What the task canvas needs (sizes and offsets of the
grids) is read from the tokens themselves, so no further key takes part.

A training sample is a function of (seed, epoch, index) alone: each epoch has one table of random numbers with a row
for each puzzle, made by a counter-based generator. Any batch can be made again from its number, in any order and by
any worker, and the union over ranks is what one rank would read.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.augment import FLIPS_COLUMNS, FLIPS_ROWS, SWAPS_AXES
from dataset.grids import (
    CANVAS_SIDE,
    COLOR_OFFSET,
    NUM_COLORS,
    SEQ_LEN,
    cells_of_rectangles,
    draw_eos_borders,
)
from dataset.loading import outlive_signals, watched
from dataset.store import DatasetError, PuzzleStore, Split

Batch = dict[str, Tensor]
QuerySampling = Literal["test", "leave_one_out"]


class Conditions(Protocol):
    """What else the samples of a data set bring along, by their numbers in its table of queries or tasks."""

    def of(self, samples: Int64[np.ndarray, " batch"]) -> Batch: ...


def select_puzzles(store: PuzzleStore, split: Split, max_groups: int | None, key: str) -> Int64[np.ndarray, " n"]:
    """The first `max_groups` puzzles of a split (None: all).

    Raises:
        DatasetError: the split has fewer; `key` names the config key.
    """
    puzzles = store.puzzles_of(split)
    if max_groups is not None and max_groups > len(puzzles):
        raise DatasetError(f"{key}={max_groups}, but the data set has {len(puzzles)} puzzles in its {split} split")
    return puzzles[:max_groups]


def exchanged(num_puzzles: int, seed: int, option: str) -> Int64[np.ndarray, " puzzles"]:
    """For each puzzle another one, drawn once from a seed: the puzzles stand in one cycle, so none keeps its own.

    Raises:
        DatasetError: there is only one; `option` names what asked for it.
    """
    if num_puzzles < 2:
        raise DatasetError(f"{option} needs two puzzles to exchange, there is {num_puzzles}")
    order = np.random.default_rng(seed).permutation(num_puzzles)
    partner = np.empty(num_puzzles, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


class PairTable:
    """The pairs of chosen puzzles as padded matrices (puzzle, pair), so that samples are drawn without a loop."""

    def __init__(self, store: PuzzleStore, puzzles: Int64[np.ndarray, " n"]):
        first, last = store.puzzle_pairs[puzzles], store.puzzle_pairs[puzzles + 1]
        count = last - first
        column = np.arange(count.max(initial=1))
        self.exists = column < count[:, None]
        self.index = np.where(self.exists, first[:, None] + column, -1)
        self.is_demo = self.exists & (column < store.puzzle_demos[puzzles, None])
        has_output = store.grid_shapes[1::2, 0] > 0
        self.is_labelled = self.exists & has_output[self.index]


def assemble(
    store: PuzzleStore,
    puzzles: Int64[np.ndarray, " batch"],
    augmentations: Int64[np.ndarray, " batch"],
    demo_pairs: Int64[np.ndarray, "batch demos"],
    query_pairs: Int64[np.ndarray, " batch"],
    translation: Float64[np.ndarray, "batch examples 2"] | None = None,
) -> Batch:
    """Draw a batch: read every grid, augment it and place it on its canvas, for all samples at once.

    Args:
        demo_pairs: pair indices, -1 where a slot is empty.
        translation: uniform numbers in [0, 1) for each demonstration and, last, the query; None places all at (0, 0).
    """
    batch, num_slots = demo_pairs.shape
    pairs = np.concatenate([demo_pairs, query_pairs[:, None]], axis=1)  # (b, k + 1)
    sample, slot = np.nonzero(pairs >= 0)
    grids = pairs[sample, slot][:, None] * 2 + np.arange(2)  # (n, 2): input and output
    shapes = store.grid_shapes[grids].astype(np.int64)  # (n, 2, 2)
    transform = store.dihedral[augmentations][sample]
    swaps = SWAPS_AXES[transform]
    moved = np.where(swaps[:, None, None], shapes[..., ::-1], shapes)
    offsets = np.zeros((len(sample), 2), dtype=np.int64)
    if translation is not None:
        room = CANVAS_SIDE - moved.max(axis=1) + 1
        offsets = np.floor(translation[sample, slot] * room).astype(np.int64)

    canvases = np.zeros((2, batch * (num_slots + 1), SEQ_LEN), dtype=np.uint8)
    for side in range(2):
        height, width = moved[:, side].T
        grid, i, j = cells_of_rectangles(height, width)
        row, column = np.where(swaps[grid], j, i), np.where(swaps[grid], i, j)
        source_height, source_width = shapes[:, side].T
        row = np.where(FLIPS_ROWS[transform][grid], source_height[grid] - 1 - row, row)
        column = np.where(FLIPS_COLUMNS[transform][grid], source_width[grid] - 1 - column, column)
        start = store.grid_starts[grids[:, side]]
        color = store.cells[start[grid] + row * source_width[grid] + column]
        color = store.colors.reshape(-1)[augmentations[sample][grid] * NUM_COLORS + color]
        placed = np.zeros((len(sample), SEQ_LEN), dtype=np.uint8)
        cell = (offsets[grid, 0] + i) * CANVAS_SIDE + offsets[grid, 1] + j
        placed.reshape(-1)[grid * SEQ_LEN + cell] = color + COLOR_OFFSET
        draw_eos_borders(placed, height, width, offsets)
        canvases[side, sample * (num_slots + 1) + slot] = placed
    drawn = torch.from_numpy(canvases.reshape(2, batch, num_slots + 1, SEQ_LEN))
    return {
        "demo_inputs": drawn[0, :, :num_slots].contiguous(),
        "demo_labels": drawn[1, :, :num_slots].contiguous(),
        "demo_mask": torch.from_numpy(demo_pairs >= 0),
        "inputs": drawn[0, :, num_slots].contiguous(),
        "labels": drawn[1, :, num_slots].contiguous(),
        "puzzle_identifiers": torch.from_numpy((augmentations + 1).astype(np.int32)),
        "puzzle_groups": torch.from_numpy(puzzles.astype(np.int32)),
    }


def _first_by_key(
    keys: Float64[np.ndarray, "batch pairs"], allowed: Bool[np.ndarray, "batch pairs"], count: int
) -> Int64[np.ndarray, "batch count"]:
    """Columns of the `count` smallest keys among the allowed ones, -1 where there are fewer."""
    order = np.argsort(np.where(allowed, keys, np.inf), axis=1, kind="stable")[:, :count]
    chosen = np.where(np.take_along_axis(allowed, order, axis=1), order, -1)
    return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1)


class FewshotTrainDataset(Dataset[Batch]):
    """Training batches by number: an epoch draws each puzzle once; batches run on across epochs.

    Raises:
        DatasetError: no puzzles, too few samples for one batch, or a puzzle that cannot give a query.
    """

    conditions: Conditions | None = None

    def __init__(
        self,
        store: PuzzleStore,
        *,
        global_batch_size: int,
        epochs: int,
        seed: int,
        max_demos: int = 10,
        max_groups: int | None = None,
        query_sampling: QuerySampling = "test",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.store, self.seed, self.max_demos = store, seed, max_demos
        self.puzzles = self._choose_puzzles(max_groups)
        if not len(self.puzzles):
            raise DatasetError("the data set has no training puzzles")
        self.pairs = PairTable(store, self.puzzles)
        self.may_query, self.may_show = self._choose_pairs(query_sampling)
        self._refuse_puzzles_without_query(query_sampling)
        if global_batch_size % world_size:
            raise DatasetError(f"global_batch_size={global_batch_size} is not a multiple of {world_size} ranks")
        self.global_batch_size = global_batch_size
        self.num_batches = epochs * len(self.puzzles) // global_batch_size
        if not self.num_batches:
            samples = epochs * len(self.puzzles)
            raise DatasetError(
                f"epochs={epochs} of {len(self.puzzles)} puzzles are {samples} samples: "
                f"less than one batch of global_batch_size={global_batch_size}"
            )
        local = global_batch_size // world_size
        self.slots = np.arange(rank * local, (rank + 1) * local)
        self._epoch_table = lru_cache(maxsize=8)(self._draw_epoch)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_epoch_table"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch_table = lru_cache(maxsize=8)(self._draw_epoch)

    def _choose_puzzles(self, max_groups: int | None) -> Int64[np.ndarray, " n"]:
        return select_puzzles(self.store, "train", max_groups, "max_train_groups")

    def _choose_pairs(
        self, query_sampling: QuerySampling
    ) -> tuple[Bool[np.ndarray, "puzzles pairs"], Bool[np.ndarray, "puzzles pairs"]]:
        """Which pairs may be asked for, and which may be shown as demonstrations of others."""
        labelled = self.pairs.is_labelled
        if query_sampling == "leave_one_out":
            return labelled, labelled
        return labelled & ~self.pairs.is_demo, self.pairs.is_demo

    def _refuse_puzzles_without_query(self, query_sampling: QuerySampling) -> None:
        queries = self.may_query.sum(axis=1)
        needed = 2 if query_sampling == "leave_one_out" else 1  # left out one, another stays as a demonstration
        if (queries < needed).any():
            puzzle = int(np.argmax(queries < needed))
            name = self.store.metadata.puzzle_ids[self.puzzles[puzzle]]
            raise DatasetError(
                f"training puzzle '{name}' has {queries[puzzle]} pairs that query_sampling={query_sampling} can ask "
                f"for and needs {needed}" + ("; try query_sampling=leave_one_out" if query_sampling == "test" else "")
            )

    def __len__(self) -> int:
        return self.num_batches

    def epoch_of(self, num_batches: int) -> int:
        """How many epochs are complete after this many batches."""
        return num_batches * self.global_batch_size // len(self.puzzles)

    def _draw_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " puzzles"], Float64[np.ndarray, "puzzles draws"]]:
        """The epoch's order of puzzles, and a row of uniform numbers for each of them."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
        draws = 3 + self.pairs.index.shape[1] + 2 * (self.max_demos + 1)
        return rng.permutation(len(self.puzzles)), rng.random((len(self.puzzles), draws))

    def _draws(self, number: int) -> tuple[Int64[np.ndarray, " batch"], Float64[np.ndarray, "batch draws"]]:
        """The puzzles of a batch (rows of `puzzles`), and a row of uniform numbers for each."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        epochs, positions = np.divmod(number * self.global_batch_size + self.slots, len(self.puzzles))
        rows, draws = [], []
        for epoch in np.unique(epochs):
            order, table = self._epoch_table(int(epoch))
            rows.append(order[positions[epochs == epoch]])
            draws.append(table[rows[-1]])
        return np.concatenate(rows), np.concatenate(draws)

    def __getitem__(self, number: int) -> Batch:
        row, uniform = self._draws(number)
        puzzles = self.puzzles[row]

        first, last = self.store.puzzle_augmentations[puzzles], self.store.puzzle_augmentations[puzzles + 1]
        augmentations = first + np.floor(uniform[:, 0] * (last - first)).astype(np.int64)
        may_query = self.may_query[row]
        nth = np.floor(uniform[:, 1] * may_query.sum(axis=1)).astype(np.int64)
        query = np.argmax(np.cumsum(may_query, axis=1) == nth[:, None] + 1, axis=1)
        may_show = self.may_show[row]
        may_show[np.arange(len(row)), query] = False
        num_pairs = may_show.shape[1]
        demos = _first_by_key(uniform[:, 3 : 3 + num_pairs], may_show, self.max_demos)
        index = self.pairs.index[row]
        demo_pairs = np.where(demos >= 0, np.take_along_axis(index, demos, axis=1), -1)
        translation = uniform[:, 3 + num_pairs :].reshape(len(row), self.max_demos + 1, 2)
        translation = self._leave_one_in_place(translation, demo_pairs >= 0, uniform[:, 2])
        return assemble(self.store, puzzles, augmentations, demo_pairs, index[np.arange(len(row)), query], translation)

    @staticmethod
    def _leave_one_in_place(
        translation: Float64[np.ndarray, "batch examples 2"],
        shown: Bool[np.ndarray, "batch demos"],
        uniform: Float64[np.ndarray, " batch"],
    ) -> Float64[np.ndarray, "batch examples 2"]:
        """Translation with one random example of each sample left at (0, 0): a demonstration or the query."""
        count = shown.sum(axis=1)  # the valid demonstrations come first
        chosen = np.floor(uniform * (count + 1)).astype(np.int64)
        chosen = np.where(chosen == count, shown.shape[1], chosen)
        placed = translation.copy()
        placed[np.arange(len(placed)), chosen] = 0.0
        return placed


class FewshotEvalDataset(Dataset[Batch]):
    """Every test input of every chosen puzzle in every augmentation, exactly once over all batches and ranks.

    A batch also has `query_indices` (B) int32, rows of the tables `query_puzzle`, `query_pair`,
    `query_augmentation`. Without augmentation limit a puzzle's whole table is read; its first row is the puzzle as
    it is. `conditions`, where they are set, add keys to each batch.
    """

    conditions: Conditions | None = None

    def __init__(
        self,
        store: PuzzleStore,
        *,
        batch_size: int,
        split: Split = "test",
        max_demos: int = 10,
        max_groups: int | None = None,
        max_augmentations: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.store, self.max_demos, self.batch_size = store, max_demos, batch_size
        key = "max_eval_groups" if split == "test" else "max_train_groups"
        self.puzzles = select_puzzles(store, split, max_groups, key)
        self.pairs = PairTable(store, self.puzzles)
        is_query = self.pairs.exists & ~self.pairs.is_demo
        first = store.puzzle_augmentations[self.puzzles]
        counts = store.puzzle_augmentations[self.puzzles + 1] - first
        if max_augmentations is not None:
            counts = np.minimum(counts, max_augmentations)
        row, column = np.nonzero(is_query)
        repeats = counts[row]
        starts = np.cumsum(repeats) - repeats
        within = np.arange(repeats.sum()) - np.repeat(starts, repeats)
        self.query_row = np.repeat(row, repeats)
        self.query_puzzle = self.puzzles[self.query_row]
        self.query_pair = np.repeat(self.pairs.index[row, column], repeats)
        self.query_augmentation = np.repeat(first[row], repeats) + within
        self.mine = np.arange(rank, len(self.query_row), world_size)

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return self.queries(self.mine[number * self.batch_size : (number + 1) * self.batch_size])

    def queries(self, indices: Int64[np.ndarray, " batch"]) -> Batch:
        """The batch of the given rows of the query tables."""
        batch = assemble(
            self.store,
            self.query_puzzle[indices],
            self.query_augmentation[indices],
            self.demo_pairs(indices),
            self.query_pair[indices],
        )
        batch["query_indices"] = torch.from_numpy(indices.astype(np.int32))
        return batch if self.conditions is None else batch | self.conditions.of(indices)

    def demo_pairs(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch demos"]:
        """The pairs shown with the given queries, in the order of the task; -1 where there are fewer."""
        rows = self.query_row[indices]
        demos = _first_by_key(
            np.tile(np.arange(self.pairs.index.shape[1], dtype=np.float64), (len(rows), 1)),
            self.pairs.is_demo[rows],
            self.max_demos,
        )
        return np.where(demos >= 0, np.take_along_axis(self.pairs.index[rows], demos, axis=1), -1)


def iterate(
    dataset: FewshotTrainDataset | FewshotEvalDataset,
    *,
    start: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches `start`, `start + 1`, ... in order, made ahead by worker processes where `workers` > 0."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # its own: reading data takes no number from the training's generator
    )
    what = "the queries" if isinstance(dataset, FewshotEvalDataset) else "the training batches"
    return watched(loader, what)
