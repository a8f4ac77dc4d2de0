"""The weights that come along: they are read, taken where none are named, and solve by adapting what they cannot."""

import json
import re
import signal
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import solve
from dataset.arc_tasks import Task
from dataset.subsets import load_subset
from inference.adapt_arguments import asked_of
from inference.adapt_options import AdaptOptions
from inference.shipped import card_of
from inference.solver import Solution, Solver
from tests.processes import Launch

BASE = Path(__file__).parents[2] / "weights" / "arc_base"
PUZZLE = "66e6c45b"
QUICK = ("--votes", "2", "--device", "cpu", "--adapt-with", "views=2", "fork_every=0")


def puzzle(name: str = PUZZLE) -> Task:
    return next(task for task in load_subset("evaluation")[0] if task.id == name)


def is_right(solution: Solution, task: Task) -> bool:
    (query,) = task.test
    return any(np.array_equal(attempt.grid, query.output) for attempt in solution.attempts)


def test_the_base_solves_an_evaluation_puzzle_by_adapting_that_it_does_not_solve_by_itself() -> None:
    """Seed 0, 80 updates; the outputs of test inputs are not there to be seen."""
    solver, task = Solver.load(BASE), puzzle()
    assert PUZZLE not in solver.checkpoint.trained_on.puzzle_ids
    (by_itself,) = solver.predict(task)
    (adapted,) = solver.predict(task, adapt_updates=80)
    assert not is_right(by_itself, task)
    assert is_right(adapted, task)


def test_without_a_checkpoint_the_base_adapts_and_says_how_long_and_for_which_tasks_it_is_not_made(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    wide = {"train": [{"input": [[1] * 11], "output": [[2] * 11]}] * 2, "test": [{"input": [[1] * 11]}]}
    Path("wide.json").write_text(json.dumps(wide))
    small = {"train": [{"input": [[1]], "output": [[2]]}] * 2, "test": [{"input": [[1]]}]}
    Path("small.json").write_text(json.dumps(small))
    solve.main(["wide.json", "small.json", "--adapt", "1.5", *QUICK])
    assert "tasks: 2, adapting to each for 1.5 s: up to about 0:00:03 in all" in caplog.text
    assert re.search(r"1 of 2 tasks have grids over 10 x 10, .*\(wide\)", caplog.text)
    assert list(json.loads(Path("solutions/submission.json").read_text())) == ["wide", "small"]
    assert re.search(r"small: \d+ updates in", capsys.readouterr().out)


@pytest.mark.parametrize("budget", [("--adapt", "0"), ("--adapt-updates", "3", *QUICK[4:])], ids=["none", "updates"])
def test_the_base_adapts_as_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, budget: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    solve.main(["--puzzle", f"evaluation/{PUZZLE}", *QUICK[:4], *budget])
    out = capsys.readouterr().out
    assert ("3 updates" in out) == ("; before adapting 0\n" in out) == (budget[0] == "--adapt-updates")


def test_a_task_alone_on_the_command_line_is_adapted_to_for_a_minute_and_ctrl_c_answers(tmp_path: Path) -> None:
    small = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}] * 3, "test": [{"input": [[1]]}]}
    (tmp_path / "small.json").write_text(json.dumps(small))
    launch = Launch(tmp_path, ["small.json"], script="solve.py")
    launch.wait_for_output(" 16 updates")
    launch.send(signal.SIGINT)
    assert launch.wait() == [0], launch.output()
    assert "tasks: 1, adapting to each for 60 s: up to about 0:01:00 in all" in launch.output()
    assert re.search(r"small: \d+ updates in", launch.output())
    assert list(json.loads((tmp_path / "solutions/submission.json").read_text())) == ["small"]


def test_a_card_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(SystemExit):
        solve.main(["--checkpoint", str(tmp_path), "--puzzle", f"evaluation/{PUZZLE}"])
    assert "card.json: no card of a base" in capsys.readouterr().err


def test_the_options_of_a_card_hold_where_the_command_line_has_no_others() -> None:
    def options(*given: str) -> AdaptOptions:
        asked = asked_of(Namespace(adapt=1.0, adapt_updates=None, adapt_with=list(given)), card_of(BASE))
        assert asked is not None
        return asked.options

    assert (options().translate, options().fork_every) == (False, 0)
    assert (options("translate=true").translate, options("translate=true").fork_every) == (True, 0)


def test_a_program_that_names_no_options_has_those_of_the_card() -> None:
    """Of three demonstrations none is left out: the card has no fork."""
    task = puzzle("68b67ca3")
    assert len(task.train) == 3
    solver = Solver.load(BASE, device="cpu")
    found = [solver.predict(task, votes=2, adapt_updates=3, adapt_with=how)[0] for how in (None, AdaptOptions())]
    by_card, by_default = (solution.adaptation for solution in found)
    assert by_card is not None
    assert by_default is not None
    assert by_card.marks[-1].agreement is None
    assert by_default.marks[-1].agreement is not None
