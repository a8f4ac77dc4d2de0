"""Augmentation: 8 dihedral transforms × permutations of the colours 1-9, their inverses, names and symmetries.

A puzzle's augmented version is called `id|||t<k>|||<10 digits>`: dihedral transform k, and the image of each colour
0-9 (0 stays 0). The bare id is the puzzle as it is.
"""

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, UInt8

from dataset.arc_tasks import NAME_SEPARATOR, Pair, Task
from dataset.grids import NUM_COLORS, Grid

NUM_DIHEDRAL = 8
# Transform k flips the source's rows and columns as given, then swaps the axes where SWAPS_AXES.
# 0 identity, 1-3 rotations by 90°, 180°, 270° (counter-clockwise), 4 left-right, 5 up-down, 6 and 7 the diagonals.
FLIPS_ROWS = np.array([0, 0, 1, 1, 0, 1, 0, 1], dtype=bool)
FLIPS_COLUMNS = np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype=bool)
SWAPS_AXES = np.array([0, 1, 0, 1, 0, 0, 1, 1], dtype=bool)
INVERSE_DIHEDRAL = np.array([0, 3, 2, 1, 4, 5, 6, 7], dtype=np.uint8)

IDENTITY_COLORS = np.arange(NUM_COLORS, dtype=np.uint8)
ColorMap = UInt8[np.ndarray, "10"]


def apply_dihedral(grid: Grid, transform: int) -> Grid:
    """The grid under dihedral transform 0-7."""
    rows = slice(None, None, -1 if FLIPS_ROWS[transform] else 1)
    columns = slice(None, None, -1 if FLIPS_COLUMNS[transform] else 1)
    flipped = grid[rows, columns]
    return np.ascontiguousarray(flipped.T if SWAPS_AXES[transform] else flipped)


def augment_grid(grid: Grid, transform: int, colors: ColorMap) -> Grid:
    """The grid under a dihedral transform and a permutation of colours."""
    return colors[apply_dihedral(grid, transform)]


def unaugment_grid(grid: Grid, transform: int, colors: ColorMap) -> Grid:
    """The inverse of `augment_grid` with the same arguments."""
    inverse = np.argsort(colors).astype(np.uint8)
    return inverse[apply_dihedral(grid, int(INVERSE_DIHEDRAL[transform]))]


def augmented_name(puzzle_id: str, transform: int, colors: ColorMap) -> str:
    """`id|||t<k>|||<10 digits>`, or the bare id for the identity."""
    if transform == 0 and np.array_equal(colors, IDENTITY_COLORS):
        return puzzle_id
    return NAME_SEPARATOR.join((puzzle_id, f"t{transform}", "".join(map(str, colors))))


def parse_augmented_name(name: str) -> tuple[str, int, ColorMap]:
    """The inverse of `augmented_name`.

    Raises:
        ValueError: the name has another form.
    """
    parts = name.split(NAME_SEPARATOR)
    if len(parts) == 1:
        return name, 0, IDENTITY_COLORS
    if len(parts) == 3 and len(parts[1]) == 2 and parts[1][0] == "t" and parts[1][1] in "01234567":
        digits = parts[2]
        if sorted(digits) == list("0123456789") and digits[0] == "0":
            return parts[0], int(parts[1][1]), np.array([int(d) for d in digits], dtype=np.uint8)
    raise ValueError(f"'{name}' is not an augmented name of the form id|||t<0-7>|||<10 digits, 0 first>")


def _grids(pairs: Iterable[Pair]) -> list[Grid]:
    return [grid for pair in pairs for grid in (pair.input, pair.output) if grid is not None]


def _pattern(grids: list[Grid], transform: int) -> tuple[bytes, Int[np.ndarray, " colors"]]:
    """The transformed grids with colours renamed by first appearance, and the colours in that order (without 0)."""
    moved = [apply_dihedral(grid, transform) for grid in grids]
    flat = np.concatenate([grid.ravel() for grid in moved])
    colors, first = np.unique(flat, return_index=True)
    order = colors[np.argsort(first)].astype(np.int64)
    order = order[order != 0]
    rename = np.zeros(NUM_COLORS, dtype=np.uint8)
    rename[order] = np.arange(1, len(order) + 1)
    shapes = np.array([grid.shape for grid in moved], dtype=np.uint8)
    return shapes.tobytes() + rename[flat].tobytes(), order


def pair_hash(pair: Pair) -> str:
    """A hash of an input-output pair that no dihedral transform and no permutation of the colours 1-9 changes."""
    grids = _grids([pair])
    pattern = min(_pattern(grids, transform)[0] for transform in range(NUM_DIHEDRAL))
    return hashlib.blake2b(pattern, digest_size=16).hexdigest()


def puzzle_hash(pair_hashes: Iterable[str]) -> str:
    """A hash of a puzzle from its pairs' hashes: the same for every augmentation and every order of the pairs."""
    return hashlib.blake2b(",".join(sorted(pair_hashes)).encode(), digest_size=16).hexdigest()


class _Contents:
    """Tells augmentations of one task by what they make of it.

    Two augmentations give the same content exactly if their transforms lead to the same pattern of colours and they
    send the colours that occur, in order of appearance, to the same places. So contents are compared by small keys,
    and no grid is built.
    """

    def __init__(self, task: Task):
        grids = _grids((*task.train, *task.test))
        patterns = [_pattern(grids, transform) for transform in range(NUM_DIHEDRAL)]
        numbered = {pattern: i for i, pattern in enumerate(dict.fromkeys(pattern for pattern, _ in patterns))}
        self.pattern_ids = np.array([numbered[pattern] for pattern, _ in patterns])
        self.orders = np.stack([order for _, order in patterns])  # (8, colours that occur)
        self.used = self.orders.shape[1]
        self.count = len(numbered) * math.perm(NUM_COLORS - 1, self.used)

    def first_of_each(
        self, transforms: UInt8[np.ndarray, " n"], colors: UInt8[np.ndarray, "n 10"]
    ) -> Int[np.ndarray, " kept"]:
        """The first augmentation of each content, in their order."""
        place_values = 10 ** np.arange(self.used, dtype=np.int64)
        sent = np.take_along_axis(colors, self.orders[transforms], 1)
        keys = self.pattern_ids[transforms] * 10**self.used + sent @ place_values
        return np.sort(np.unique(keys, return_index=True)[1])


def _drawn_colors(count: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n 10"]:
    permuted = rng.permuted(np.tile(IDENTITY_COLORS[1:], (count, 1)), axis=1)
    return np.concatenate([np.zeros((count, 1), dtype=np.uint8), permuted], axis=1)


def distinct_augmentations(
    task: Task, count: int, rng: np.random.Generator, palettes: int | None = None
) -> tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, "n 10"]]:
    """The identity followed by up to `count` random augmentations, all of different content.

    Fewer than `count` come back only where the puzzle has no more distinct versions, or no more in its palettes.

    Args:
        palettes: permutations of colours that they are drawn from, of which the identity is one (None: any).

    Returns:
        (dihedral ids, colour maps).
    """
    contents = _Contents(task)
    if palettes is not None:
        chosen = np.concatenate([IDENTITY_COLORS[None], _drawn_colors(palettes - 1, rng)])
        every = np.arange(NUM_DIHEDRAL * palettes)
        every = np.concatenate([every[:1], rng.permutation(every[1:])])
        transforms, colors = (every % NUM_DIHEDRAL).astype(np.uint8), chosen[every // NUM_DIHEDRAL]
        kept = contents.first_of_each(transforms, colors)[: 1 + count]
        return transforms[kept], colors[kept]
    wanted = 1 + min(count, contents.count - 1)
    transforms = np.zeros(1, dtype=np.uint8)
    colors = IDENTITY_COLORS[None]
    while True:
        kept = contents.first_of_each(transforms, colors)[:wanted]
        transforms, colors = transforms[kept], colors[kept]
        if len(kept) == wanted:
            return transforms, colors
        draws = max(2 * wanted, 64)
        drawn = _drawn_colors(draws, rng)
        transforms = np.concatenate([transforms, rng.integers(0, NUM_DIHEDRAL, draws, dtype=np.uint8)])
        colors = np.concatenate([colors, drawn])
