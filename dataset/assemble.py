"""Puzzles and pairs of a store, and the batches drawn of them: augmented and placed on the canvas as they are read.

A batch holds uint8 tokens: `demo_inputs`, `demo_labels` (B, K, 900), `demo_mask` (B, K) bool, `inputs`, `labels`
(B, 900), and int32 `puzzle_identifiers` (B) (index of the augmentation + 1), `puzzle_groups` (B) (index of the
puzzle). Unknown labels and empty demonstration slots are PAD. What the task canvas needs (sizes and offsets of the
grids) is read from the tokens themselves, so no further key takes part.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8

from dataset.augment import FLIPS_COLUMNS, FLIPS_ROWS, SWAPS_AXES
from dataset.batches import Batch
from dataset.grids import (
    CANVAS_SIDE,
    COLOR_OFFSET,
    NUM_COLORS,
    SEQ_LEN,
    cells_of_rectangles,
    draw_eos_borders,
)
from dataset.store import DatasetError, PuzzleStore, Split


def select_puzzles(store: PuzzleStore, split: Split, max_groups: int | None, key: str) -> Int64[np.ndarray, " n"]:
    """The first `max_groups` puzzles of a split (None: all).

    Raises:
        DatasetError: the split has fewer; `key` names the config key.
    """
    puzzles = store.puzzles_of(split)
    if max_groups is not None and max_groups > len(puzzles):
        raise DatasetError(f"{key}={max_groups}, but the data set has {len(puzzles)} puzzles in its {split} split")
    return puzzles[:max_groups]


def named_puzzles(store: PuzzleStore, split: Split, names: Sequence[str], option: str) -> Int64[np.ndarray, " n"]:
    """The puzzles of a split by their ids, in the order of these.

    Raises:
        DatasetError: an id is not in the split; `option` names what asked for it.
    """
    number_of = {store.metadata.puzzle_ids[puzzle]: int(puzzle) for puzzle in store.puzzles_of(split)}
    missing = [name for name in names if name not in number_of]
    if missing:
        raise DatasetError(f"{option}: '{missing[0]}' is not in the {split} split ({len(missing)} are not)")
    return np.array([number_of[name] for name in names], dtype=np.int64)


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


def first_by_key(
    keys: Float64[np.ndarray, "batch pairs"], allowed: Bool[np.ndarray, "batch pairs"], count: int
) -> Int64[np.ndarray, "batch count"]:
    """Columns of the `count` smallest keys among the allowed ones, -1 where there are fewer."""
    order = np.argsort(np.where(allowed, keys, np.inf), axis=1, kind="stable")[:, :count]
    chosen = np.where(np.take_along_axis(allowed, order, axis=1), order, -1)
    return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1)


class AugmentedGrids(Protocol):
    """Grids and augmentations as flat arrays, as `PuzzleStore` has them."""

    @property
    def cells(self) -> UInt8[np.ndarray, " cells"]: ...

    @property
    def grid_starts(self) -> Int64[np.ndarray, " grids+1"]: ...

    @property
    def grid_shapes(self) -> UInt8[np.ndarray, "grids 2"]: ...

    @property
    def dihedral(self) -> UInt8[np.ndarray, " augmentations"]: ...

    @property
    def colors(self) -> UInt8[np.ndarray, "augmentations 10"]: ...


def assemble(
    store: AugmentedGrids,
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
