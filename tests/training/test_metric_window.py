"""The lines of a run's log: how long their windows are, and what counts as their time."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reports.curves import draw_panels, seed_groups
from reports.run_reader import load_run
from training.metric_window import MetricWindow, ends_window
from training.metrics import summary
from utils.run_folder import last_values

Train = Callable[..., Path]
Lines = list[dict[str, float]]
MetricsOf = Callable[[Path], Lines]


def with_key(lines: Lines, key: str) -> Lines:
    return [line for line in lines if key in line]


@pytest.fixture(scope="module")
def uneven_run(train: Train) -> Path:
    """`finished_run` with a line every 3 of its 8 steps, so that its evaluations fall between them."""
    return train("log_interval=3", "eval_interval=2")


def test_windows_keep_their_length_where_evaluations_and_the_end_fall_between_lines(
    uneven_run: Path, metrics_of: MetricsOf, finished_run: Path
) -> None:
    each = [line["train/loss"] for line in with_key(metrics_of(finished_run), "train/loss")]
    lines = metrics_of(uneven_run)
    assert [line["step"] for line in with_key(lines, "eval/accuracy")] == [4, 8]
    logged = [(line["step"], line["train/loss"]) for line in with_key(lines, "train/loss")]
    assert logged == [(3, pytest.approx(np.mean(each[:3]))), (8, pytest.approx(np.mean(each[3:])))]


def test_a_report_draws_a_point_for_each_window(uneven_run: Path) -> None:
    (loss,) = [panel for panel in draw_panels(seed_groups([load_run(uneven_run)])) if panel.title == "Training loss"]
    assert len(loss.lines[0].points.split()) == 2


def test_the_table_at_the_end_has_the_figures_of_the_last_window(uneven_run: Path, metrics_of: MetricsOf) -> None:
    accuracy = with_key(metrics_of(uneven_run), "train/accuracy")[-1]["train/accuracy"]
    assert f"{100 * accuracy:.1f} %" in summary(last_values(uneven_run), uneven_run).splitlines()[0]
    assert json.loads((uneven_run / "status.json").read_text())["last"]["train/accuracy"] == accuracy


@pytest.mark.parametrize(
    ("total", "interval", "expected"),
    [(8, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (8, 4, [4, 8]), (10, 4, [4, 10]), (11, 4, [4, 11]), (3, 50, [3])],
)
def test_no_window_is_shorter_than_the_interval_unless_the_run_is(
    total: int, interval: int, expected: list[int]
) -> None:
    assert [step for step in range(1, total + 1) if ends_window(step, total, interval)] == expected


def test_the_clock_of_a_window_stands_still_in_an_evaluation() -> None:
    window = MetricWindow()
    with window.paused():
        time.sleep(0.2)
        saved = window.state_dict()["seconds"]
    assert 0 <= saved < 0.2
    assert 0 <= window.seconds < 0.2
