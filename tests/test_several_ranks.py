"""`evaluate.py` and `solve.py` under a launcher: two ranks find what one finds, and rank 0 alone speaks and writes."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.evaluate_cli import evaluate_checkpoint
from inference.solver import Solver
from tests.processes import Launch, call

RANDOM = {"input": [[1, 2, 0], [3, 4, 0]], "output": [[2, 1], [4, 3]]}
TASKS = {
    f"t{i}": {"train": [RANDOM, {"input": [[i, 5]], "output": [[5]]}], "test": [{"input": [[6, i]]}] * (1 + i % 2)}
    for i in range(3)
}


@pytest.fixture(scope="module")
def checkpoint(untrained: Callable[..., Path]) -> Path:
    return untrained("arch.halt_max_steps=2", "arch.H_cycles=1", "arch.L_cycles=1")


@pytest.fixture
def challenges(tmp_path: Path) -> Path:
    (tmp_path / "c.json").write_text(json.dumps(TASKS))
    return tmp_path / "c.json"


@pytest.mark.parametrize(
    "options",
    [
        ("--control-queries", "7", "--max-groups", "5"),
        ("--shuffle", "--max-groups", "3"),
        ("--max-groups", "1", "--batch-size", "1"),
    ],
)
def test_two_ranks_evaluate_as_one_does(checkpoint: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = ("--checkpoint", str(checkpoint), "--device", "cpu", "--max-augmentations", "2", *options)
    one, two = (call("evaluate.py", *arguments, folder=tmp_path, ranks=ranks) for ranks in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    expected, found = json.loads(one.stdout), json.loads(two.stdout)  # one object alone
    # In evaluation, encoder health is a mean over batches, which differ.
    shared = [key for key in expected if "per_second" not in key and "eval/encoder_" not in key]
    assert {key: found[key] for key in shared} == pytest.approx({key: expected[key] for key in shared}, abs=1e-5)


def test_each_rank_asks_its_own_part_of_the_queries(checkpoint: Path, tmp_path: Path) -> None:
    """Where both asked everything, each vote would be there twice."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "from inference.evaluate_cli import evaluate_checkpoint\n"
        "from inference.evaluation import Measures\n"
        "from utils.together import divided_work\n"
        "asked, add = [], Measures.add_batch\n"
        "def counted(self, head, batch):\n"
        "    asked.append(len(batch['inputs']))\n"
        "    return add(self, head, batch)\n"
        "Measures.add_batch = counted\n"
        "with divided_work('cpu', ()) as ranks:\n"
        f"    found = evaluate_checkpoint({str(checkpoint)!r}, max_augmentations=2, ranks=ranks)\n"
        "    votes = [sum(c.votes for c in r.candidates) for r in found.results]\n"
        "    open(f'asked_{ranks.rank}', 'w').write(json.dumps([sum(asked), max(votes)]))\n"
    )
    done = call(script, folder=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    asked = [json.loads((tmp_path / f"asked_{rank}").read_text()) for rank in range(2)]
    alone = evaluate_checkpoint(checkpoint, max_augmentations=2, device="cpu")
    assert sum(count for count, _ in asked) == alone.metrics["eval/num_queries"]
    assert abs(asked[0][0] - asked[1][0]) <= 1
    assert {most for _, most in asked} == {max(sum(c.votes for c in r.candidates) for r in alone.results)}


def test_two_ranks_solve_as_one_does(checkpoint: Path, challenges: Path, tmp_path: Path) -> None:
    arguments = ("--checkpoint", str(checkpoint), str(challenges), "--votes", "5", "--explain", "--device", "cpu")
    one, two = (
        call("solve.py", *arguments, "--output-dir", f"out{ranks}", folder=tmp_path, ranks=ranks) for ranks in (1, 2)
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    expected, found = (json.loads((tmp_path / f"out{ranks}/submission.json").read_text()) for ranks in (1, 2))
    assert list(found) == list(TASKS)
    assert found == expected
    assert two.stdout.replace("out2/", "out1/") == one.stdout
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == ["solve.html", "submission.json"]


@pytest.mark.parametrize("script", ["evaluate.py", "solve.py"])
def test_a_fault_ends_all_ranks_with_one_line(script: str, challenges: Path, checkpoint: Path, tmp_path: Path) -> None:
    cases = [("--checkpoint", "nowhere", *([str(challenges)] if script == "solve.py" else []))]
    if script == "solve.py":
        cases.append(("--checkpoint", str(checkpoint), "no.json"))
    else:
        cases.append(("--checkpoint", str(checkpoint), "--data-paths", "no"))
    for arguments in cases:
        began = time.monotonic()
        launch = Launch(tmp_path, [*arguments, "--device", "cpu"], ranks=2, script=script, log=f"log{len(arguments)}")
        assert launch.wait() == [2, 2]
        assert time.monotonic() - began < 60
        lines = [line for rank in range(2) for line in launch.output(rank).splitlines()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: no")


def test_a_rank_that_fails_alone_ends_the_other_and_nothing_is_written(
    checkpoint: Path, challenges: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "import solve\n"
        "from inference.solver import Solver\n"
        "if os.environ['RANK'] == '1':\n"
        "    def fail(*_): raise ZeroDivisionError('of rank 1')\n"
        "    Solver.trace = fail\n"
        "solve.main(sys.argv[1:])\n"
    )
    arguments = ["--checkpoint", str(checkpoint), str(challenges), "--votes", "2", "--device", "cpu"]
    launch = Launch(tmp_path, arguments, ranks=2, script=script)
    assert launch.wait(90) == [1, 1]
    assert (
        launch.output(0).rstrip().endswith("ended, because another rank failed: rank 1: ZeroDivisionError: of rank 1")
    )
    assert "Traceback" in launch.output(1)
    assert not (tmp_path / "solutions").exists()


def test_an_interrupted_call_of_two_ranks_ends_both_and_writes_nothing(
    checkpoint: Path, challenges: Path, tmp_path: Path
) -> None:
    """Both are told at once; whichever hears of it first ends the other, which may say so too."""
    arguments = ["--checkpoint", str(checkpoint), str(challenges), "--votes", "100000", "--device", "cpu"]
    launch = Launch(tmp_path, arguments, ranks=2, script="solve.py")
    launch.wait_for_output("solve:")
    launch.send(signal.SIGINT)
    statuses = launch.wait(90)
    outputs = [launch.output(rank) for rank in range(2)]
    assert None not in statuses, outputs  # None: it went on
    assert 0 not in statuses, outputs
    assert any("interrupted" in output for output in outputs), outputs
    assert not any("Traceback" in output for output in outputs), outputs
    assert not (tmp_path / "solutions").exists()


def test_a_solver_by_itself_ignores_the_variables_of_a_launcher(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Solver.load(checkpoint, device="cpu").predict(TASKS["t0"], votes=1)
