"""Augmentations are invertible, named, and really distinct; hashes see through them and through nothing else."""

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dataset.arc_tasks import Pair, Task
from dataset.augment import (
    IDENTITY_COLORS,
    INVERSE_DIHEDRAL,
    NUM_DIHEDRAL,
    ColorMap,
    apply_dihedral,
    augment_grid,
    augmented_name,
    distinct_augmentations,
    pair_hash,
    parse_augmented_name,
    puzzle_hash,
    unaugment_grid,
)
from dataset.grids import Grid
from dataset.subsets import load_subset

GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30), elements=st.integers(0, 9))
SMALL_GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4), elements=st.integers(0, 9))
TRANSFORMS = st.integers(0, 7)
COLORS = st.permutations(range(1, 10)).map(lambda p: np.array([0, *p], dtype=np.uint8))


def grid(*rows: str) -> Grid:
    return np.array([[int(digit) for digit in row] for row in rows], dtype=np.uint8)


def task_of(*pairs: Pair) -> Task:
    """A task whose last pair is its test pair."""
    return Task("x", "own", pairs[:-1], pairs[-1:])


def content_of(task: Task, transform: int, colors: ColorMap) -> tuple[object, ...]:
    """All grids of a task's augmented version, really built, in a form that can be compared and counted."""
    grids = [g for pair in (*task.train, *task.test) for g in (pair.input, pair.output) if g is not None]
    return tuple(tuple(map(tuple, augment_grid(g, transform, colors).tolist())) for g in grids)


def all_versions(task: Task) -> set[tuple[object, ...]]:
    """The contents of every augmentation of a task, by trying all images of the colours that occur."""
    used = sorted({int(c) for pair in (*task.train, *task.test) for c in np.unique(pair.input)} - {0})
    outputs = [pair.output for pair in (*task.train, *task.test) if pair.output is not None]
    used = sorted({*used, *(int(c) for output in outputs for c in np.unique(output))} - {0})
    versions = set()
    for images in itertools.permutations(range(1, 10), len(used)):
        rest_from = [c for c in range(1, 10) if c not in used]
        rest_to = [c for c in range(1, 10) if c not in images]
        colors = np.zeros(10, dtype=np.uint8)
        colors[[*used, *rest_from]] = [*images, *rest_to]
        versions |= {content_of(task, transform, colors) for transform in range(8)}
    return versions


@pytest.mark.parametrize("transform", range(8))
@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, colors=COLORS)
def test_augmenting_then_unaugmenting_is_the_identity(transform: int, grid: Grid, colors: ColorMap) -> None:
    augmented = augment_grid(grid, transform, colors)
    assert augmented.dtype == np.uint8
    assert np.array_equal(unaugment_grid(augmented, transform, colors), grid)
    assert np.array_equal(augment_grid(unaugment_grid(grid, transform, colors), transform, colors), grid)


def test_the_transforms_are_the_eight_symmetries_of_the_square() -> None:
    # A grid without symmetry has exactly eight images; rotations and reflections of numpy are an independent source.
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    ours = [apply_dihedral(square, k).tobytes() for k in range(NUM_DIHEDRAL)]
    symmetries = {np.rot90(flipped, turns).tobytes() for flipped in (square, square.T) for turns in range(4)}
    assert len(set(ours)) == NUM_DIHEDRAL == 8
    assert set(ours) == symmetries
    assert ours[0] == square.tobytes()


def test_the_inverse_table_undoes_each_transform_and_no_other() -> None:
    wide = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for first, second in itertools.product(range(8), range(8)):
        undone = np.array_equal(apply_dihedral(apply_dihedral(wide, first), second), wide)
        assert undone == (INVERSE_DIHEDRAL[first] == second)


@settings(max_examples=30, deadline=None)
@given(GRIDS, TRANSFORMS, COLORS)
def test_black_stays_black_and_every_colour_keeps_its_count(original: Grid, transform: int, colors: ColorMap) -> None:
    augmented = augment_grid(original, transform, colors)
    for color in range(10):
        assert (augmented == colors[color]).sum() == (original == color).sum()
    assert (augmented == 0).sum() == (original == 0).sum()


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(lambda name: "|||" not in name and not name.endswith("|")), TRANSFORMS, COLORS)
def test_names_of_augmented_puzzles_read_back(puzzle: str, transform: int, colors: ColorMap) -> None:
    name = augmented_name(puzzle, transform, colors)
    found_puzzle, found_transform, found_colors = parse_augmented_name(name)
    assert (found_puzzle, found_transform, found_colors.tolist()) == (puzzle, transform, colors.tolist())


def test_names_have_the_form_of_the_spec_and_the_identity_is_the_bare_id() -> None:
    swapped = np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], dtype=np.uint8)
    assert augmented_name("007bbfb7", 3, swapped) == "007bbfb7|||t3|||0213456789"
    assert augmented_name("007bbfb7", 0, swapped) == "007bbfb7|||t0|||0213456789"
    assert augmented_name("007bbfb7", 3, IDENTITY_COLORS) == "007bbfb7|||t3|||0123456789"
    assert augmented_name("007bbfb7", 0, IDENTITY_COLORS) == "007bbfb7"


@pytest.mark.parametrize(
    "name",
    [
        "x|||t1",
        "x|||t8|||0123456789",
        "x|||t-1|||0123456789",
        "x|||t10|||0123456789",
        "x|||1|||0123456789",
        "x|||t|||0123456789",
        "x|||t1|||1023456789",
        "x|||t1|||0123456788",
        "x|||t1|||012345678",
        "x|||t1|||01234567899",
        "x|||t1|||012345678a",
        "x|||t1|||0123456789|||t1|||0123456789",
        "x|||0123456789|||t1",
        "x|||t²|||0123456789",
        "x|||t1|||012345678９",
    ],
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not an augmented name"):
        parse_augmented_name(name)


@settings(max_examples=60, deadline=None)
@given(SMALL_GRIDS, st.none() | SMALL_GRIDS, TRANSFORMS, COLORS)
def test_a_pairs_hash_does_not_change_under_augmentation(
    input_grid: Grid, output_grid: Grid | None, transform: int, colors: ColorMap
) -> None:
    moved_output = None if output_grid is None else augment_grid(output_grid, transform, colors)
    moved = Pair(augment_grid(input_grid, transform, colors), moved_output)
    assert pair_hash(moved) == pair_hash(Pair(input_grid, output_grid))


def test_pairs_hash_alike_exactly_if_an_augmentation_leads_from_one_to_the_other() -> None:
    # All pairs of a 1 x 2 or 2 x 1 input and a 1 x 1 or 1 x 2 output in three colours; an injection among the colours
    # that occur extends to a permutation of 1-9, so permutations of 1-2 are all that can tell them apart.
    shapes = [((1, 2), (1, 1)), ((2, 1), (1, 1)), ((1, 2), (1, 2)), ((1, 2), (2, 1))]
    pairs = []
    for (rows, columns), (out_rows, out_columns) in shapes:
        area, out_area = rows * columns, out_rows * out_columns
        for cells in itertools.product(range(3), repeat=area + out_area):
            flat = np.array(cells, dtype=np.uint8)
            pairs.append(Pair(flat[:area].reshape(rows, columns), flat[area:].reshape(out_rows, out_columns)))

    def orbit(pair: Pair) -> frozenset[object]:
        swaps = [IDENTITY_COLORS, np.array([0, 2, 1, *range(3, 10)], dtype=np.uint8)]
        return frozenset(content_of(task_of(pair), k, colors) for k in range(8) for colors in swaps)

    by_hash: dict[str, set[frozenset[object]]] = {}
    by_orbit: dict[frozenset[object], set[str]] = {}
    for pair in pairs:
        by_hash.setdefault(pair_hash(pair), set()).add(orbit(pair))
        by_orbit.setdefault(orbit(pair), set()).add(pair_hash(pair))
    assert all(len(orbits) == 1 for orbits in by_hash.values())
    assert all(len(hashes) == 1 for hashes in by_orbit.values())


def test_what_makes_two_pairs_different_changes_the_hash() -> None:
    base = Pair(grid("120", "000"), grid("21"))
    others = {
        "input and output swapped": Pair(grid("21"), grid("120", "000")),
        "output unknown": Pair(grid("120", "000"), None),
        "another output": Pair(grid("120", "000"), grid("22")),
        "black taken for a colour": Pair(grid("123", "333"), grid("21")),
        "colours renamed in the output alone": Pair(grid("120", "000"), grid("12")),
        "input turned, output not": Pair(grid("00", "20", "10"), grid("21")),
        "other shape of the same cells": Pair(grid("12", "00", "00"), grid("21")),
        "cells moved from output to input": Pair(grid("120", "000", "210"), grid("1")),
    }
    hashes = {name: pair_hash(pair) for name, pair in others.items()}
    assert len({pair_hash(base), *hashes.values()}) == 1 + len(others), hashes


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(SMALL_GRIDS, SMALL_GRIDS), min_size=1, max_size=4), TRANSFORMS, COLORS, st.randoms())
def test_a_puzzles_hash_sees_neither_the_order_of_pairs_nor_the_augmentation(
    grids: list[tuple[Grid, Grid]], transform: int, colors: ColorMap, random: Random
) -> None:
    hashes = [pair_hash(Pair(*pair)) for pair in grids]
    moved = [pair_hash(Pair(*(augment_grid(g, transform, colors) for g in pair))) for pair in grids]
    random.shuffle(moved)
    assert puzzle_hash(moved) == puzzle_hash(hashes)
    assert puzzle_hash([*hashes, hashes[0]]) != puzzle_hash(hashes)
    assert puzzle_hash([pair_hash(Pair(grid("12"), grid("345"))), *hashes]) != puzzle_hash(hashes)


def check_augmentations(task: Task, count: int, versions: int | None) -> int:
    """The invariants of a task's augmentation table; how many it holds."""
    transforms, colors = distinct_augmentations(task, count, np.random.default_rng(7))
    assert transforms.dtype == colors.dtype == np.uint8
    assert transforms[0] == 0
    assert colors[0].tolist() == list(range(10))
    assert all(sorted(row.tolist()) == list(range(10)) for row in colors)
    assert not colors[:, 0].any()
    contents = {content_of(task, int(t), c) for t, c in zip(transforms, colors, strict=True)}
    assert len(contents) == len(transforms), "two augmentations of the table give the same puzzle"
    if versions is not None:
        assert len(transforms) == min(count + 1, versions)
    return len(transforms)


TINY_PUZZLES = {
    "black alone": task_of(Pair(grid("0"), grid("0"))),
    "black alone, not square": task_of(Pair(grid("00"), grid("0"))),
    "one colour, fully symmetric": task_of(Pair(grid("1"), grid("1"))),
    "one colour, one axis": task_of(Pair(grid("10"), grid("11"))),
    "one colour, no symmetry": task_of(Pair(grid("100", "110"), grid("1"))),
    "one colour, rotation only": task_of(Pair(grid("0100", "0001", "1000", "0010"), grid("1"))),
    "two colours that a reflection swaps": task_of(Pair(grid("12"), grid("3"))),
    "two colours, symmetric": task_of(Pair(grid("1"), grid("2"))),
    "two colours, output unknown": task_of(Pair(grid("12"), grid("1")), Pair(grid("21"), None)),
    "two colours, swapped by reflection in all grids": task_of(Pair(grid("12"), grid("21")), Pair(grid("21"), None)),
    "symmetry broken by another pair": task_of(Pair(grid("1"), grid("1")), Pair(grid("10", "00"), grid("1"))),
}


@pytest.mark.parametrize("name", TINY_PUZZLES)
def test_a_puzzle_with_few_versions_gets_all_of_them(name: str) -> None:
    task = TINY_PUZZLES[name]
    versions = len(all_versions(task))
    assert check_augmentations(task, 2000, versions) == versions
    assert check_augmentations(task, versions - 1, versions) == versions


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_count_limits_the_versions_beside_the_puzzle_itself(count: int) -> None:
    assert check_augmentations(TINY_PUZZLES["one colour, no symmetry"], count, 72) == 1 + count


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(SMALL_GRIDS, SMALL_GRIDS), min_size=1, max_size=3), st.integers(0, 40))
def test_the_versions_of_any_puzzle_are_distinct_when_built(grids: list[tuple[Grid, Grid]], count: int) -> None:
    check_augmentations(task_of(*(Pair(*pair) for pair in grids)), count, None)


def test_the_versions_of_real_puzzles_are_distinct_when_built_and_as_many_as_asked() -> None:
    tasks, _ = load_subset("training")
    for task in tasks[::40]:
        # Five colours alone have 15,120 images, so the count is reached.
        colors = {int(c) for pair in task.train for c in np.unique(pair.input)} - {0}
        found = check_augmentations(task, 60, None)
        assert found == 61 or len(colors) < 5


def test_augmentations_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    task = task_of(Pair(grid("123", "045"), grid("67")))
    tables = [distinct_augmentations(task, 50, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(tables[0], tables[1], strict=True))
    assert not np.array_equal(tables[0][1], tables[2][1])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(SMALL_GRIDS, SMALL_GRIDS), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(0, 50),
    st.integers(0, 2**32 - 1),
)
def test_of_a_few_palettes_all_distinct_versions_are_drawn(
    grids: list[tuple[Grid, Grid]], palettes: int, count: int, seed: int
) -> None:
    """The puzzle as it is first; every transform in every palette as a version, or like one, where there is room."""
    task = task_of(*(Pair(*pair) for pair in grids))
    transforms, colors = distinct_augmentations(task, count, np.random.default_rng(seed), palettes)
    assert (transforms[0], colors[0].tolist()) == (0, list(range(10)))
    assert len({tuple(row) for row in colors.tolist()}) <= palettes
    drawn = [content_of(task, int(t), c) for t, c in zip(transforms, colors, strict=True)]
    assert len(set(drawn)) == len(drawn) <= 1 + count
    everything, table = distinct_augmentations(task, 8 * palettes, np.random.default_rng(seed), palettes)
    known = {content_of(task, int(t), c) for t, c in zip(everything, table, strict=True)}
    assert {content_of(task, t, c) for t in range(8) for c in np.unique(table, axis=0)} == known
    assert drawn == [content_of(task, int(t), c) for t, c in zip(everything, table, strict=True)][: 1 + count]


def test_augmentations_use_all_transforms_and_move_all_colours() -> None:
    task = task_of(Pair(grid("123", "456"), grid("789")))
    transforms, colors = distinct_augmentations(task, 400, np.random.default_rng(0))
    counts = np.bincount(transforms, minlength=8)
    assert counts.min() > 20  # 50 expected of each
    for color in range(1, 10):
        assert set(colors[:, color].tolist()) == set(range(1, 10))
    # Of 362,880 permutations hardly two of 400 are the same.
    assert len({tuple(row) for row in colors.tolist()}) > 390
