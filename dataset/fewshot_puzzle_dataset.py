"""Queries with their demonstrations: the training batches of systems with an encoder, and every system's evaluation."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from dataset.assemble import PairTable, assemble, first_by_key, named_puzzles, select_puzzles
from dataset.batches import Batch, Conditions
from dataset.context_limit import ContextLimit
from dataset.store import DatasetError, PuzzleStore, Split
from dataset.store_train_dataset import PairChoice, StoreTrainDataset
from dataset.token_batches import bounds_by_cells, cells_of_queries

QuerySampling = Literal["test", "leave_one_out"]


def fewshot_pairs(
    store: PuzzleStore, puzzles: Int64[np.ndarray, " puzzles"], pairs: PairTable, query_sampling: QuerySampling
) -> PairChoice:
    """Which pairs may be asked for, and which may be shown: test pairs and demonstrations, or all but one and that one.

    Raises:
        DatasetError: a puzzle has too few.
    """
    asked, shown, needed, hint = pairs.is_labelled, pairs.is_labelled, 2, ""  # beside the one left out, another
    if query_sampling == "test":
        asked, shown, needed = asked & ~pairs.is_demo, pairs.is_demo, 1
        hint = "; try query_sampling=leave_one_out"
    queries = asked.sum(axis=1)
    if (queries < needed).any():
        puzzle = int(np.argmax(queries < needed))
        name = store.metadata.puzzle_ids[puzzles[puzzle]]
        raise DatasetError(
            f"training puzzle '{name}' has {queries[puzzle]} pairs that query_sampling={query_sampling} can ask "
            f"for and needs {needed}{hint}"
        )
    return asked, shown


class FewshotTrainDataset(StoreTrainDataset):
    """Training batches by number: the puzzles of the training split, each query with demonstrations of its puzzle.

    Args:
        max_groups: the first N puzzles (None: all).

    Raises:
        DatasetError: as `StoreTrainDataset`; also when there are fewer puzzles.
    """

    def __init__(
        self,
        store: PuzzleStore,
        *,
        max_groups: int | None = None,
        query_sampling: QuerySampling = "test",
        **options: Any,
    ):
        self.query_sampling: QuerySampling = query_sampling
        super().__init__(store, select_puzzles(store, "train", max_groups, "max_train_groups"), **options)

    def _choose_pairs(self) -> PairChoice:
        return fewshot_pairs(self.store, self.puzzles, self.pairs, self.query_sampling)


class FewshotEvalDataset(Dataset[Batch]):
    """Every test input of every chosen puzzle in every augmentation, exactly once over all batches and ranks.

    A batch also has `query_indices` (B) int32, rows of the tables `query_puzzle`, `query_pair`,
    `query_augmentation`. Without augmentation limit a puzzle's whole table is read; its first row is the puzzle as
    it is. `conditions`, where they are set, add keys to each batch.

    Args:
        batch_size: how many queries a batch has.
        batch_tokens: instead, how many cells of demonstrations and canvas it has at most (`dataset.token_batches`).
        puzzles: the ids of the chosen ones (none: the first `max_groups`, None all of them).
    """

    conditions: Conditions | None = None

    def __init__(
        self,
        store: PuzzleStore,
        *,
        batch_size: int,
        split: Split = "test",
        max_demos: int = 10,
        max_context_tokens: int | None = None,
        max_groups: int | None = None,
        max_augmentations: int | None = None,
        batch_tokens: int | None = None,
        puzzles: Sequence[str] = (),
        rank: int = 0,
        world_size: int = 1,
    ):
        self.store, self.max_demos, self.batch_size = store, max_demos, batch_size
        key = "max_eval_groups" if split == "test" else "max_train_groups"
        self.puzzles = (
            named_puzzles(store, split, puzzles, "--puzzles")
            if puzzles
            else select_puzzles(store, split, max_groups, key)
        )
        self.pairs = PairTable(store, self.puzzles)
        is_query = self.pairs.exists & ~self.pairs.is_demo
        self.limit = ContextLimit(store, max_context_tokens)
        self.limit.check(store, self.puzzles, self.pairs, self.pairs.is_demo, is_query)
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
        self.batch_tokens = batch_tokens
        self.bounds = self.bounds_of(self.mine)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return self.queries(self.mine[self.bounds[number] : self.bounds[number + 1]])

    def bounds_of(self, queries: Int64[np.ndarray, " queries"]) -> Int64[np.ndarray, " batches+1"]:
        """Where batches of some queries begin, and the end of the last."""
        if self.batch_tokens is None:
            return np.append(np.arange(0, len(queries), self.batch_size), len(queries))
        cells = cells_of_queries(self.store, self.demo_pairs(queries), self.query_pair[queries])
        return bounds_by_cells(cells, self.batch_tokens)

    def queries(self, indices: Int64[np.ndarray, " batch"]) -> Batch:
        """The batch of the given rows of the query tables."""
        demo_pairs, left_out = self.limit.apply(self._first_demos(indices))
        puzzles, augmentations = self.query_puzzle[indices], self.query_augmentation[indices]
        batch = assemble(self.store, puzzles, augmentations, demo_pairs, self.query_pair[indices])
        batch |= self.limit.counted(left_out)
        batch["query_indices"] = torch.from_numpy(indices.astype(np.int32))
        return batch if self.conditions is None else batch | self.conditions.of(indices)

    def demo_pairs(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch demos"]:
        """The pairs shown with the given queries, in the order of the task; -1 where there are fewer."""
        return self.limit.apply(self._first_demos(indices))[0]

    def left_out(self) -> dict[str, int]:
        """By puzzle, how many demonstrations the limit leaves out; without those that are shown all."""
        rows, first = np.unique(self.query_row, return_index=True)
        counts = self.limit.apply(self._first_demos(first))[1]
        ids = self.store.metadata.puzzle_ids
        return {ids[self.puzzles[row]]: int(count) for row, count in zip(rows, counts, strict=True) if count}

    def shortened_rule(self) -> str | None:
        """What leaves out some of the demonstrations of which puzzle, whose rule is known and which all of them show
        together, so that less may be a task without an answer; None where nothing does."""
        known = [p for p in self.puzzles.tolist() if self.store.manifest.puzzles[p].rule is not None]
        if not known:
            return None
        ids, why = self.store.metadata.puzzle_ids, "shows a known rule by all of its demonstrations"
        demos = self.store.puzzle_demos[known]
        if (most := int(demos.max())) > self.max_demos:
            return f"max_demos={self.max_demos}: puzzle '{ids[known[int(demos.argmax())]]}' {why}, which are {most}"
        left_out = self.left_out()
        name = next((ids[p] for p in known if ids[p] in left_out), None)
        return None if name is None else f"max_context_tokens={self.limit.most}: puzzle '{name}' {why}"

    def _first_demos(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch demos"]:
        """The first demonstrations of the queries' tasks; those that the limit never lets in come last."""
        rows = self.query_row[indices]
        index = self.pairs.index[rows]
        keys = np.arange(index.shape[1]) + index.shape[1] * self.limit.too_long(index)
        demos = first_by_key(keys.astype(np.float64), self.pairs.is_demo[rows], self.max_demos)
        return np.where(demos >= 0, np.take_along_axis(index, demos, axis=1), -1)
