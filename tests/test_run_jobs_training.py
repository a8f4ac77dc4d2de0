"""A real training run under `run_jobs.py`, killed with its runner."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.job_races import ROOT, start_runner
from tests.processes import RUN, SMALL


@pytest.mark.torture
def test_a_training_run_that_was_killed_with_its_runner_resumes_and_ends(dataset_folder: Path, tmp_path: Path) -> None:
    """Its log goes on in its folder, and no second folder is made."""
    overrides = (*SMALL, f"data_paths=[{dataset_folder}]", "epochs=8", "eval_interval=8", "log_interval=1")
    command = ["python", str(ROOT / "pretrain_etrm.py"), *overrides, "checkpoint_interval=1"]
    (tmp_path / "jobs.txt").write_text(f"[ ] {shlex.join(command)}\n")
    runner = start_runner(tmp_path, "--no-report")
    status = wait_for_step(tmp_path / RUN, 3)
    runner.kill()
    runner.wait(60)
    os.kill(int(str(status["pid"])), signal.SIGKILL)
    assert start_runner(tmp_path).wait(120) == 0
    assert (tmp_path / "jobs.txt").read_text().startswith("[x] ")
    assert json.loads((tmp_path / RUN / "status.json").read_text())["state"] == "done"
    assert "resumed from" in (tmp_path / RUN / "job.log").read_text()
    assert sorted(path.name for path in (tmp_path / RUN).parent.iterdir()) == sorted([RUN.name, "report.html"])
    assert RUN.name in (tmp_path / RUN).parent.joinpath("report.html").read_text(encoding="utf-8")


def wait_for_step(run: Path, step: int) -> dict[str, object]:
    """The run's status once it is there, after a checkpoint."""
    for _ in range(6000):
        path = run / "status.json"
        status = json.loads(path.read_text()) if path.exists() else {"step": 0}
        if status["step"] >= step:
            return status
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")
