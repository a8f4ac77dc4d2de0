"""Adaptation to each puzzle of a split, one after another in several processes, resumable puzzle by puzzle."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoints.checkpoint import Checkpoint
from dataset.arc_tasks import Pair, Task
from dataset.assemble import named_puzzles, select_puzzles
from dataset.build_arc_dataset import without_outputs
from dataset.store import DatasetError, PuzzleStore, Split
from inference.adapt import adapt
from inference.adapt_options import AdaptOptions, Budget
from inference.adapt_record import AdaptRecord, Answered
from inference.adapt_stack import adapt_stacked
from inference.adapt_workers import worked_on
from inference.restore import restore_without_data
from inference.shares import Shares, cells_shown
from utils import distributed
from utils.distributed import Ranks
from utils.files import sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a process needs to answer puzzles.

    total_seconds: for all puzzles together, by the clock on the wall; what one does not use the others get.
    stack: how many puzzles a process adapts side by side.
    """

    checkpoint: Checkpoint
    averaged: bool
    options: AdaptOptions
    budget: Budget | None
    device: str
    total_seconds: float | None = None
    jobs: int = 1
    stack: int = 1


def tasks_of_split(store: PuzzleStore, split: Split, max_groups: int | None, puzzles: Sequence[str]) -> list[Task]:
    """The puzzles of a split as tasks, in the order of the data set.

    Args:
        puzzles: ids of those that are wanted (none: the first `max_groups`, None all of them).

    Raises:
        DatasetError: an id is not in the split.
    """
    chosen = (
        named_puzzles(store, split, puzzles, "--puzzles")
        if puzzles
        else select_puzzles(store, split, max_groups, "--max-groups")
    )
    return [_task_of(store, int(puzzle)) for puzzle in chosen]


def _task_of(store: PuzzleStore, puzzle: int) -> Task:
    first, last = store.puzzle_pairs[puzzle : puzzle + 2].tolist()
    demos = int(store.puzzle_demos[puzzle])
    outputs = [store.grid(2 * p + 1) for p in range(first, last)]
    pairs = [
        Pair(store.grid(2 * p), out if out.size else None) for p, out in zip(range(first, last), outputs, strict=True)
    ]
    metadata = store.metadata
    name, subset = metadata.puzzle_ids[puzzle], metadata.puzzle_subsets[puzzle]
    return Task(name, subset, tuple(pairs[:demos]), tuple(pairs[demos:]))


def read_puzzle_list(path: Path) -> list[str]:
    """The ids in a file, one to a line; empty lines and what follows a # are left out.

    Raises:
        DatasetError: no such file, no id in it, or one stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"--puzzles {path}: cannot be read ({error})") from error
    ids = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not ids or len(set(ids)) < len(ids):
        twice = next((name for name in ids if ids.count(name) > 1), None)
        raise DatasetError(f"--puzzles {path}: " + (f"'{twice}' stands twice" if twice else "no puzzle id in it"))
    return ids


def settings_of(work: Work, tasks: Sequence[Task], split: str, store: PuzzleStore) -> dict[str, Any]:
    """What decides on the answers, as the record keeps it."""
    checkpoint = work.checkpoint
    return {
        "checkpoint": str(checkpoint.path.resolve()),
        "checkpoint_sha256": sha256_of(checkpoint.path / "manifest.json"),
        "averaged": work.averaged,
        "split": split,
        "data": store.metadata.sha256,
        "options": work.options.model_dump(),
        "budget": None if work.budget is None else work.budget.model_dump(),
        "total_seconds": work.total_seconds,
        "puzzles": [task.id for task in tasks],
    }


def answer_all(work: Work, tasks: Sequence[Task], record: AdaptRecord, ranks: Ranks) -> list[Answered]:
    """Answer what the record lacks, over all ranks, each with `work.jobs` processes; the whole record, in order."""
    ids, began = [task.id for task in tasks], time.monotonic()
    # One rank looks, for another may look after the first puzzle of this call is written.
    waiting, used = distributed.on_first_rank(lambda: (record.lacks(ids), record.seconds()), ranks)
    if work.total_seconds is not None:  # the cheapest first, so that the others get what these leave
        waiting.sort(key=lambda number: cells_shown(tasks[number]))
    mine = waiting[ranks.rank :: ranks.world_size]
    if ranks.is_first:
        _announce(work, len(tasks), len(waiting), used, ranks)
    shares = Shares(work.budget, work.total_seconds, len(mine), jobs=work.jobs, used=used)
    jobs = ((number, (without_outputs(tasks[number]), shares.next())) for number in mine)
    progress = tqdm(total=len(mine), desc="adapt", disable=not ranks.is_first)
    with progress:
        for number, answered in _answered(work, jobs, min(work.jobs, max(1, len(mine)))):
            record.write(number, answered)
            if ranks.is_first:
                record.write_seconds(used + time.monotonic() - began)
            progress.update()
            progress.set_postfix_str(f"{answered.puzzle}: {answered.updates} updates, {answered.ended}")
    distributed.barrier(ranks)
    found = record.read_all(ids)
    return [answered for answered in found if answered is not None]


def _announce(work: Work, total: int, waiting: int, used: float, ranks: Ranks) -> None:
    """Say, before the first puzzle, what will be done and how long it takes."""
    processes = work.jobs * ranks.world_size
    if work.total_seconds is not None:
        left = max(0.0, work.total_seconds - used)
        length = f"{left:.0f} s in all ({work.total_seconds:.0f} s less what is used)"
    elif work.budget is not None and work.budget.seconds is not None:
        rounds = -(-waiting // processes)
        length = f"{work.budget.seconds:g} s each, about {rounds * work.budget.seconds:.0f} s in all"
    else:
        length = f"{work.budget.updates if work.budget else 0} updates each"
    log.info("%d puzzles, %d of them answered before; %d at a time, %s", total, total - waiting, processes, length)


def _answered(work: Work, jobs: Iterable[tuple[int, tuple[Task, Budget]]], processes: int) -> Iterator[Any]:
    """Each job's number and what its puzzle came to, as they come."""
    if work.stack == 1:
        return worked_on(_answering, work, jobs, processes)
    return _answered_side_by_side(work, [(number, task) for number, (task, _) in jobs])


def _answered_side_by_side(work: Work, tasks: Sequence[tuple[int, Task]]) -> Iterator[tuple[int, Answered]]:
    assert work.budget is not None
    model, config = restore_without_data(work.checkpoint, torch.device(work.device), averaged=work.averaged)
    for number, done in adapt_stacked(model, config, tasks, work.options, work.budget, work.stack):
        yield number, Answered.of(done, None)


def _answering(work: Work) -> Callable[[Any], Answered]:
    """What a process answers puzzles with."""
    device = torch.device(work.device)
    model, config = restore_without_data(work.checkpoint, device, averaged=work.averaged)

    def answer(job: tuple[Task, Budget]) -> Answered:
        task, budget = job
        return Answered.of(adapt(model, config, task, work.options, budget), budget.seconds)

    return answer
