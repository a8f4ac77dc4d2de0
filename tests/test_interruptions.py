"""Ctrl-C while a program imports what takes seconds, and a working directory that cannot be written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    *(["pretrain_etrm.py"], ["pretrain_etrmtrm.py"], ["pretrain_trm.py"], ["pretrain_trm_hybrid.py"]),
    *(["evaluate.py", "--checkpoint", "x"], ["solve.py", "--checkpoint", "x", "y"], ["run_jobs.py", "x"]),
    *(["-m", "reports", "x", "-o", "y.html"], ["-m", "checkpoints", "inspect", "x"]),
    ["-m", "dataset.build_arc_dataset", "--output-dir", "x", "--subsets", "training"],
)


def begun(arguments: Sequence[str]) -> subprocess.Popen[str]:
    first, rest = arguments[0], arguments[1:]
    words = [first, *rest] if first == "-m" else [str(ROOT / first), *rest]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)


def catches_sigterm(pid: int) -> bool:
    """Whether the program's own code has begun: Python itself handles SIGINT alone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def importing(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A program that has just begun to import."""
    with begun(request.param) as process:
        end = time.monotonic() + 60
        while not catches_sigterm(process.pid):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.002)
        yield process
        process.kill()


@pytest.mark.parametrize("importing", PROGRAMS, indirect=True, ids=lambda words: " ".join(words[:2]))
def test_ctrl_c_in_the_first_second_ends_a_program_with_one_line(importing: subprocess.Popen[str]) -> None:
    importing.send_signal(signal.SIGINT)
    _, error = importing.communicate(timeout=60)
    assert importing.returncode == 130
    assert error == "stopped: SIGINT while starting\n"


def test_a_run_that_cannot_be_written_below_the_working_directory_is_one_line(
    dataset_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file")
    words = [f"data_paths=[{dataset_folder}]", "--config-name", "cfg_demo", "global_batch_size=4", "max_train_groups=4"]
    with begun(["pretrain_etrm.py", *words, "max_eval_groups=1", "device=cpu"]) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.startswith("error: runs/etrm-arc/etrm-standard-seed0: cannot be written (")
    assert f"the working directory, {tmp_path}" in error
    assert error.count("\n") == 1
