"""`evaluate.py --adapt` and `solve.py --adapt` as a user calls them: resumed, interrupted, divided, limited."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference import evaluate_cli
from inference.adapt_arguments import add_adapt_arguments, asked_of
from inference.adapt_record import AdaptRecord
from solve import main as solve_main
from tests.processes import ROOT, Launch, call
from tests.torture import torture_evaluations
from utils.files import read_json, write_file

KILLS, UPDATES = 4, "12"
QUICK = ["votes=2", "views=2", "agreement_views=1", "fork_every=3", "lr=3e-3"]
FOUR = ["half", "other", "same1", "same2"]


@pytest.fixture(scope="module")
def data(toy_dataset: Callable[..., Path]) -> Path:
    """Four held-out puzzles of small grids."""
    return toy_dataset()


@pytest.fixture(scope="module")
def checkpoint(untrained: Callable[..., Path]) -> Path:
    return untrained("arch.encoder_type=in_context", "arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1")


@pytest.fixture(scope="module")
def base(checkpoint: Path, data: Path) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--data-paths", str(data), "--device", "cpu", "--adapt-with", *QUICK]


def evaluate(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    evaluate_cli.main(arguments)
    return json.loads(capsys.readouterr().out)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        evaluate_cli.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is written of each puzzle after UPDATES by one process that ran to its end."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate_cli.main([*base, "--adapt-updates", UPDATES, "--output-dir", str(folder / "out")])
    return puzzles_of(folder / "out")


def puzzles_of(folder: Path) -> list[dict[str, Any]]:
    """What is written of each puzzle, without the time it took."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "puzzles").glob("*.json"))]
    for value in found:
        value["seconds"] = 0
        for mark in value["marks"]:
            mark["seconds"] = 0
    return found


def test_a_split_is_answered_with_figures_beside_the_base(
    base: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate([*base, "--adapt-updates", "6", "--output-dir", "out"], capsys)
    out = tmp_path / "out"
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert {"ARC/pass@2", "ARC/adapted_pass@2", "ARC/adapted_pass@2_low", "ARC/adapted_by_votes_pass@2"} <= {*metrics}
    assert metrics["ARC/num_puzzles"] == 4
    assert metrics["ARC/num_test_inputs"] == 5
    assert metrics["adapt/updates_per_puzzle"] == 6
    assert sorted(found["puzzle"] for found in puzzles_of(out)) == FOUR
    assert sorted(json.loads((out / "trained_on.json").read_text())["held_out_demonstrations"]) == FOUR
    assert sorted(json.loads((out / "submission.json").read_text())) == FOUR
    assert sorted(json.loads((out / "puzzles.json").read_text())["puzzles"]) == FOUR
    (tmp_path / "list.txt").write_text("# two\nsame1\n\nhalf  # with two test inputs\n")
    few = [*base, "--adapt-updates", "6", "--puzzles", "list.txt", "--output-dir", "few"]
    assert evaluate(few, capsys)["ARC/num_test_inputs"] == 3
    by_name = {value["puzzle"]: value for value in puzzles_of(out)}
    assert puzzles_of(tmp_path / "few") == [by_name["same1"], by_name["half"]]


@pytest.mark.torture
def test_an_evaluation_that_is_killed_goes_on_and_answers_each_puzzle_once(base: list[str], tmp_path: Path) -> None:
    """The short version of `make torture`."""
    found, puzzles = torture_evaluations(tmp_path, [*base, "--adapt-updates", UPDATES], kills=KILLS, seed=0)
    assert not found.faults
    assert found.kills >= KILLS
    assert puzzles == len(FOUR)


def test_a_complete_record_is_read_and_nothing_done_again(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*base, "--adapt-updates", "2", "--output-dir", "out"]
    first = evaluate(arguments, capsys)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/puzzles").iterdir()}
    assert evaluate(arguments, capsys) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "out/puzzles/0001.json").unlink()
    assert {**evaluate(arguments, capsys), "adapt/seconds_per_puzzle": 0} == {**first, "adapt/seconds_per_puzzle": 0}
    assert "budget.updates=2, asked is 3" in refusal([*base, "--adapt-updates", "3", "--output-dir", "out"], capsys)
    assert "options.seed=0, asked is 1" in refusal([*arguments, "--seed", "1"], capsys)
    (tmp_path / "out/puzzles/0001.json").write_text("{}")
    assert "0001.json: damaged" in refusal(arguments, capsys)


def test_several_processes_give_the_same_answers(base: list[str], whole: list[dict[str, Any]], tmp_path: Path) -> None:
    arguments = [*base, "--adapt-updates", UPDATES, "--jobs", "2", "--output-dir", "two"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 at a time" in done.stderr
    assert puzzles_of(tmp_path / "two") == whole


@pytest.mark.torture
def test_processes_end_with_the_one_that_started_them(base: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "evaluate.py"), *base, "--adapt", "500", "--jobs", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as parent:
        workers: list[psutil.Process] = []
        end = time.monotonic() + 120
        while len(workers) < 2 and time.monotonic() < end:
            children = psutil.Process(parent.pid).children(recursive=True)
            workers = [p for p in children if "spawn_main" in " ".join(p.cmdline())]
            time.sleep(0.1)
        parent.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_ranks_divide_the_puzzles(base: list[str], whole: list[dict[str, Any]], tmp_path: Path) -> None:
    arguments = [*base, "--adapt-updates", UPDATES, "--output-dir", "of2"]
    done = call("evaluate.py", *arguments, folder=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    assert puzzles_of(tmp_path / "of2") == whole


def test_another_dtype_is_computed_in_and_kept_apart(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*base, "--adapt-updates", "4", "--puzzles", "list.txt", "--output-dir"]
    (tmp_path / "list.txt").write_text("half\n")
    losses = []
    for dtype in ("float32", "bfloat16"):
        evaluate([*asked, dtype, "--forward-dtype", dtype], capsys)
        losses += [mark["loss"] for found in puzzles_of(tmp_path / dtype) for mark in found["marks"][1:]]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert 'forward_dtype="bfloat16", asked is null' in refusal([*asked, "bfloat16"], capsys)


def test_a_folder_that_a_killed_call_had_only_begun_is_begun_again(tmp_path: Path) -> None:
    record = AdaptRecord(tmp_path / "out")
    record.folder.mkdir()
    write_file(record.folder / ".settings.json.tmp-7", "{")
    record.open({"seed": 0})
    assert read_json(record.folder / "settings.json") == {"seed": 0}
    assert not list(record.folder.glob(".*"))


@pytest.mark.parametrize(
    ("given", "expected"), [([], (True, True)), (["give_up=false"], (False, True)), (["give_up=true"], (True, True))]
)
def test_a_total_ends_hopeless_and_explained_puzzles_where_nothing_else_is_said(
    given: list[str], expected: tuple[bool, bool]
) -> None:
    parser = argparse.ArgumentParser()
    add_adapt_arguments(parser)
    asked = asked_of(parser.parse_args(["--total-seconds", "9", "--adapt-with", "votes=2", *given]))
    assert asked is not None
    assert (asked.options.give_up, asked.options.stop_when_explained) == expected


def test_a_total_of_seconds_is_said_first_divided_and_kept_to(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """None of these puzzles is learned in so little time: each that nothing is explained of by half of it is left."""
    caplog.set_level("INFO")
    began = time.monotonic()
    evaluate([*base, "--total-seconds", "6", "--output-dir", "out"], capsys)
    assert time.monotonic() - began < 60
    assert "4 puzzles, 0 of them answered before; 1 at a time, 6 s in all" in caplog.text
    found = puzzles_of(tmp_path / "out")
    assert all(0.0 < value["allowed_seconds"] < 6.0 for value in found)
    assert min(value["allowed_seconds"] for value in found) <= 1.5  # the first has a quarter of what is left by then
    assert {value["ended"] for value in found} <= {"gave_up", "consistent", "seconds"}
    gave_up = [value for value in found if value["ended"] == "gave_up"]  # none, where a machine is slow
    assert all(value["marks"][-1]["explained"] == 0 for value in gave_up)
    options = json.loads((tmp_path / "out/settings.json").read_text())["options"]
    assert options["give_up"]


def test_seconds_of_a_puzzle_cap_its_share_of_a_total(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([*base, "--total-seconds", "40", "--adapt", "0.2", "--output-dir", "out"], capsys)
    assert [value["allowed_seconds"] for value in puzzles_of(tmp_path / "out")] == [0.2] * 4


def test_a_total_of_seconds_holds_for_solving_several_tasks(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smaller task is given half of it, and comes first; the answers stand in the order of the tasks."""
    caplog.set_level("INFO")
    large = {"train": [{"input": [[1, 2, 3]] * 3, "output": [[1]]}] * 3, "test": [{"input": [[1]]}]}
    (tmp_path / "tasks.json").write_text(json.dumps({"a": large, "b": TASK}))
    solve_main(["--checkpoint", str(checkpoint), "tasks.json", "--total-seconds", "3", "--votes", "2"])
    assert "tasks: 2, adapting to each for at most 3 s: up to about 0:00:03 in all" in caplog.text
    seconds = dict(re.findall(r"(\w): \d+ updates in ([\d.]+) s", capsys.readouterr().out))
    assert list(seconds) == ["a", "b"]
    assert float(seconds["b"]) < 2.5
    assert list(json.loads((tmp_path / "solutions/submission.json").read_text())) == ["a", "b"]


@pytest.mark.parametrize("control", ["votes", "mispaired", "random_weights"])
def test_a_control_has_figures_of_its_own(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], control: str
) -> None:
    arguments = [*base, "--adapt", "1", "--max-groups", "1", "--adapt-control", control, "--output-dir", "out"]
    metrics = evaluate(arguments, capsys)
    assert f"ARC/{control}_pass@2" in metrics
    assert f"ARC/{control}_pass@2_after_0.5s" in metrics
    assert "ARC/adapted_pass@2" not in metrics
    assert metrics["adapt/seconds_per_puzzle"] < 30
    learned = json.loads(Path("out/trained_on.json").read_text())["held_out_demonstrations"]
    assert len(learned) == (control != "votes")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "2"], "--jobs: needs --adapt"),
        (["--output-dir", "x"], "--output-dir: needs --adapt"),
        (["--adapt-control", "votes"], "--adapt-control: needs --adapt"),
        (["--adapt", "-1"], "--adapt -1: must be above 0"),
        (["--adapt", "1", "--adapt-updates", "1"], "one of the two"),
        (["--adapt", "1", "--shuffle"], "mispaired"),
        (["--adapt", "1", "--batch-size", "4"], "--batch-size: is not read"),
        (["--total-seconds", "9", "--adapt-updates", "1"], "--total-seconds divides time"),
        (["--adapt", "1", "--puzzles", "no.txt"], "no.txt: cannot be read"),
        (["--puzzles", "no.txt"], "no.txt: cannot be read"),
        (["--puzzles", "no.txt", "--max-groups", "2"], "--max-groups would change nothing"),
        (["--adapt", "1", "--adapt-with", "lr=x"], "lr=x"),
        (["--adapt", "1", "--adapt-with", "fork_every=1"], "1 leaves no update to the weights that answer"),
        (["--adapt", "1", "--adapt-with", "views=2", "task.json"], "task.json: expected KEY=VALUE"),
        (["--adapt", "1", "--adapt-with", "lora_rank=2"], "lora_rank=...: would change nothing, for weights=full"),
        (["--adapt", "1", "--adapt-with", "muon_lr=1e-3"], "muon_lr=...: would change nothing"),
        (["--adapt", "1", "--adapt-with", "fork_every=0", "agreement_views=2"], "agreement_views=...: would change"),
        (["--adapt-updates", "1", "--adapt-with", "give_up=true"], "give_up=...: would change nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    plain = ["--checkpoint", str(checkpoint), "--data-paths", str(data), "--device", "cpu"]
    assert said in refusal([*plain, *arguments], capsys)
    assert not Path("adapted").exists()


def test_puzzles_that_are_not_in_the_split_are_refused_before_any_work(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, said in (
        ("same1\nnobody\n", "'nobody'"),
        ("same1\nsame1\n", "stands twice"),
        ("# none\n", "no puzzle"),
    ):
        (tmp_path / "list.txt").write_text(content)
        arguments = [*base, "--adapt-updates", "1", "--puzzles", "list.txt", "--output-dir", "out"]
        assert said in refusal(arguments, capsys)
        assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    assert "is not empty" in refusal([*base, "--adapt-updates", "1", "--output-dir", "mine"], capsys)


TASK = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3, 4]], "output": [[4, 3]]}] * 2,
    "test": [{"input": [[5, 6]], "output": [[6, 5]]}],
}


def test_solving_shows_the_curve_and_after_how_many_updates_the_answer_changed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    arguments = ["--checkpoint", str(checkpoint), "task.json", "--adapt-updates", "17", "--adapt-with", *QUICK[1:]]
    solve_main([*arguments, "--votes", "2", "--explain"])
    shown = capsys.readouterr().out
    assert "demonstrations explained" in shown
    assert [line.split()[0] for line in shown.splitlines() if " of 4 " in line] == ["0", "16", "17"]
    assert "task: 17 updates in " in shown
    assert "The answer " in shown
    assert json.loads((tmp_path / "solutions/submission.json").read_text()).keys() == {"task"}


@pytest.mark.parametrize("how", [("--adapt-updates", "17"), ()])
def test_outputs_of_test_inputs_in_a_file_change_no_answer(
    how: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    answers = []
    for name, output in (("right", [[6, 5]]), ("noise", [[1, 9, 4], [0, 3, 8], [7, 7, 2], [5, 1, 0]]), ("none", None)):
        test = {"input": [[5, 6]]} | ({} if output is None else {"output": output})
        (tmp_path / f"{name}.json").write_text(json.dumps({"task": {**TASK, "test": [test]}}))
        options = ["--votes", "2", "--output-dir", name, *(("--adapt-with", *QUICK[1:]) if how else ())]
        solve_main(["--checkpoint", str(checkpoint), f"{name}.json", *how, *options])
        answers.append((tmp_path / name / "submission.json").read_bytes())
    assert len({*answers}) == 1


def test_what_is_answered_is_written_before_the_next_task(checkpoint: Path, tmp_path: Path) -> None:
    """So that a process that is killed has lost one task and not all of them."""
    (tmp_path / "tasks.json").write_text(json.dumps({"a": TASK | {"train": TASK["train"][:1]}, "b": TASK}))
    arguments = ["--checkpoint", str(checkpoint), "tasks.json", "--adapt", "500", "--votes", "2", "--device", "cpu"]
    launch = Launch(tmp_path, arguments, script="solve.py")
    launch.wait_for_output(" 16 updates")
    launch.send(signal.SIGKILL)
    launch.wait()
    assert "tasks: 2 (1 of a single demonstration, which the base answers), adapting to each" in launch.output()
    (answer,) = json.loads((tmp_path / "solutions/submission.json").read_text()).items()
    assert answer[0] == "a"
    assert answer[1][0].keys() == {"attempt_1", "attempt_2"}


def test_an_interrupted_adaptation_answers_with_what_it_has(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps({"a": TASK, "b": TASK}))
    arguments = ["--checkpoint", str(checkpoint), "tasks.json", "--adapt", "500", "--votes", "2", "--device", "cpu"]
    launch = Launch(tmp_path, arguments, script="solve.py")
    launch.wait_for_output(" 16 updates")
    launch.send(signal.SIGINT)
    assert launch.wait() == [0], launch.output()
    assert "stopped by SIGINT: the answers are those so far" in launch.output()
    assert "a: " in launch.output()
    assert "b: 0 updates" in launch.output()
    assert json.loads((tmp_path / "solutions/submission.json").read_text()).keys() == {"a", "b"}
