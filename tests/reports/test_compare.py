"""Runs side by side: the matrix says what the metrics say."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from reports.compare import load_run, main


def write_run(folder: Path, accuracies: list[float], **config: object) -> Path:
    """A run folder of one line every 50 steps."""
    folder.mkdir()
    arch = {"name": "recursive_reasoning.etrm@TRMWithEncoder", "encoder_type": "standard"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"arch": arch, **config}))
    rows = [
        {"step": 50 * (i + 1), "train/accuracy": accuracy, "train/lm_loss": 1 - accuracy, "grad/encoder_share": 0.4}
        for i, accuracy in enumerate(accuracies)
    ]
    rows.append({"step": rows[-1]["step"], "eval/accuracy": 0.5, "ARC/pass@1_solved": 1.5, "ARC/num_puzzles": 32})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def cells(output: Path, name: str) -> dict[str, str]:
    header, _, *lines = (output / "matrix.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]
    return dict(zip(rows[0], next(row for row in rows if row[0] == name), strict=True))


def test_the_matrix_shows_smoothed_accuracy_and_the_steps_to_a_level(tmp_path: Path) -> None:
    """Over 100 steps, that is two lines here: 0.7, 0.75, 0.85, 0.95, 0.95."""
    first = write_run(tmp_path / "first", [0.7, 0.8, 0.9, 1.0, 0.9])
    second = write_run(tmp_path / "second", [0.1, 0.2], freeze_encoder=True)
    main([str(first), str(second), "--output-dir", str(tmp_path / "out")])
    row = cells(tmp_path / "out", "first")
    assert (row["train accuracy"], row["steps to 80 %"], row["steps to 90 %"]) == ("95.0 %", "150", "200")
    assert (row["gradient share"], row["pass@1"], row["carry change (rel.)"]) == ("40 %", "1.5/32", "–")
    assert row["model"] == "ETRM standard"
    frozen = cells(tmp_path / "out", "second")
    assert (frozen["model"], frozen["steps to 80 %"]) == ("ETRM standard, encoder frozen", "–")
    assert json.loads((tmp_path / "out/summary/first.json").read_text())["rows"][-1]["eval/accuracy"] == 0.5


def test_the_figure_draws_every_run_in_every_panel_that_it_has(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [0.2, 0.4, 0.6]) for name in ("a", "b")]
    main([*map(str, runs), "--output-dir", str(tmp_path / "out")])
    figure = ET.fromstring((tmp_path / "out/curves.svg").read_text())
    lines = [node.attrib["points"] for node in figure.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2 * 3, "accuracy, loss and gradient share; there is no exact match in these runs"
    assert all(len(points.split()) == 3 for points in lines)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--output-dir", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    empty = write_run(tmp_path / "empty", [0.1])
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no metrics"):
        load_run(empty)
