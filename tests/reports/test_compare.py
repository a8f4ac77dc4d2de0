"""Runs side by side: the matrix says what the metrics say."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from reports.compare import load_run, main


def write_run(
    folder: Path, accuracies: list[float], evaluated: dict[str, float] | None = None, **config: object
) -> Path:
    """A run folder of one line every 50 steps and an evaluation."""
    folder.mkdir()
    arch = {"name": "recursive_reasoning.etrm@TRMWithEncoder", "encoder_type": "standard"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"arch": arch, **config}))
    rows = [
        {"step": 50 * (i + 1), "train/accuracy": accuracy, "train/lm_loss": 1 - accuracy, "grad/encoder_share": 0.4}
        for i, accuracy in enumerate(accuracies)
    ]
    end = {"step": rows[-1]["step"]}
    rows.append({**end, "eval/accuracy": 0.5, "ARC/pass@1_solved": 1.5, "ARC/num_puzzles": 32, **(evaluated or {})})
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
    assert (row["gradient share"], row["pass@1"]) == ("40 %", "1.5/32")
    assert not {"carry change (rel.)", "notes"} & row.keys(), "no run has a latent that moves, or anything to be noted"
    assert row["model"] == "ETRM standard"
    frozen = cells(tmp_path / "out", "second")
    assert (frozen["model"], frozen["steps to 80 %"]) == ("ETRM standard, encoder frozen", "–")
    assert json.loads((tmp_path / "out/summary/first.json").read_text())["rows"][-1]["eval/accuracy"] == 0.5


def test_the_matrix_is_put_together_again_from_the_summaries(tmp_path: Path) -> None:
    """Of runs of which only one has controls and is long, so that its summary lacks most of its lines."""
    controls = {f"eval/controls/{key}": 0.25 for key in ("queries", "right_exact_accuracy", "donor_exact_accuracy")}
    long = write_run(tmp_path / "long", [i / 300 for i in range(300)], controls)
    runs = [long, write_run(tmp_path / "short", [0.85], freeze_encoder=True)]
    main([*map(str, runs), "--output-dir", str(tmp_path / "out")])
    assert cells(tmp_path / "out", "long")["a donor's demonstrations"] == "25.0 %"
    assert cells(tmp_path / "out", "short")["a donor's demonstrations"] == "–"
    summaries = [tmp_path / f"out/summary/{run.name}.json" for run in runs]
    kept = [path.read_bytes() for path in summaries]
    main([*map(str, summaries), "--output-dir", str(tmp_path / "again")])
    assert (tmp_path / "again/matrix.md").read_text() == (tmp_path / "out/matrix.md").read_text()
    main([str(summaries[0]), str(runs[1]), "--output-dir", str(tmp_path / "out")])  # in place, one run anew
    assert [path.read_bytes() for path in summaries] == kept
    assert (tmp_path / "again/matrix.md").read_text() == (tmp_path / "out/matrix.md").read_text()


def test_a_file_that_is_no_summary_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("{", "[]", json.dumps({"config": {}, "rows": [{"step": 1}]})):
        path = tmp_path / "one.json"
        path.write_text(content)
        with pytest.raises(SystemExit) as caught:
            main([str(path), "--output-dir", str(tmp_path / "out")])
        assert caught.value.code == 2
        assert "one.json: not a summary of a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
