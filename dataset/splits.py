"""Which puzzles train and which are held out, where subsets overlap or repeat each other."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from dataset.arc_tasks import Pair, Task, TaskError
from dataset.augment import pair_hash
from dataset.store import DroppedPuzzle, DropReason, Split

log = logging.getLogger(__name__)
# A task, its split, and the hashes of its pairs.
SplitTask = tuple[Task, Split, tuple[str, ...]]
HashedTask = tuple[Task, tuple[str, ...]]


def pair_hashes(task: Task) -> tuple[str, ...]:
    """Hashes of a task's labelled pairs."""
    return tuple(pair_hash(pair) for pair in (*task.train, *task.test) if pair.output is not None)


def split_tasks(
    tasks: Sequence[Task], held_out: Collection[str], on_overlap: str = "drop", on_duplicate: str = "drop"
) -> tuple[list[SplitTask], list[DroppedPuzzle]]:
    """Tasks with their split and pair hashes, training first, and the puzzles left out.

    First every training puzzle whose id or any pair is held out goes, then of each split what stands twice.

    Args:
        held_out: names of the subsets that are held out.

    Raises:
        TaskError: an overlap with `on_overlap` "fail", a puzzle that stands twice with `on_duplicate` "fail", or two
            puzzles of one id without a common pair.
    """
    hashed = [(task, pair_hashes(task)) for task in tasks]
    test = [(task, hashes) for task, hashes in hashed if task.subset in held_out]
    train = [(task, hashes) for task, hashes in hashed if task.subset not in held_out]
    train, overlapping = _without_overlap(train, test, on_overlap)
    train, repeated = _without_repeats(train, on_duplicate)
    test, repeated_tests = _without_repeats(test, on_duplicate)
    chosen_train: list[SplitTask] = [(task, "train", hashes) for task, hashes in train]
    chosen_test: list[SplitTask] = [(task, "test", hashes) for task, hashes in test]
    return chosen_train + chosen_test, overlapping + repeated + repeated_tests


def _without_overlap(
    train: Sequence[HashedTask], test: Sequence[HashedTask], on_overlap: str
) -> tuple[list[HashedTask], list[DroppedPuzzle]]:
    """The training puzzles that share neither id nor pair with held-out ones, and the others."""
    owners: dict[str, set[str]] = defaultdict(set)
    held_out_ids = {task.id for task, _ in test}
    for task, hashes in test:
        for value in hashes:
            owners[value].add(task.id)
    kept, dropped = [], []
    for task, hashes in train:
        shared = sorted(set().union(*(owners.get(value, set()) for value in hashes)))
        if not shared and task.id not in held_out_ids:
            kept.append((task, hashes))
            continue
        overlap = f"shares pairs with held-out {', '.join(shared)}" if shared else "has the id of a held-out puzzle"
        message = f"training puzzle {task.id} ({task.subset}) {overlap}"
        if on_overlap == "fail":
            raise TaskError(f"{message}; --on-overlap drop leaves it out")
        log.info("dropped: %s", message)
        dropped.append(DroppedPuzzle(id=task.id, subset=task.subset, shares_pairs_with=tuple(shared or [task.id])))
    return kept, dropped


def _without_repeats(hashed: Sequence[HashedTask], on_duplicate: str) -> tuple[list[HashedTask], list[DroppedPuzzle]]:
    """The first puzzle of each id, and the later ones, which are the same or another version of it.

    A bare list of pairs shares its rule, not its pairs, with a puzzle of its id: it is kept, under an id of its own.
    """
    first: dict[str, HashedTask] = {}
    dropped = []
    for task, hashes in hashed:
        if task.id not in first:
            first[task.id] = task, hashes
            continue
        before, hashes_before = first[task.id]
        if (task.is_group or before.is_group) and not _is_same(before, task):
            own_id = f"{task.subset}/{task.id}"
            log.info(
                "puzzle %s is in %s too; the pairs of %s are kept as %s", task.id, before.subset, task.subset, own_id
            )
            if own_id in first:
                raise _different(first[own_id][0], task)
            first[own_id] = replace(task, id=own_id), hashes
            continue
        reason = _compare(before, task, set(hashes_before) & set(hashes))
        is_same = reason == "identical"
        message = f"puzzle {task.id} ({task.subset}) is in {before.subset} too, " + (
            "with the same pairs" if is_same else "with other pairs besides common ones"
        )
        if on_duplicate == "fail":
            raise TaskError(f"{message}; --on-duplicate drop leaves the later one out")
        log.log(logging.INFO if is_same else logging.WARNING, "dropped: %s", message)
        dropped.append(
            DroppedPuzzle(
                id=task.id, subset=task.subset, shares_pairs_with=(task.id,), reason=reason, kept_from=before.subset
            )
        )
    return list(first.values()), dropped


def _compare(before: Task, task: Task, common: Collection[str]) -> DropReason:
    """How two tasks of one id compare.

    Raises:
        TaskError: they have nothing in common.
    """
    if _is_same(before, task):
        return "identical"
    if common:
        return "contradicting"
    raise _different(before, task)


def _different(before: Task, task: Task) -> TaskError:
    return TaskError(
        f"task id '{task.id}' stands twice: in subset '{before.subset}' and in '{task.subset}', without a common pair; "
        "choose subsets without common ids, or give the tasks ids of their own"
    )


def _is_same(before: Task, task: Task) -> bool:
    """Whether two tasks have the same demonstrations and tests, in any order."""
    return _content(before.train) == _content(task.train) and _content(before.test) == _content(task.test)


def _content(pairs: Sequence[Pair]) -> Counter[tuple[object, ...]]:
    grids = [(pair.input, pair.output) for pair in pairs]
    return Counter(tuple(None if g is None else (g.shape, g.tobytes()) for g in both) for both in grids)
