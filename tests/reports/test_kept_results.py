"""Results that are kept in the repository: each table is the one that its summaries give."""

import json
from pathlib import Path

import numpy as np
import pytest

from dataset.arc_tasks import Pair, Task
from dataset.trained_on import TrainedOn
from inference.adapt_answers import Mark
from inference.adapt_figures import figures, write_figures
from inference.adapt_options import AdaptOptions
from inference.adapt_record import AdaptRecord, Answered
from inference.traces import VotedGrid
from reports import compare, exam

KEPT = Path(__file__).parents[2] / "docs" / "experiments"


@pytest.mark.parametrize("name", ["etrmtrm_overfit", "etrmtrm_overfit_cpu", "arc_clean_cpu"])
def test_the_matrix_of_a_series_is_rebuilt_from_its_summaries(name: str, tmp_path: Path) -> None:
    rows = (KEPT / name / "matrix.md").read_text().splitlines()[2:]
    order = [row.split("|")[1].strip() for row in rows]
    summaries = [str(KEPT / name / "summary" / f"{run}.json") for run in order]
    assert len(order) == len(list((KEPT / name / "summary").iterdir()))
    compare.main([*summaries, "--output-dir", str(tmp_path)])
    for file in ("matrix.md", "curves.svg"):
        assert (tmp_path / file).read_text() == (KEPT / name / file).read_text()


def test_the_table_of_adapted_figures_is_rebuilt_from_its_summaries(tmp_path: Path) -> None:
    rows = (KEPT / "test_time_training" / "table.md").read_text().splitlines()[2:]
    order = [row.split("|")[1].strip() for row in rows]
    summaries = [KEPT / "test_time_training" / "summary" / f"{name}.json" for name in order]
    assert {path.name for path in summaries} == {path.name for path in summaries[0].parent.iterdir()}
    exam.main([*map(str, summaries), "--output-dir", str(tmp_path)])
    assert (tmp_path / "table.md").read_text() == (KEPT / "test_time_training" / "table.md").read_text()


def record(folder: Path, options: AdaptOptions) -> None:
    """Two puzzles, of which one is solved at the second mark."""
    grid = np.full((1, 2), 3, dtype=np.uint8)
    wrong = ((VotedGrid(grid + 1, 2, 0.5),),)
    right = ((VotedGrid(grid, 2, 0.5),),)
    tasks = [Task(name, "s", (Pair(grid, grid),) * 2, (Pair(grid, grid),)) for name in ("a", "b")]
    kept = AdaptRecord(folder)
    puzzles = [task.id for task in tasks]
    kept.open({"options": options.model_dump(), "budget": {"seconds": 8.0}, "total_seconds": None, "puzzles": puzzles})
    for number, (name, votes) in enumerate((("a", right), ("b", wrong))):
        marks = (Mark(0, 1.0, None, 0, None, wrong), Mark(16, 5.0, 0.5, 1, None, votes))
        kept.write(number, Answered(name, 2, 16 + number, 7.0, "seconds", 8.0, 1, 2, marks, votes, votes))
    found = [answered for answered in kept.read_all(puzzles) if answered is not None]
    metrics = figures(tasks, found, TrainedOn(), options, 8.0)
    write_figures(folder, tasks, found, TrainedOn(), metrics, 1)


def test_a_record_and_its_summary_give_the_same_row(tmp_path: Path) -> None:
    record(tmp_path / "mispaired", AdaptOptions(control="mispaired", votes=2))
    exam.main([str(tmp_path / "mispaired"), "--output-dir", str(tmp_path / "one")])
    summary = tmp_path / "one" / "summary" / "mispaired.json"
    exam.main([str(summary), "--output-dir", str(tmp_path / "other")])
    rows = (tmp_path / "one" / "table.md").read_text()
    assert rows == (tmp_path / "other" / "table.md").read_text()
    name, what, votes, first, second, _, updates, curve = [
        cell.strip() for cell in rows.splitlines()[2].split("|")[1:-1]
    ]
    assert (name, what, votes, updates) == ("mispaired", "mispaired, 8 s", "2", "16")
    assert first == second == "1/2 (9.5-90.5)"
    assert curve == "0.5s: 0.0, 1s: 0.0, 2s: 0.0, 4s: 0.0, 8s: 50.0"
    assert json.loads(summary.read_text())["puzzles"]["b"] == {
        "pass@1": 0.0,
        "pass@2": 0.0,
        "updates": 17,
        "seconds": 7.0,
        "ended": "seconds",
    }


@pytest.mark.parametrize(
    ("seconds", "said"), [(90.0, "adapted, 90 s in all"), (4.0, "adapted, 90 s in all, 4 s each at most")]
)
def test_a_total_of_seconds_is_called_one(seconds: float, said: str) -> None:
    figure = {"adapt/updates_per_puzzle": 1.0}
    found = exam.Exam("r", {"seconds": seconds, "total_seconds": 90.0, "votes": 2}, figure, {})
    assert found.row()[1] == said


def test_what_is_no_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path, said in ((tmp_path, "no complete record"), (tmp_path / "x.json", "not a summary of a record")):
        with pytest.raises(SystemExit) as end:
            exam.main([str(path), "--output-dir", str(tmp_path / "out")])
        assert end.value.code == 2
        assert said in capsys.readouterr().err
