"""Tasks that a language model reads: a finite table of them, so that each is read once and its latents are kept.

Training draws from the first `text_augmentations` versions of each puzzle, each with each of its queries, the
demonstrations in the order of the task (at most `max_demos`). Nothing is translated: a text has no canvas to move on.
Batches are those of `dataset.assemble` with the latents added.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from dataset.assemble import assemble, exchanged, select_puzzles
from dataset.augment import augment_grid
from dataset.batches import Batch, Conditions
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset, QuerySampling, fewshot_pairs
from dataset.grids import Grid
from dataset.store import DatasetError, PuzzleStore
from dataset.store_train_dataset import PairChoice, StoreTrainDataset

Curriculum = Literal["none", "grid_size"]
LatentsControl = Literal["true", "shuffled", "zero"]
# With curriculum=grid_size an epoch begins with this share of the puzzles and has all of them half way through.
CURRICULUM_START, CURRICULUM_END = 0.25, 0.5


@dataclass(frozen=True)
class TaskTable:
    """Tasks by number: puzzle, augmentation, the pair that is asked for and the pairs shown (-1: none)."""

    puzzle: Int64[np.ndarray, " tasks"]
    augmentation: Int64[np.ndarray, " tasks"]
    query_pair: Int64[np.ndarray, " tasks"]
    demo_pairs: Int64[np.ndarray, "tasks demos"]

    def __len__(self) -> int:
        return len(self.puzzle)

    def grids(self, store: PuzzleStore, task: int) -> tuple[list[tuple[Grid, Grid]], Grid]:
        """The augmented demonstrations and query input of a task."""
        augmentation = self.augmentation[task]
        transform, colors = int(store.dihedral[augmentation]), store.colors[augmentation]
        shown = [int(pair) for pair in self.demo_pairs[task] if pair >= 0]
        pairs = [
            tuple(augment_grid(store.grid(2 * pair + side), transform, colors) for side in range(2)) for pair in shown
        ]
        query = augment_grid(store.grid(2 * int(self.query_pair[task])), transform, colors)
        return [(grid, result) for grid, result in pairs], query

    def name(self, store: PuzzleStore, task: int) -> str:
        """The augmented puzzle's name and the number of its pair, for messages."""
        puzzle = int(self.puzzle[task])
        pair = int(self.query_pair[task] - store.puzzle_pairs[puzzle])
        return f"{store.augmentation_name(puzzle, int(self.augmentation[task]))}, pair {pair}"

    def donors(self, seed: int) -> Int64[np.ndarray, " tasks"]:
        """For each task one of another puzzle, fixed by the seed: all tasks of a puzzle take from one other puzzle.

        Raises:
            DatasetError: there is only one puzzle.
        """
        puzzles, row = np.unique(self.puzzle, return_inverse=True)
        partner = exchanged(len(puzzles), seed, "arch.latents=shuffled")
        members = [np.flatnonzero(row == p) for p in range(len(puzzles))]
        nth = np.empty(len(self), dtype=np.int64)
        for tasks in members:
            nth[tasks] = np.arange(len(tasks))
        return np.array([members[p][n % len(members[p])] for p, n in zip(partner[row], nth, strict=True)])


@dataclass(frozen=True)
class TaskLatents:
    """The latents of a table of tasks: `z_init` (B, text_hidden), with `states` also `text_states`, `text_mask`.

    Args:
        source: the row of `z_init` and `states` that each task takes.
        states: files of (tokens, text_hidden) hidden states, read as they are needed; () without them.
        longest: length that the hidden states are padded to.
        is_zero: the control: everything is zero.
    """

    z_init: Float32[np.ndarray, "latents text_hidden"]
    source: Int64[np.ndarray, " tasks"]
    states: tuple[Path, ...] = ()
    longest: int = 0
    is_zero: bool = False

    def of(self, samples: Int64[np.ndarray, " batch"]) -> Batch:
        rows = self.source[samples]
        batch = {"z_init": torch.from_numpy(self.z_init[rows])}
        if self.states:
            batch |= self._states(rows)
        if self.is_zero:
            batch = {key: value if key == "text_mask" else torch.zeros_like(value) for key, value in batch.items()}
        return batch

    def _states(self, rows: Int64[np.ndarray, " batch"]) -> Batch:
        states = np.zeros((len(rows), self.longest, self.z_init.shape[1]), dtype=np.float32)
        mask = np.zeros((len(rows), self.longest), dtype=bool)
        for i, row in enumerate(rows):
            found = np.load(self.states[row])
            states[i, : len(found)], mask[i, : len(found)] = found, True
        return {"text_states": torch.from_numpy(states), "text_mask": torch.from_numpy(mask)}


def eval_tasks(dataset: FewshotEvalDataset) -> TaskTable:
    """The queries of an evaluation as tasks, by the same numbers."""
    everything = np.arange(len(dataset.query_row))
    return TaskTable(
        dataset.query_puzzle, dataset.query_augmentation, dataset.query_pair, dataset.demo_pairs(everything)
    )


class TextTrainDataset(StoreTrainDataset):
    """Training batches drawn from a finite table of tasks; an epoch draws as many samples as there are puzzles.

    `curriculum` "none" draws each puzzle once in an epoch; "grid_size" draws among the puzzles of the smallest grids,
    at first a quarter of them, growing evenly to all in the middle of the training. `conditions`, where they are set,
    add keys to each batch.

    Args:
        max_groups: the first N puzzles (None: all).

    Raises:
        DatasetError: as `StoreTrainDataset`; also when there are fewer puzzles, or more versions are asked for than any
            puzzle has.
    """

    conditions: Conditions | None = None

    def __init__(
        self,
        store: PuzzleStore,
        *,
        text_augmentations: int,
        curriculum: Curriculum,
        epochs: int,
        max_groups: int | None = None,
        query_sampling: QuerySampling = "test",
        **options: Any,
    ):
        self.epochs, self.curriculum = epochs, curriculum
        self.query_sampling: QuerySampling = query_sampling
        puzzles = select_puzzles(store, "train", max_groups, "max_train_groups")
        super().__init__(store, puzzles, epochs=epochs, **options)
        first, last = store.puzzle_augmentations[self.puzzles], store.puzzle_augmentations[self.puzzles + 1]
        most = int((last - first).max())
        if text_augmentations > most:
            raise DatasetError(
                f"arch.text_augmentations={text_augmentations}, but no puzzle of the data set has more than {most} "
                "versions; build it with --num-aug"
            )
        self.tasks = self._table(np.minimum(last - first, text_augmentations))
        self.first_task = np.searchsorted(self.tasks.puzzle, self.puzzles)
        self.num_tasks = np.searchsorted(self.tasks.puzzle, self.puzzles, side="right") - self.first_task
        self.by_size = np.argsort(self._largest_grids(), kind="stable")

    def _choose_pairs(self) -> PairChoice:
        return fewshot_pairs(self.store, self.puzzles, self.pairs, self.query_sampling)

    def _table(self, versions: Int64[np.ndarray, " puzzles"]) -> TaskTable:
        row, query = np.nonzero(self.may_query)
        repeats = versions[row]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        row, query = np.repeat(row, repeats), np.repeat(query, repeats)
        shown = self.may_show[row].copy()
        shown[np.arange(len(row)), query] = False
        order = np.argsort(~shown, axis=1, kind="stable")[:, : self.max_demos]
        demo_pairs = np.where(
            np.take_along_axis(shown, order, axis=1), np.take_along_axis(self.pairs.index[row], order, axis=1), -1
        )
        puzzles = self.puzzles[row]
        augmentations = self.store.puzzle_augmentations[puzzles] + within
        return TaskTable(puzzles, augmentations, self.pairs.index[row, query], demo_pairs)

    def _largest_grids(self) -> Int64[np.ndarray, " puzzles"]:
        cells = self.store.grid_shapes.astype(np.int64).prod(axis=1).reshape(-1, 2).max(axis=1)
        return np.where(self.pairs.exists, cells[self.pairs.index], 0).max(axis=1)

    def admitted(self, epoch: int) -> int:
        """How many puzzles an epoch draws from."""
        if self.curriculum == "none":
            return len(self.puzzles)
        share = CURRICULUM_START + (1 - CURRICULUM_START) * epoch / (CURRICULUM_END * self.epochs)
        return min(len(self.puzzles), math.ceil(share * len(self.puzzles)))

    def _draw_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " puzzles"], Float64[np.ndarray, "samples draws"]]:
        order, uniform = super()._draw_epoch(epoch)
        count = self.admitted(epoch)
        if count == len(self.puzzles):
            return order, uniform
        return self.by_size[order % count], uniform  # each admitted puzzle as often as any other, give or take one

    def _batch(self, row: Int64[np.ndarray, " batch"], uniform: Float64[np.ndarray, "batch draws"]) -> Batch:
        task = self.first_task[row] + np.floor(uniform[:, 0] * self.num_tasks[row]).astype(np.int64)
        table = self.tasks
        batch = assemble(
            self.store, table.puzzle[task], table.augmentation[task], table.demo_pairs[task], table.query_pair[task]
        )
        return batch if self.conditions is None else batch | self.conditions.of(task)
