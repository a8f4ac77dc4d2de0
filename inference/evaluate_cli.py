"""The evaluation of a checkpoint: `python evaluate.py --checkpoint RUN`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from config.schema import ConfigError
from dataset.controls import ShuffledConditions
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import DatasetError, DatasetMetadata, PuzzleStore, load_stores
from inference.evaluation import Evaluation, evaluate
from inference.restore import restore_model
from inference.task_latents import attach_latents
from models.losses import create_loss_head
from utils import distributed
from utils.distributed import Ranks
from utils.faults import memory_for


def evaluate_checkpoint(
    path: str | Path,
    *,
    split: str = "test",
    shuffle: bool = False,
    averaged: bool = True,
    max_groups: int | None = None,
    max_augmentations: int | None = None,
    batch_size: int | None = None,
    data_paths: Sequence[str] = (),
    device: str = "auto",
) -> Evaluation:
    """Evaluate the newest checkpoint of a run, or one checkpoint, on a split of its data set.

    Args:
        shuffle: ask each query with what belongs to another puzzle.
        max_groups, max_augmentations: limits (None: the run's own).
        batch_size: queries at once (None: the run's own).
        data_paths: other data sets than the run's.

    Raises:
        CheckpointError, DatasetError: something is missing or does not fit.
        OutOfMemory: with what to lower.
    """
    checkpoint = open_checkpoint(path)
    paths = tuple(data_paths) or tuple(checkpoint.config["data_paths"])
    store = load_stores(paths)
    _need_puzzles(store, split, paths)
    ranks = Ranks(0, 1, distributed.choose_device(device))
    model, config = restore_model(checkpoint, store.metadata, ranks.device, averaged=averaged)
    if not model.reads_demonstrations:
        _refuse_other_identifiers(checkpoint, store.metadata)
    if max_groups is None:
        max_groups = config.max_eval_groups if split == "test" else config.max_train_groups
    options: dict[str, Any] = {
        "batch_size": batch_size or config.eval_batch_size,
        "split": split,
        "max_demos": config.max_demos,
        "max_groups": max_groups,
        "max_augmentations": config.max_eval_augmentations if max_augmentations is None else max_augmentations,
    }
    data = FewshotEvalDataset(store, **options)
    if shuffle:
        data = ShuffledConditions(store, keys=model.condition_keys, **options)
    attach_latents(config, [data], ranks)
    head = create_loss_head(config.arch, model)
    seen = checkpoint.trained_on
    with memory_for("in the evaluation", f"lower --batch-size, which is {data.batch_size} queries at once"):
        return evaluate(head, data, ranks, seen_pairs=seen.pair_hashes, unknown_origin=bool(seen.unknown_origin))


def _need_puzzles(store: PuzzleStore, split: str, paths: Sequence[str]) -> None:
    """Refuse a split without puzzles, which would give figures of nothing."""
    if split not in store.metadata.puzzle_splits:
        other, remedy = ("train", "--test-set-name SUBSET") if split == "test" else ("test", "--subsets")
        raise DatasetError(
            f"{', '.join(paths)}: no {'held-out' if split == 'test' else 'training'} puzzle to evaluate on; build the "
            f"data set with {remedy}, name another by --data-paths, or use --split {other}"
        )


def _refuse_other_identifiers(checkpoint: Checkpoint, metadata: DatasetMetadata) -> None:
    """TRM's rows are puzzles of the data set that it was trained on, by number."""
    known = set(checkpoint.trained_on.datasets.values())
    if known and not set(metadata.sha256.values()) <= known:
        raise CheckpointError(
            f"{checkpoint.path}: a TRM knows the puzzles of its own data set by number; this is another one or has "
            "been rebuilt otherwise"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: prints the metrics as JSON, one to a line."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Evaluate a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="a run folder (its newest checkpoint) or a checkpoint")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--shuffle", action="store_true", help="ask with another puzzle's demonstrations or id")
    parser.add_argument("--raw", action="store_true", help="the weights themselves instead of their average")
    parser.add_argument("--max-groups", type=int, help="the first N puzzles")
    parser.add_argument("--max-augmentations", type=int, help="votes a puzzle")
    parser.add_argument("--batch-size", type=int, help="queries at once; default: the run's eval_batch_size")
    parser.add_argument("--data-paths", nargs="+", default=(), help="other data sets than the run's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("max_groups", "max_augmentations", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    try:
        found = evaluate_checkpoint(
            arguments.checkpoint,
            split=arguments.split,
            shuffle=arguments.shuffle,
            averaged=not arguments.raw,
            max_groups=arguments.max_groups,
            max_augmentations=arguments.max_augmentations,
            batch_size=arguments.batch_size,
            data_paths=arguments.data_paths,
            device=arguments.device,
        )
    except (CheckpointError, DatasetError, ConfigError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(json.dumps(found.metrics, indent=0) + "\n")
