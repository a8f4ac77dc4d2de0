"""The dashboard shows what runs log, and nothing that none of them does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.wandb_workspace import SECTIONS, main, workspace

TRM = "cfg_pretrain_trm_arc_agi_1"
ETRM, ETRMTRM = "cfg_pretrain_etrm_arc_agi_1", "cfg_pretrain_etrmtrm_arc_agi_1"


def test_every_metric_of_the_dashboard_is_logged_by_a_run(train: Callable[..., Path], rules_dataset: Path) -> None:
    logged: set[str] = set()
    for name in (ETRM, ETRMTRM, TRM):
        known_rules = [f"data_paths=[{rules_dataset}]", "max_train_groups=4"] if name == ETRM else []
        asked = ("eval_controls=true", "eval_control_queries=2", "log_predictions_every=0", *known_rules)
        folder = train("epochs=2", "eval_interval=2", *asked, config_name=name)
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            logged |= json.loads(line).keys()
    shown = {metric for panels in SECTIONS.values() for metrics in panels.values() for metric in metrics}
    assert not shown - logged


def test_the_view_has_every_panel() -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is missing: pip install -e '.[workspace]'")
    view = workspace("some-project", "some-team")
    found = {section.name: {panel.title: tuple(panel.y) for panel in section.panels} for section in view.sections}
    drawn = {
        name: {title: tuple(getattr(metric, "name", metric) for metric in metrics) for title, metrics in panels.items()}
        for name, panels in found.items()
    }
    assert drawn == SECTIONS


def test_the_panels_are_written_as_json_without_server_or_library(tmp_path: Path) -> None:
    main(["--json", str(tmp_path / "panels.json")])
    assert json.loads((tmp_path / "panels.json").read_text()) == json.loads(json.dumps(SECTIONS))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--project", "p"], "--entity"), (["--json", "missing/panels.json"], "missing/panels.json")],
)
def test_bad_arguments_are_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
