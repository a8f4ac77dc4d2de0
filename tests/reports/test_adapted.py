"""What test-time training drew: a page and a picture, from the record alone and what it was asked about."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.grids import PALETTE, Grid
from dataset.store import load_stores
from inference.adapt_answers import Mark, Votes, answer_of
from inference.adapt_evaluation import tasks_of_split
from inference.adapt_record import SETTINGS_FILE, AdaptRecord, Answered
from inference.traces import VotedGrid
from reports.adapted import AnswerView, load, main

SVG = "{http://www.w3.org/2000/svg}"
PUZZLES = ["half", "other", "same1", "same2"]


@pytest.fixture(scope="module")
def data(toy_dataset: Callable[..., Path]) -> Path:
    return toy_dataset()


def only(grid: Grid) -> tuple[VotedGrid, ...]:
    return (VotedGrid(grid, 3, 0.5),)


def answered(puzzle: str, truths: list[Grid], right_from: int | None) -> Answered:
    """Wrong before the mark `right_from` (None: always), three marks after the base's."""
    marks = []
    for number, updates in enumerate((0, 16, 24, 36)):
        is_right = right_from is not None and number >= right_from
        votes: Votes = tuple(only(truth if is_right else np.full((1, 3), 9, dtype=np.uint8)) for truth in truths)
        marks.append(Mark(updates, updates / 2, None if not updates else 8 / updates, number, None, votes))
    answer = answer_of(marks, 1)
    return Answered(puzzle, 3, 36, 18.0, "updates", None, 1, 8, tuple(marks), answer, answer)


@pytest.fixture
def record(data: Path, tmp_path: Path) -> Path:
    """Of four puzzles one is solved from the second mark after the base's on, one is not answered yet."""
    store = load_stores([data])
    folder = tmp_path / "answers"
    AdaptRecord(folder).open({"puzzles": PUZZLES, "split": "test", "data": store.metadata.sha256})
    for number, task in enumerate(tasks_of_split(store, "test", None, PUZZLES)[:3]):
        truths = [pair.output for pair in task.test if pair.output is not None]
        AdaptRecord(folder).write(number, answered(task.id, truths, 2 if number == 0 else None))
    return folder


def views_of(record: Path, data: Path) -> dict[str, list[AnswerView]]:
    return {view.task.id: view.answers for view in load(record, [str(data)])}


def test_a_page_shows_solved_puzzles_and_some_of_the_others(record: Path, data: Path, tmp_path: Path) -> None:
    arguments = [str(record), "--data-paths", str(data), "-o", str(tmp_path / "page.html")]
    main([*arguments, "--unsolved", "1"])
    html = (tmp_path / "page.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Solved, at least one test input: 1 of 3 puzzles",
        "Not solved: 1 of 2 puzzles, drawn by seed 0",
    ]
    solved, unsolved = html.split("<article>")[1:]
    assert "half: <span" in solved
    assert "updates 24–36" in solved
    assert solved.count("✓ right") == 2 * 2, "of two test inputs an attempt, and the stretch from update 24 on"
    assert "✓ right" not in unsolved
    assert unsolved.count("✗ wrong") == 3, "an attempt, not adapted, and all of the updates"
    assert html.count("<polyline") == 2 * 2
    main(arguments)
    assert (tmp_path / "page.html").read_text().count("<article>") == 3


def test_equal_grids_at_consecutive_marks_are_one_stretch_but_the_base_stands_alone(record: Path, data: Path) -> None:
    half, other = views_of(record, data)["half"][0], views_of(record, data)["other"][0]
    assert [(s.name, half.is_truth(s.grid)) for s in half.stretches] == [
        ("not adapted", False),
        ("update 16", False),
        ("updates 24–36", True),
    ]
    assert [s.name for s in other.stretches] == ["not adapted", "updates 16–36"]
    assert (half.rank, other.rank) == (1, None)


def test_a_picture_shows_a_solved_puzzle_or_the_one_that_is_named(record: Path, data: Path, tmp_path: Path) -> None:
    arguments = [str(record), "--data-paths", str(data), "-o", str(tmp_path / "one.svg")]
    main(arguments)
    root = ET.parse(tmp_path / "one.svg").getroot()
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert any("half, test 1" in text for text in texts)
    assert {"test input", "not adapted", "update 16", "updates 24–36", "truth"} <= {*texts}
    main([*arguments, "--puzzle", "other", "--note", "a <note>"])
    root = ET.parse(tmp_path / "one.svg").getroot()
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "a <note>" in texts
    assert any("other, test 1" in text for text in texts)
    colors = [element.get("fill") for element in root.iter(f"{SVG}rect")]
    assert colors.count(PALETTE[9]) >= 2 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--puzzle", "none"], "--puzzle none: not in"),
        (["-o", "page.txt"], "-o page.txt: a page ends in .html"),
        (["--unsolved", "-1"], "--unsolved -1: must be 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    record: Path, data: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(record), "--data-paths", str(data), "-o", "page.svg", *change])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_other_data_and_a_folder_that_is_no_record_are_refused(
    record: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((record / SETTINGS_FILE).read_text())
    (record / SETTINGS_FILE).write_text(json.dumps({**settings, "data": "of another build"}))
    for folder, message in (
        (tmp_path / "nothing", "nothing: not the record of an evaluation by adaptation"),
        (record, "its answers are to other data than"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(folder), "--data-paths", str(data), "-o", "page.html"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
