"""`solve.py` as a user calls it: what it prints, what it writes, and what it refuses."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.terminal import make_console, print_solution, score_lines
from inference.traces import QueryTrace, StepPrediction, VotedGrid
from reports.pages import PALETTE
from solve import Solution, main
from tests.processes import ROOT, Launch

TASK = {
    "train": [{"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}, {"input": [[5]], "output": [[5]]}],
    "test": [{"input": [[6, 7]]}, {"input": [[8, 9]], "output": [[9, 8]]}],
}
UNLABELLED = {**TASK, "test": TASK["test"][:1]}


@pytest.fixture(scope="module")
def checkpoint(untrained: Callable[..., Path]) -> Path:
    return untrained("arch.halt_max_steps=2", "arch.H_cycles=1", "arch.L_cycles=1")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with `task.json` and `challenges.json`."""
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    (tmp_path / "challenges.json").write_text(json.dumps({"zz": UNLABELLED, "aa": TASK}))
    return tmp_path


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


def test_tasks_become_a_submission_a_page_and_grids_in_digits(checkpoint: Path, files: Path) -> None:
    command = [sys.executable, str(ROOT / "solve.py"), "--checkpoint", str(checkpoint), "challenges.json", "task.json"]
    done = subprocess.run(
        [*command, "--votes", "3", "--attempts", "3", "--output-dir", "new/out", "--explain", "--device", "cpu"],
        cwd=files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    submission = json.loads((files / "new/out/submission.json").read_text())
    assert {name: len(answers) for name, answers in submission.items()} == {"zz": 1, "aa": 2, "task": 2}
    assert list(submission) == ["zz", "aa", "task"]
    assert all(
        list(answer) == ["attempt_1", "attempt_2", "attempt_3"] for part in submission.values() for answer in part
    )
    assert sorted(path.name for path in (files / "new/out").iterdir()) == ["solve.html", "submission.json"]
    assert "task, test 2" in (files / "new/out/solve.html").read_text()
    assert "\x1b" not in done.stdout
    for name in ("zz, test 1", "aa, test 1", "aa, test 2", "task, test 1", "task, test 2"):
        assert f"\n{name}:" in done.stdout
    assert "of 2 test inputs with a known solution, " in done.stdout
    assert done.stdout.count("With the demonstrations of") + done.stdout.count("has the same demonstrations") == 5
    assert "2 of 5 test inputs come with their outputs" in done.stderr


def test_files_of_an_earlier_call_are_replaced(
    checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("submission.json", "solve.html"):
        (files / "out").mkdir(exist_ok=True)
        (files / "out" / name).write_text("old")
    main(["--checkpoint", str(checkpoint), str(files / "task.json"), "--votes", "1", "--output-dir", "out"])
    assert json.loads((files / "out/submission.json").read_text()).keys() == {"task"}
    assert (files / "out/solve.html").read_text().startswith("<!doctype html>")
    assert len(list((files / "out").iterdir())) == 2
    assert "written: out/submission.json, out/solve.html" in capsys.readouterr().out


def test_kaggles_files_are_scored_with_the_solutions_beside_them_or_given(
    checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "k").mkdir()
    blank = {**TASK, "test": [{"input": pair["input"]} for pair in TASK["test"]]}
    (files / "k/arc_challenges.json").write_text(json.dumps({"aa": blank}))
    options = ["--checkpoint", str(checkpoint), "--votes", "1", "--output-dir", "out"]
    main([*options, "k"])
    assert "with a known solution" not in capsys.readouterr().out
    (files / "s.json").write_text(json.dumps({"aa": [[[1]], [[2]]]}))
    main([*options, "k/arc_challenges.json", "--solutions", "s.json"])
    assert "of 2 test inputs with a known solution" in capsys.readouterr().out
    (files / "s.json").rename(files / "k/arc_solutions.json")
    main([*options, "k"])
    assert "of 2 test inputs with a known solution" in capsys.readouterr().out


def test_standard_input_folders_and_patterns_are_solved_and_a_list_of_pairs_is_asked_its_last(
    checkpoint: Path, files: Path
) -> None:
    (files / "d").mkdir()
    for name in ("d/p1.json", "d/p2.json", "q1.json"):
        (files / name).write_text(json.dumps(UNLABELLED))
    command = [sys.executable, str(ROOT / "solve.py"), "--checkpoint", str(checkpoint), "-", "d", "q*.json"]
    done = subprocess.run(
        [*command, "--votes", "1", "--output-dir", "out", "--device", "cpu"],
        cwd=files,
        input=json.dumps(TASK["train"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads((files / "out/submission.json").read_text())) == ["stdin", "p1", "p2", "q1"]
    assert "'stdin': of each the last pair is asked for" in done.stderr


def test_kaggle_wants_two_attempts_which_is_said_where_the_submission_is_written(
    checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempts in ("1", "2", "3"):
        options = ["--votes", "1", "--attempts", attempts, "--output-dir", "out"]
        main(["--checkpoint", str(checkpoint), str(files / "task.json"), *options])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("written: ")]
        assert ("Kaggle wants two: --attempts 2" in line) == (attempts != "2")


def test_an_interrupted_call_writes_nothing(checkpoint: Path, files: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint), "task.json", "--votes", "100000", "--output-dir", "out"]
    launch = Launch(files, arguments, script="solve.py")
    end = time.monotonic() + 120
    while "solve:" not in launch.output() and time.monotonic() < end:
        time.sleep(0.05)
    launch.send(signal.SIGINT)
    assert launch.wait() == [130], launch.output()
    assert launch.output().endswith("interrupted\n")
    assert "Traceback" not in launch.output()
    assert not (files / "out").exists()


def solutions_file(folder: Path) -> None:
    (folder / "bad.json").write_text(json.dumps({"a": [[[1]]]}))


def text(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "bad.json").write_text(content)


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        (None, ["none.json"], ["none.json", "No such file"]),
        (lambda folder: (folder / "d").mkdir(), ["d"], ["d:", "folder without JSON files"]),
        (None, ["tsak.json"], ["tsak.json", "near it: task.json"]),
        (None, ["*.txt"], ["*.txt", "pattern"]),
        (text("[1"), ["bad.json"], ["not JSON"]),
        (text("[]"), ["bad.json"], ["no tasks", "list of pairs"]),
        (text("{}"), ["bad.json"], ["no tasks", "train", "challenges"]),
        (text('{"a": {}}'), ["bad.json"], ["'a'", "train"]),
        (text('{"train": [], "test": []}'), ["bad.json"], ["demonstration"]),
        (text(json.dumps({**TASK, "test": [{"input": [[10]]}]})), ["bad.json"], ["'bad'", "test[0].input", "10"]),
        (solutions_file, ["bad.json"], ["bad.json", "train", "challenges", "'a'", "list"]),
        (None, ["task.json", "task.json"], ["'task'", "twice", "task.json"]),
        (solutions_file, ["task.json", "--solutions", "bad.json"], ["bad.json", "no solution", "'a'"]),
        (
            None,
            ["task.json", "--solutions", "challenges.json"],
            ["--solutions challenges.json", "not a solutions"],
        ),
        (None, ["--puzzle", "evaluation2/13e47133", "--solutions", "s.json"], ["--solutions s.json", "files"]),
        (None, [], ["--puzzle"]),
        (None, ["--puzzle", "evaluation3/x"], ["evaluation3/x", "evaluation2"]),
        (None, ["--puzzle", "evaluation2"], ["SUBSET/ID"]),
        (None, ["--puzzle", "evaluation2/13e4713"], ["13e4713", "evaluation2/13e47133"]),
        (None, ["task.json", "--votes", "0"], ["--votes 0", "1 or more"]),
        (None, ["task.json", "--attempts", "-1"], ["--attempts -1"]),
        (None, ["task.json", "--seed", "-1"], ["--seed -1"]),
        (None, ["task.json", "--output-dir", "task.json"], ["--output-dir task.json", "not a folder"]),
        (None, ["task.json", "--output-dir", "task.json/deeper"], ["task.json", "not a folder"]),
        (
            lambda folder: (folder / "o/solve.html").mkdir(parents=True),
            ["task.json", "--output-dir", "o"],
            ["o/solve.html"],
        ),
        (None, ["task.json"], ["nowhere", "no such file or folder", "runs/PROJECT/RUN"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fault_of_the_user_is_one_line_before_the_model_is_loaded(
    prepare: Callable[[Path], Any] | None,
    arguments: list[str],
    words: list[str],
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint is not there, which is the last that is noticed."""
    if prepare:
        prepare(files)
    before = sorted(files.rglob("*"))
    line = refusal(["--checkpoint", "nowhere", *arguments], capsys)
    assert all(word in line for word in words), line
    assert "nowhere" in words or "nowhere" not in line
    assert sorted(files.rglob("*")) == before


def solution(shape: tuple[int, int], truth: bool = True) -> Solution:
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, size=shape).astype(np.uint8) for _ in range(3)]
    votes = (VotedGrid(grids[1], 17, 0.42), VotedGrid(grids[2], 3, 0.1))
    steps = (StepPrediction(grids[1], 0.5),)
    trace = QueryTrace("p", 1, ((grids[0], grids[1]),), grids[0], grids[2] if truth else None, steps, votes)
    return Solution(trace, votes, 32, False)


def printed(answer: Solution, monkeypatch: pytest.MonkeyPatch, columns: int, color: str = "never") -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = StringIO()
    print_solution(make_console(color, out), answer)
    return out.getvalue()


def test_grids_stand_side_by_side_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = solution((2, 30))
    first = ["".join(map(str, row)) for row in answer.trace.input.tolist()]
    for columns, lines in ((200, 1), (80, 2), (60, 4), (5, 4)):
        text = printed(answer, monkeypatch, columns)
        assert sum(first[0] in line for line in text.splitlines()) == 1
        grids = [answer.trace.input, *(a.grid for a in answer.attempts), answer.trace.truth]
        tops = ["".join(map(str, g[0].tolist())) for g in grids if g is not None]
        assert sum(any(top in line for top in tops) for line in text.splitlines()) == lines, text
        assert all(top in text for top in tops)


def test_an_attempt_is_shown_with_its_votes_and_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(solution((3, 3)), monkeypatch, 200)
    assert re.search(r"attempt 1, wrong +attempt 2, right +truth", text)
    assert re.search(r"17 of 32 votes, confidence 42 % +3 of 32 votes, confidence 10 %", text)
    assert "p, test 1: solved" in text
    unknown = printed(solution((3, 3), truth=False), monkeypatch, 200)
    assert "no known solution" in unknown
    assert "right" not in unknown
    assert "wrong" not in unknown


def test_colours_are_backgrounds_of_two_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    answer = solution((1, 30))
    text = printed(answer, monkeypatch, 80, "always")

    def escaped(cells: list[int]) -> str:
        codes = [";".join(str(int(PALETTE[c][i : i + 2], 16)) for i in (1, 3, 5)) for c in cells]
        return "".join(f"\x1b[48;2;{code}m  \x1b[0m" for code in codes)

    assert escaped(answer.trace.input[0].tolist()) in text
    assert "\x1b[48" not in printed(answer, monkeypatch, 80, "auto")


def test_figures_on_seen_tasks_are_apart_and_named_contaminated() -> None:
    from dataclasses import replace

    solved, unknown = solution((1, 1)), solution((1, 1), truth=False)
    missed = replace(solved, attempts=())
    other = replace(solved, trace=replace(solved.trace, puzzle="q"), is_contaminated=True)
    lines = score_lines([solved, missed, unknown, other], 2)
    assert [re.findall(r"\d+ of \d+", line) for line in lines] == [["1 of 2", "0 of 1"], ["1 of 1", "1 of 1"]]
    assert [line.startswith("contaminated") for line in lines] == [False, True]
    assert score_lines([unknown], 2) == []
