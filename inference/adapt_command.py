"""`evaluate.py --adapt`: a split answered puzzle by puzzle, with figures beside those of the unadapted weights."""

import argparse
from pathlib import Path

from checkpoints.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from dataset.arc_tasks import Task
from dataset.fewshot_puzzle_dataset import FewshotEvalDataset
from dataset.store import PuzzleStore, load_stores
from inference.adapt_arguments import Asked
from inference.adapt_evaluation import Work, answer_all, read_puzzle_list, settings_of, tasks_of_split
from inference.adapt_figures import figures, write_figures
from inference.adapt_questions import refuse_without_room
from inference.adapt_record import AdaptRecord
from inference.adapt_stack import stack_refusal
from inference.adapt_systems import refusal
from inference.evaluation import warn_of_shortened_rules
from inference.restore import config_of, in_dtype
from utils import distributed
from utils.distributed import Ranks
from utils.run_lock import lock_folder, unlock_folder


def evaluate_adapted(arguments: argparse.Namespace, asked: Asked, ranks: Ranks) -> dict[str, float]:
    """Answer every puzzle that is asked for and not yet in the record; the figures of all.

    Raises:
        AdaptError, CheckpointError, DatasetError: something is missing or does not fit; nothing is begun.
    """
    folder = Path(arguments.output_dir)
    if ranks.is_first:
        lock_folder(folder)
    try:
        return _evaluated(arguments, asked, folder, ranks)
    finally:
        if ranks.is_first:
            unlock_folder(folder)


def _evaluated(arguments: argparse.Namespace, asked: Asked, folder: Path, ranks: Ranks) -> dict[str, float]:
    dtype = arguments.forward_dtype
    checkpoint = distributed.on_first_rank(lambda: in_dtype(open_checkpoint(arguments.checkpoint), dtype), ranks)
    store, tasks = distributed.together(lambda: _asked_for(arguments, asked, checkpoint), ranks)
    work = Work(
        checkpoint=checkpoint,
        averaged=not arguments.raw,
        options=asked.options,
        budget=asked.budget,
        device=str(ranks.device),
        total_seconds=arguments.total_seconds,
        jobs=arguments.jobs,
        stack=arguments.stack,
    )
    record = AdaptRecord(folder)
    settings = settings_of(work, tasks, arguments.split, store) | {"forward_dtype": dtype}
    distributed.on_first_rank(lambda: record.open(settings), ranks)
    found = answer_all(work, tasks, record, ranks)
    curve_end = None if arguments.total_seconds is not None else asked.budget.seconds
    metrics = figures(tasks, found, checkpoint.trained_on, asked.options, curve_end)
    if ranks.is_first:
        write_figures(folder, tasks, found, checkpoint.trained_on, metrics, checkpoint.step, asked.options.control)
    return metrics


def _asked_for(arguments: argparse.Namespace, asked: Asked, checkpoint: Checkpoint) -> tuple[PuzzleStore, list[Task]]:
    if why := refusal(config_of(checkpoint).arch, asked.options):
        raise CheckpointError(f"{checkpoint.path}: {why}")
    if arguments.stack > 1 and (why := stack_refusal(config_of(checkpoint).arch, asked.options, asked.budget)):
        raise CheckpointError(f"{checkpoint.path}: --stack {arguments.stack}: {why}")
    store = load_stores(tuple(arguments.data_paths) or tuple(checkpoint.config["data_paths"]))
    puzzles = [] if arguments.puzzles is None else read_puzzle_list(arguments.puzzles)
    tasks = tasks_of_split(store, arguments.split, arguments.max_groups, puzzles)
    config = config_of(checkpoint)
    refuse_without_room(tasks, config)
    if config.arch.condition == "demonstrations":
        chosen = {"split": arguments.split, "max_groups": arguments.max_groups, "puzzles": puzzles}
        limits = {"max_demos": config.max_demos, "max_context_tokens": config.max_context_tokens}
        warn_of_shortened_rules(FewshotEvalDataset(store, batch_size=1, **chosen, **limits))
    return store, tasks
