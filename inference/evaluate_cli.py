"""The evaluation of a checkpoint: `python evaluate.py --checkpoint RUN`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from config.schema import ConfigError, TrainConfig
from dataset.controls import ShuffledConditions
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import DatasetError, DatasetMetadata, PuzzleStore, load_stores
from inference.adapt_arguments import Asked, add_adapt_arguments, add_control_argument, asked_of
from inference.adapt_command import evaluate_adapted
from inference.adapt_evaluation import read_puzzle_list
from inference.adapt_options import AdaptError
from inference.control_measures import create_controls
from inference.control_table import control_table
from inference.evaluation import Evaluation, evaluate, warn_of_shortened_rules
from inference.restore import add_dtype_argument, in_dtype, restore_model
from inference.shipped import card_of
from inference.task_latents import attach_latents
from models.act import RecursiveReasoner
from models.losses import create_loss_head
from utils import distributed
from utils.distributed import Ranks
from utils.faults import memory_for
from utils.together import divided_work

log = logging.getLogger(__name__)
DEFAULT_RECORD = "adapted"


def evaluate_checkpoint(
    path: str | Path,
    *,
    split: str = "test",
    shuffle: bool = False,
    averaged: bool = True,
    max_groups: int | None = None,
    puzzles: Sequence[str] = (),
    max_augmentations: int | None = None,
    batch_size: int | None = None,
    data_paths: Sequence[str] = (),
    controls: bool | None = None,
    control_queries: int | None = None,
    device: str = "auto",
    forward_dtype: str | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate the newest checkpoint of a run, or one checkpoint, on a split of its data set.

    Args:
        shuffle: ask each query with what belongs to another puzzle.
        max_groups, max_augmentations: limits (None: the run's own).
        puzzles: ids of those that are asked about, whatever `max_groups` (none: as that says).
        batch_size: queries at once (None: the run's own).
        data_paths: other data sets than the run's.
        controls, control_queries: ask the controls, and of how many queries at most (None: as the run does). There are
            none with `shuffle`.
        forward_dtype: what is computed in (None: the run's own).
        ranks: divide the queries, each on its own device (None: this process alone on `device`).

    Raises:
        CheckpointError, DatasetError: something is missing or does not fit.
        OutOfMemory: with what to lower.
    """
    ranks = Ranks(0, 1, distributed.choose_device(device)) if ranks is None else ranks
    checkpoint = distributed.on_first_rank(lambda: in_dtype(open_checkpoint(path), forward_dtype), ranks)

    def prepared() -> tuple[RecursiveReasoner, TrainConfig, FewshotEvalDataset]:
        paths = tuple(data_paths) or tuple(checkpoint.config["data_paths"])
        store = load_stores(paths)
        _need_puzzles(store, split, paths)
        model, config = restore_model(checkpoint, store.metadata, ranks.device, averaged=averaged)
        if not model.reads_demonstrations:
            _refuse_other_identifiers(checkpoint, store.metadata)
        limits = {"max_groups": max_groups, "max_augmentations": max_augmentations, "batch_size": batch_size}
        options: dict[str, Any] = _query_options(config, split, limits)
        options |= {"puzzles": puzzles, "rank": ranks.rank, "world_size": ranks.world_size}
        if shuffle:
            return model, config, ShuffledConditions(store, keys=model.condition_keys, **options)
        data = FewshotEvalDataset(store, **options)
        if model.reads_demonstrations:
            warn_of_shortened_rules(data)
        return model, config, data

    model, config, data = distributed.together(prepared, ranks)
    attach_latents(config, [data], ranks)
    head = create_loss_head(config.arch, model)
    config = _with_controls(config, False if shuffle else controls, control_queries)
    seen = checkpoint.trained_on
    with memory_for("in the evaluation", f"lower --batch-size, which is {data.batch_size} queries at once"):
        return evaluate(
            head,
            data,
            ranks,
            seen_pairs=seen.pair_hashes,
            unknown_origin=bool(seen.unknown_origin),
            seen_puzzles=seen.puzzle_ids,
            controls=create_controls(config, head, data, ranks),
        )


def _with_controls(config: TrainConfig, controls: bool | None, control_queries: int | None) -> TrainConfig:
    """The config with other controls than the run's, where something is given; a number of queries asks for them."""
    asks = True if controls is None and control_queries else controls
    given = {"eval_controls": asks, "eval_control_queries": control_queries}
    return config.model_copy(update={key: value for key, value in given.items() if value is not None})


def _query_options(config: TrainConfig, split: str, limits: dict[str, int | None]) -> dict[str, Any]:
    """Which queries of a data set are asked; where a limit is None it is the run's own."""
    own = {
        "max_groups": config.max_eval_groups if split == "test" else config.max_train_groups,
        "max_augmentations": config.max_eval_augmentations,
        "batch_size": config.eval_batch_size,
    }
    chosen = {key: own[key] if limit is None else limit for key, limit in limits.items()}
    tokens = config.eval_batch_tokens if limits["batch_size"] is None else None
    shown = {"max_demos": config.max_demos, "max_context_tokens": config.max_context_tokens}
    return {**chosen, **shown, "batch_tokens": tokens, "split": split}


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


def _add_adaptation(parser: argparse.ArgumentParser) -> None:
    add_adapt_arguments(parser)
    add_control_argument(parser)
    parser.add_argument("--puzzles", type=Path, metavar="FILE", help="ids of the split, one to a line")
    parser.add_argument("--jobs", type=int, help="with --adapt: processes, each of one thread (1)")
    parser.add_argument("--stack", type=int, help="with --adapt-updates: tasks adapted side by side in one pass (1)")
    parser.add_argument("--output-dir", type=Path, help=f"with --adapt: its record, also to go on ({DEFAULT_RECORD})")
    parser.add_argument("--seed", type=int, help="with --adapt: draws views and versions (0)")


def _asked(arguments: argparse.Namespace) -> Asked | None:
    """What is to be adapted, with the other arguments that belong to it set; None where nothing is.

    Raises:
        AdaptError: arguments that do not go together.
    """
    asked = asked_of(
        arguments,
        card_of(arguments.checkpoint),
        votes=arguments.max_augmentations,
        seed=arguments.seed,
        control=arguments.adapt_control,
    )
    refused = (
        ("jobs", "stack", "output_dir", "seed") if asked is None else ("batch_size", "controls", "control_queries")
    )
    for name in refused:
        if getattr(arguments, name) is not None:
            clash = "needs --adapt SECONDS or --adapt-updates N" if asked is None else "is not read with --adapt"
            raise AdaptError(f"--{name.replace('_', '-')}: {clash}")
    if asked is not None and arguments.shuffle:
        raise AdaptError("--shuffle with --adapt: use --adapt-control mispaired")
    if arguments.stack and arguments.jobs:
        raise AdaptError(
            "--stack with --jobs: one process adapts all tasks that stand side by side; give one of the two"
        )
    arguments.stack = arguments.stack or 1
    arguments.jobs, arguments.output_dir = arguments.jobs or 1, arguments.output_dir or Path(DEFAULT_RECORD)
    return asked


def _refuse_clashes(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.shuffle and (arguments.controls or arguments.control_queries):
        parser.error("--shuffle gives every query another puzzle's demonstrations; the controls need the right ones")
    if arguments.puzzles is not None and arguments.max_groups is not None:
        parser.error("--max-groups would change nothing: --puzzles names the puzzles")
    if arguments.control_queries and arguments.controls is False:
        parser.error("--control-queries would change nothing: --no-controls asks none")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Evaluate a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="a run folder (its newest checkpoint) or a checkpoint")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--shuffle", action="store_true", help="ask with another puzzle's demonstrations or id")
    parser.add_argument("--raw", action="store_true", help="the weights themselves instead of their average")
    parser.add_argument("--max-groups", type=int, help="the first N puzzles")
    parser.add_argument("--max-augmentations", type=int, help="votes a puzzle")
    parser.add_argument("--batch-size", type=int, help="queries at once; default: the run's eval_batch_size")
    parser.add_argument("--data-paths", nargs="+", default=(), help="other data sets than the run's")
    parser.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        help="also ask with a donor's demonstrations, with none, in another order, ...; default: as the run does",
    )
    parser.add_argument("--control-queries", type=int, help="at most so many; default: the run's eval_control_queries")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_dtype_argument(parser)
    _add_adaptation(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: prints the metrics as JSON, one to a line, and on standard error the table of controls. Under
    torchrun the ranks divide the queries.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("max_groups", "max_augmentations", "batch_size", "control_queries", "jobs", "stack"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    _refuse_clashes(parser, arguments)
    try:
        asked = _asked(arguments)
    except (AdaptError, CheckpointError) as error:
        parser.exit(2, f"error: {error}\n")
    faults = (CheckpointError, DatasetError, ConfigError, AdaptError)
    with divided_work(arguments.device, faults) as ranks:
        if asked is not None:
            metrics = evaluate_adapted(arguments, asked, ranks)
            if ranks.is_first:
                sys.stdout.write(json.dumps(metrics, indent=0) + "\n")
            return
        found = evaluate_checkpoint(
            arguments.checkpoint,
            split=arguments.split,
            shuffle=arguments.shuffle,
            averaged=not arguments.raw,
            max_groups=arguments.max_groups,
            puzzles=() if arguments.puzzles is None else read_puzzle_list(arguments.puzzles),
            max_augmentations=arguments.max_augmentations,
            batch_size=arguments.batch_size,
            data_paths=arguments.data_paths,
            controls=arguments.controls,
            control_queries=arguments.control_queries,
            forward_dtype=arguments.forward_dtype,
            ranks=ranks,
        )
        if ranks.is_first:
            for line in control_table(found.metrics).splitlines():
                log.info("%s", line)
            sys.stdout.write(json.dumps(found.metrics, indent=0) + "\n")
