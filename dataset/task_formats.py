"""What a JSON value holds: tasks, lists of pairs, solutions. Told by the value itself, never by its file's name.

    {"train": [pair, ...], "test": [...]}     one task
    {id: task, ...}                           Kaggle's challenges
    {id: [grid, ...], ...}                    Kaggle's solutions
    {id: [{"attempt_1": grid, ...}], ...}     a submission, which holds nothing that can be read
    [pair, ...]                               a group: pairs of one rule, none of them set apart as a test (RE-ARC)
    {id: [pair, ...], ...}                    several groups
    [task or group or {id: ...}, ...]         any of these in a list, or one in each line of a file

A pair is `{"input": grid, "output": grid}` or `[input, output]`. Grids are checked later, by `dataset.arc_tasks`.
"""

from dataclasses import dataclass, field
from typing import Any

from dataset.arc_tasks import short

ID_KEYS = ("id", "task_id")
FORMS = (
    'one task, {"train": [{"input": grid, "output": grid}, ...], "test": [{"input": grid}, ...]}; a challenges file, '
    '{id: task, ...}; a list of pairs, [{"input": grid, "output": grid}, ...]; or a list of these, or one in a line'
)


@dataclass(frozen=True)
class Entry:
    """A task or a group with its id, as it stands in the file."""

    id: str
    value: Any

    @property
    def is_group(self) -> bool:
        """Whether it is a bare list of pairs."""
        return type(self.value) is list


@dataclass
class Contents:
    """All that a file holds, in its order.

    passed_over: the keys and places of what is neither a task nor a group nor a solution.
    """

    entries: list[Entry] = field(default_factory=list)
    solutions: dict[str, Any] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def contents_of(documents: list[Any], stem: str) -> Contents:
    """What the documents of a file hold. Where a task has no id, it is the stem, and its index where there are several.

    A key or an element that is no task is passed over; what looks like a task is kept, however damaged it is.
    """
    found = Contents()
    value = documents[0] if len(documents) == 1 else documents
    if _is_task(value) or _is_group(value):
        found.entries.append(Entry(_own_id(value, stem), value))
        return found
    if type(value) is list:
        for index, element in enumerate(value):
            _read_element(element, f"{stem}_{index}", f"[{index}]", found)
    elif type(value) is dict:
        _read_object(value, found)
    return found


def _read_element(value: Any, fallback_id: str, place: str, found: Contents) -> None:
    if _is_task(value) or _is_group(value):
        found.entries.append(Entry(_own_id(value, fallback_id), value))
    elif type(value) is dict and any(_is_entry(element) for element in value.values()):
        _read_object(value, found)
    else:
        found.passed_over.append(place)


def _read_object(value: dict[str, Any], found: Contents) -> None:
    if not any(_is_entry(element) for element in value.values()):
        found.solutions = {key: element for key, element in value.items() if _is_solution(element)}
    for key, element in value.items():
        if _is_entry(element):
            found.entries.append(Entry(key, element))
        elif key not in found.solutions:
            found.passed_over.append(key)


def _is_entry(value: Any) -> bool:
    return _is_group(value) or (type(value) is dict and ("train" in value or "test" in value))


def _is_task(value: Any) -> bool:
    """Whether an object is itself a task, and not several by id, of which one might be called `train`."""
    return type(value) is dict and any(type(value.get(part)) is list for part in ("train", "test"))


def _is_group(value: Any) -> bool:
    return type(value) is list and any(_is_pair(element) for element in value)


def _is_pair(value: Any) -> bool:
    if type(value) is dict:
        return "input" in value or "output" in value
    return type(value) is list and len(value) == 2 and all(map(_is_grid, value))


def _is_grid(value: Any) -> bool:
    """Whether a value is a list of rows, of whatever cells."""
    return type(value) is list and bool(value) and type(value[0]) is list and not any(map(_is_list, value[0]))


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_solution(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(_is_grid, value))


def _own_id(value: Any, fallback: str) -> str:
    """The id that a task names itself by."""
    names = (value.get(key) for key in ID_KEYS) if type(value) is dict else ()
    return next((str(name) for name in names if type(name) in (str, int)), fallback)


def listed(names: list[str], most: int = 5) -> str:
    """A few names of many, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more
