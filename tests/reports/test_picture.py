"""One query as a picture."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from dataset.grids import PALETTE
from inference.traces import QueryTrace, StepPrediction, write_traces
from reports.picture import main

SVG = "{http://www.w3.org/2000/svg}"


def trace(puzzle: str, predicted: int) -> QueryTrace:
    grid = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    answer = np.full((2, 3), 7, dtype=np.uint8)
    steps = (StepPrediction(np.zeros((0, 0), np.uint8), 0.1), StepPrediction(answer * 0 + np.uint8(predicted), 0.9))
    return QueryTrace(puzzle, 1, ((grid, answer),), grid, answer, steps)


def test_a_picture_shows_each_grid_in_its_colours_and_the_first_right_answer(tmp_path: Path) -> None:
    write_traces(tmp_path, 5, {"Training puzzles": [trace("wrong", 5), trace("right & <proper>", 7)]})
    main([str(tmp_path), "-o", str(tmp_path / "idea.svg")])
    root = ET.parse(tmp_path / "idea.svg").getroot()
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert any("right & <proper>, test 1" in text for text in texts)
    assert {"input 1", "output 1", "test input", "step 1", "step 2", "truth"} <= set(texts)
    colors = [element.get("fill") for element in root.iter(f"{SVG}rect")]
    assert colors.count(PALETTE[7]) == 3 * 6  # output, last step, truth
    assert colors.count(PALETTE[1]) == 2


def test_a_puzzle_that_was_not_predicted_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_traces(tmp_path, 5, {"Training puzzles": [trace("one", 5)]})
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--puzzle", "two", "-o", str(tmp_path / "idea.svg")])
    assert ended.value.code == 2
    assert "no prediction of two; it has one" in capsys.readouterr().err
