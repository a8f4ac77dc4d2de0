"""Training batches of a store: which puzzles, versions and pairs are drawn, and when.

A sample is a function of (seed, epoch, index) alone: each epoch has one table of random numbers with a row for each
puzzle, made by a counter-based generator. Any batch can be made again from its number, in any order and by any worker,
and the union over ranks is what one rank would read.
"""

from abc import abstractmethod
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dataset.assemble import PairTable, assemble, first_by_key
from dataset.batches import Batch
from dataset.context_limit import ContextLimit
from dataset.sources import TrainSource
from dataset.store import DatasetError, PuzzleStore
from dataset.trained_on import TrainedOn

# Of the pairs of each puzzle: which may be asked for, and which may be shown as demonstrations of others.
PairChoice = tuple[Bool[np.ndarray, "puzzles pairs"], Bool[np.ndarray, "puzzles pairs"]]


class StoreTrainDataset(TrainSource):
    """An epoch draws each puzzle once, with one augmentation and one query (or `versions` of each, next to each other);
    batches run on across epochs.

    Args:
        puzzles: those that training draws from.
        max_demos, min_demos: each sample has a number of demonstrations drawn between them, as far as its puzzle has so
            many; without `min_demos` as many as there are, up to `max_demos`.
        max_context_tokens: see `dataset.context_limit`.
        versions: samples of each puzzle that stand side by side; their augmentations differ where it has so many.
        translate: places grids anywhere on their canvases, one of each sample at (0, 0); else all of them there.

    Raises:
        DatasetError: no puzzles, too few samples for one batch, or a puzzle that cannot give a query.
    """

    def __init__(
        self,
        store: PuzzleStore,
        puzzles: Int64[np.ndarray, " puzzles"],
        *,
        global_batch_size: int,
        epochs: int,
        seed: int,
        max_demos: int = 10,
        min_demos: int | None = None,
        max_context_tokens: int | None = None,
        versions: int = 1,
        translate: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.store, self.puzzles, self.seed = store, puzzles, seed
        self.max_demos, self.min_demos, self.translate = max_demos, min_demos, translate
        if not len(puzzles):
            raise DatasetError("the data set has no training puzzles")
        self.pairs = PairTable(store, puzzles)
        self.may_query, self.may_show = self._choose_pairs()
        self.limit = ContextLimit(store, max_context_tokens)
        self.limit.check(store, puzzles, self.pairs, self.may_show, self.may_query)
        self.too_long = self.limit.too_long(self.pairs.index)
        if global_batch_size % world_size:
            raise DatasetError(f"global_batch_size={global_batch_size} is not a multiple of {world_size} ranks")
        if global_batch_size // world_size % versions:
            raise DatasetError(
                f"data.versions={versions}: those of a puzzle stand side by side, so that each of {world_size} ranks "
                f"must have a multiple of as many samples; global_batch_size={global_batch_size}"
            )
        self.global_batch_size, self.versions = global_batch_size, versions
        samples = epochs * self.epoch_samples
        self.num_batches = samples // global_batch_size
        if not self.num_batches:
            raise DatasetError(
                f"epochs={epochs} of {len(puzzles)} puzzles are {samples} samples: "
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

    @abstractmethod
    def _choose_pairs(self) -> PairChoice:
        """By `self.store`, `self.puzzles` and `self.pairs`.

        Raises:
            DatasetError: a puzzle has too few.
        """

    def __len__(self) -> int:
        return self.num_batches

    @property
    def epoch_samples(self) -> int:
        return len(self.puzzles) * self.versions

    def epoch_of(self, num_batches: int) -> int:
        return num_batches * self.global_batch_size // self.epoch_samples

    @property
    def description(self) -> str:
        return f"{len(self.puzzles)} training puzzles"

    @property
    def num_groups(self) -> int:
        return len(self.store.metadata.puzzle_ids)

    def trained_on(self) -> TrainedOn:
        """The puzzles that training draws, and their pairs; of held-out ones, the demonstrations."""
        store = self.store
        hashes: list[str] = []
        held_out: list[str] = []
        for p in self.puzzles:
            puzzle = store.manifest.puzzles[p]
            if puzzle.split == "test":
                held_out.append(puzzle.id)
                hashes += puzzle.pair_hashes[: store.puzzle_demos[p]]  # demonstrations come first, all have outputs
            else:
                hashes += puzzle.pair_hashes
        return TrainedOn(
            puzzle_ids=tuple(store.metadata.puzzle_ids[p] for p in self.puzzles),
            pair_hashes=tuple(dict.fromkeys(hashes)),
            held_out_demonstrations=tuple(held_out),
            datasets=store.metadata.sha256,
        )

    def _draw_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " puzzles"], Float64[np.ndarray, "samples draws"]]:
        """The epoch's order of puzzles, and a row of uniform numbers for each version of each puzzle; those of a puzzle
        follow one another, the first numbers of its rows evenly spread from the first one on."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
        draws = 3 + self.pairs.index.shape[1] + 2 * (self.max_demos + 1) + (self.min_demos is not None)
        order, table = rng.permutation(len(self.puzzles)), rng.random((self.epoch_samples, draws))
        of_versions = table.reshape(-1, self.versions, draws)
        of_versions[..., 0] = (of_versions[:, :1, 0] + np.arange(self.versions) / self.versions) % 1.0
        return order, table

    def _draws(self, number: int) -> tuple[Int64[np.ndarray, " batch"], Float64[np.ndarray, "batch draws"]]:
        """The puzzles of a batch (rows of `puzzles`), and a row of uniform numbers for each."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        epochs, positions = np.divmod(number * self.global_batch_size + self.slots, self.epoch_samples)
        rows, draws = [], []
        for epoch in np.unique(epochs):
            order, table = self._epoch_table(int(epoch))
            place, version = np.divmod(positions[epochs == epoch], self.versions)
            rows.append(order[place])
            draws.append(table[rows[-1] * self.versions + version])
        return np.concatenate(rows), np.concatenate(draws)

    def __getitem__(self, number: int) -> Batch:
        return self._batch(*self._draws(number))

    def _batch(self, row: Int64[np.ndarray, " batch"], uniform: Float64[np.ndarray, "batch draws"]) -> Batch:
        """Samples of the given rows of `puzzles`: any version, query, demonstrations and places on the canvas."""
        puzzles = self.puzzles[row]
        first, last = self.store.puzzle_augmentations[puzzles], self.store.puzzle_augmentations[puzzles + 1]
        augmentations = first + np.floor(uniform[:, 0] * (last - first)).astype(np.int64)
        may_query = self.may_query[row]
        nth = np.floor(uniform[:, 1] * may_query.sum(axis=1)).astype(np.int64)
        query = np.argmax(np.cumsum(may_query, axis=1) == nth[:, None] + 1, axis=1)
        may_show = self.may_show[row]
        may_show[np.arange(len(row)), query] = False
        num_pairs = may_show.shape[1]
        demos = first_by_key(uniform[:, 3 : 3 + num_pairs] + self.too_long[row], may_show, self.max_demos)
        if self.min_demos is not None:
            demos = self._some_of(demos, uniform[:, -1])
        index = self.pairs.index[row]
        demo_pairs = np.where(demos >= 0, np.take_along_axis(index, demos, axis=1), -1)
        demo_pairs, left_out = self.limit.apply(demo_pairs)
        query_pairs = index[np.arange(len(row)), query]
        translation = None
        if self.translate:
            places = uniform[:, 3 + num_pairs : 3 + num_pairs + 2 * (self.max_demos + 1)]
            translation = places.reshape(len(row), self.max_demos + 1, 2)
            translation = leave_one_in_place(translation, demo_pairs >= 0, uniform[:, 2])
        batch = assemble(self.store, puzzles, augmentations, demo_pairs, query_pairs, translation)
        return batch | self.limit.counted(left_out)

    def _some_of(
        self, demos: Int64[np.ndarray, "batch demos"], uniform: Float64[np.ndarray, " batch"]
    ) -> Int64[np.ndarray, "batch demos"]:
        """The first demonstrations of each sample, a random number of them."""
        there = (demos >= 0).sum(axis=1)  # they come first
        fewest = np.minimum(self.min_demos or 1, there)
        count = fewest + np.floor(uniform * (there - fewest + 1)).astype(np.int64)
        return np.where(np.arange(demos.shape[1]) < count[:, None], demos, -1)


def leave_one_in_place(
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
