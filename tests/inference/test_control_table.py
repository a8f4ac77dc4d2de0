"""The controls of a run: in its log, in the table that ends it, in its report, and in `evaluate.py`."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.control_measures import summarized
from inference.control_table import control_rows, control_table, family_rows
from inference.evaluate_cli import evaluate_checkpoint, main
from tests.processes import log_lines
from training.metrics import summary

TINY = ("arch.H_cycles=1", "arch.L_cycles=1", "arch.halt_max_steps=1", "epochs=1", "log_predictions_every=0")


@pytest.fixture(scope="module")
def run(train: Callable[..., Path], rules_dataset: Path) -> Path:
    """A run on known rules that asks its six held-out queries under every control."""
    return train(*TINY, f"data_paths=[{rules_dataset}]", "max_eval_groups=6", "eval_controls=true")


def test_a_run_logs_prints_and_reports_its_controls(run: Path) -> None:
    (logged,) = [line for line in log_lines(run) if "eval/reading_gain" in line]
    assert logged["eval/controls/queries"] == 6
    names = [row.name for row in control_rows(logged)]
    assert names[:4] == ["right", "donor", "deranged", "none"]
    assert names[-3:] == ["chance_copy", "chance_color", "chance_rule"]
    assert [row.family for row in family_rows(logged)] == ["dihedral", "permutation"]
    printed = summary(logged, run)
    html = (run / "report.html").read_text()
    for row in control_rows(logged):
        assert re.search(rf"^  {row.name} +{row.meaning} +{100 * row.exact:.1f} %", printed, re.MULTILINE), row.name
        assert row.meaning.replace("'", "&#39;") in html
    for family in ("permutation", "dihedral"):
        assert re.search(rf"^  {family} +3 ", printed, re.MULTILINE)
        assert f'<td class="">{family}</td>' in html


def test_evaluate_gives_the_runs_controls_or_others_if_asked(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logged = log_lines(run)[-1]
    with caplog.at_level(logging.INFO):
        main(["--checkpoint", str(run), "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in found if "controls" in key} == {
        key: pytest.approx(logged[key], abs=1e-6) for key in logged if "controls" in key
    }
    assert "reading gain" in caplog.text
    fewer = evaluate_checkpoint(run, control_queries=2, device="cpu").metrics
    assert fewer["eval/controls/queries"] == 2
    for options in ({"controls": False}, {"shuffle": True}):
        assert not [key for key in evaluate_checkpoint(run, **options, device="cpu").metrics if "controls" in key]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shuffle", "--controls"], "--shuffle gives every query another puzzle's demonstrations"),
        (["--no-controls", "--control-queries", "3"], "--no-controls asks none"),
        (["--control-queries", "0"], "--control-queries 0: must be 1 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "nowhere", *arguments])
    assert message in capsys.readouterr().err


def test_a_trm_is_asked_with_another_puzzles_id_and_with_the_blank_one(train: Callable[..., Path]) -> None:
    folder = train(*TINY, "eval_controls=true", config_name="cfg_pretrain_trm_arc_agi_1")
    rows = {row.name: row for row in control_rows(log_lines(folder)[-1])}
    assert list(rows) == ["right", "donor", "none", "chance_copy", "chance_color"]
    assert "donor's answer" not in rows["donor"].note


def test_a_single_puzzle_has_no_donor_and_is_evaluated_all_the_same(untrained: Callable[..., Path]) -> None:
    found = evaluate_checkpoint(untrained(), max_groups=1, max_augmentations=1, controls=True, device="cpu").metrics
    assert found["eval/controls/donor_impossible"] == found["eval/controls/queries"] > 0
    assert "eval/reading_gain" not in found
    assert "do not allow it" not in control_table(found).splitlines()[1]


def test_the_gain_is_taken_over_the_queries_that_have_a_donor() -> None:
    right = {"right_exact_accuracy": 1.0, "right_accuracy": 1.0}
    donor = {"donor_exact_accuracy": 0.0, "donor_accuracy": 0.5}
    records = [right | donor, right, {"right_exact_accuracy": 0.0, "right_accuracy": 0.5} | donor]
    metrics = summarized(records, ["shift", "shift", None])
    assert metrics["eval/reading_gain"] == 0.5
    assert metrics["eval/controls/right_exact_accuracy"] == pytest.approx(2 / 3)
    assert metrics["eval/controls/donor_impossible"] == 1
    assert metrics["eval/controls/deranged_impossible"] == 3
    assert metrics["eval/controls/shift/queries"] == 2
    assert metrics["eval/controls/shift/right_exact_accuracy"] == 1


def test_there_is_no_table_without_controls() -> None:
    assert control_table({"eval/accuracy": 0.5}) == ""
