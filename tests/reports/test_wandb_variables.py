"""wandb's own environment variables: each acts, or it is said that it does not."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.process import command_line
from jobs.records import Record, Records
from reports import wandb_process
from reports.wandb_mirror import claim_id
from reports.wandb_mirror import main as send
from reports.wandb_process import Mirror, wandb_mode
from reports.wandb_variables import notices
from run_jobs import main as run_jobs
from utils.processes import JOB_TOKEN_VARIABLE
from utils.run_folder import create_run_folder

VARIABLES = (
    *("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_RUN_GROUP", "WANDB_RESUME", "WANDB_CONSOLE"),
    *("WANDB_MODE", "WANDB_DISABLED", "WANDB_TAGS", JOB_TOKEN_VARIABLE),
)
CONFIG: dict[str, Any] = {
    "project_name": "p",
    "wandb_group": "series",
    "seed": 0,
    "arch": {"name": "recursive_reasoning.etrm@TRMWithEncoder", "encoder_type": "standard"},
}
# Notes what wandb is asked for, in the folder where it is to write.
FAKE_WANDB = """
import json, os
Settings = dict
class Run:
    def log(self, values, step): pass
    def finish(self): pass
def init(**options):
    with open(os.path.join(options["dir"], "asked.json"), "w") as file:
        json.dump(options, file, default=str)
    return Run()
"""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of them is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder, seen from the working directory."""
    return create_run_folder(Path("runs/p/run"), CONFIG)


def test_without_variables_nothing_is_said(folder: Path) -> None:
    assert not notices(folder, CONFIG)


def test_project_name_id_and_directory_act(
    folder: Path, tmp_path: Path, variables: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    values = {"PROJECT": "theirs", "NAME": "mine", "RUN_ID": "abc", "DIR": "elsewhere/wandb", "MODE": "offline"}
    for name, value in values.items():
        variables.setenv(f"WANDB_{name}", value)
    send([str(folder)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    asked = json.loads((tmp_path / "elsewhere/wandb/asked.json").read_text())
    found = [asked[key] for key in ("project", "name", "id", "dir", "group", "mode")]
    assert found == ["theirs", "mine", "abc", str(tmp_path / "elsewhere/wandb"), "series", "offline"]


def test_a_project_or_name_that_differs_from_the_run_folders_is_said(
    folder: Path, variables: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the run itself, which does not wait for wandb."""
    variables.setattr(wandb_process, "command", lambda folder, follow: ["true"])
    variables.setenv("WANDB_MODE", "offline")
    variables.setenv("WANDB_PROJECT", "theirs")
    variables.setenv("WANDB_NAME", "run")
    with caplog.at_level(logging.WARNING):
        Mirror(folder).ended()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["WANDB_PROJECT=theirs: this is what wandb shows instead of p; the run folder stays runs/p/run"]


def test_an_id_that_comes_too_late_is_said_to_be_ignored(folder: Path, variables: pytest.MonkeyPatch) -> None:
    known, file = claim_id(folder, wait=False)
    file.close()
    variables.setenv("WANDB_RUN_ID", "other")
    (said,) = notices(folder, CONFIG)
    assert said.startswith(f"WANDB_RUN_ID=other is ignored: wandb knows this run as {known}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_RESUME", "never", "WANDB_RESUME=never is ignored: "),
        ("WANDB_CONSOLE", "wrap", "WANDB_CONSOLE=wrap is ignored: "),
        ("WANDB_RUN_GROUP", "other", "WANDB_RUN_GROUP=other is ignored: the run has wandb_group=series"),
        ("WANDB_MODE", "of", "WANDB_MODE=of is none of online, run, offline, dryrun, disabled: offline is taken"),
    ],
)
def test_a_variable_without_effect_is_said_to_be_ignored(
    folder: Path, variables: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    variables.setenv(name, value)
    (found,) = notices(folder, CONFIG)
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "nonsense", "offline"),
        ("WANDB_MODE", "disabled", "disabled"),
        ("WANDB_DISABLED", "true", "disabled"),
    ],
)
def test_the_words_for_a_mode_act(variables: pytest.MonkeyPatch, name: str, value: str, mode: str) -> None:
    variables.setenv(name, value)
    assert wandb_mode() == mode


def test_an_id_for_a_whole_series_is_kept_from_its_jobs_and_said(
    tmp_path: Path, variables: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables.setenv("WANDB_RUN_ID", "one")
    variables.setenv("WANDB_TAGS", "all")
    (tmp_path / "jobs.txt").write_text("[ ] true\n")
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        run_jobs(["jobs.txt", "--cpu", "--dry-run"])
    assert any("WANDB_RUN_ID is kept from the jobs" in record.getMessage() for record in caplog.records)

    records = Records(tmp_path)
    code = f"env > {tmp_path / 'seen'}"
    job = Record("c", "n", ("bash", "-c", code), {"WANDB_NAME": "own"}, str(tmp_path), str(tmp_path / "job.log"))
    begun = records.begin("job", job)
    subprocess.run(command_line(tmp_path / "job", begun.token), check=True)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert "WANDB_RUN_ID" not in seen
    assert (seen["WANDB_NAME"], seen["WANDB_TAGS"]) == ("own", "all")
