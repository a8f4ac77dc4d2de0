"""The process above a job: at most one start of a job runs, and how it ended can be read by whoever comes later."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.process import EXIT_FILE, command_line
from jobs.records import Record, Records
from utils.files import read_json
from utils.signals import StopCount


def begun(tmp_path: Path, *arguments: str) -> tuple[Records, Record]:
    """A start of a job that the next process is to run."""
    (tmp_path / "records").mkdir(exist_ok=True)
    records = Records(tmp_path / "records")
    fresh = Record("c", "n", arguments, environment={}, directory=str(tmp_path), log=str(tmp_path / "job.log"))
    return records, records.begin("job", fresh)


def process(tmp_path: Path, token: str) -> subprocess.Popen[Any]:
    return subprocess.Popen(command_line(tmp_path / "records/job", token))


def is_free(records: Records) -> bool:
    with records.claimed("job") as no_process_lives:
        return no_process_lives


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_the_status_of_a_job_is_left_in_its_folder(tmp_path: Path, command: str, status: int) -> None:
    records, record = begun(tmp_path, "bash", "-c", f"echo words; {command}")
    assert process(tmp_path, record.token).wait(60) == 0
    assert records.exit_status("job", record.token) == (status, "")
    assert (tmp_path / "job.log").read_text().splitlines()[1:] == ["words"]


def test_a_program_that_is_gone_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    records, record = begun(tmp_path, "/nowhere/python")
    process(tmp_path, record.token).wait(60)
    status, reason = records.exit_status("job", record.token) or (0, "")
    assert status == 127
    assert "/nowhere/python" in reason


def test_a_process_whose_start_was_given_up_runs_nothing(tmp_path: Path) -> None:
    records, late = begun(tmp_path, "touch", "ran")
    records, record = begun(tmp_path, "touch", "ran")
    process(tmp_path, late.token).wait(60)
    assert not (tmp_path / "ran").exists()
    assert records.exit_status("job", record.token) is None


def test_a_second_process_of_one_start_waits_for_the_first_and_runs_nothing(tmp_path: Path) -> None:
    _, record = begun(tmp_path, "bash", "-c", "echo start >> lines; sleep 0.5; echo end >> lines")
    both = [process(tmp_path, record.token) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert (tmp_path / "lines").read_text().split() == ["start", "end"]


def test_a_killed_process_leaves_its_command_the_lock(tmp_path: Path) -> None:
    """Nobody may start the job again before the command has ended, too."""
    records, record = begun(
        tmp_path, "bash", "-c", "touch begun; until test -e release; do sleep 0.05; done; touch end"
    )
    first = process(tmp_path, record.token)
    wait_for((tmp_path / "begun").exists)
    first.kill()
    first.wait(60)
    assert not is_free(records)
    (tmp_path / "release").touch()
    wait_for(lambda: is_free(records))
    assert (tmp_path / "end").exists()
    assert records.exit_status("job", record.token) is None


def test_a_job_that_is_stopped_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    records, record = begun(tmp_path, "touch", "ran")
    records.ask_to_stop("job", "TERM")
    process(tmp_path, record.token).wait(60)
    assert not (tmp_path / "ran").exists()
    assert records.exit_status("job", record.token) == (75, "stopped before it began")


def test_signals_before_a_time_limit_end_neither_the_process_nor_its_command(tmp_path: Path) -> None:
    """Slurm sends them to all processes of a step; the job is asked to save by its `stop` file."""
    script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nopen('begun', 'w')\n"
    records, record = begun(tmp_path, sys.executable, "-c", f"{script}while True: time.sleep(0.05)")
    first = process(tmp_path, record.token)
    wait_for((tmp_path / "begun").exists)
    (command,) = psutil.Process(first.pid).children()
    for pid in (first.pid, command.pid):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGUSR2)
    records.ask_to_stop("job", "TERM")
    assert first.wait(60) == 0
    assert records.exit_status("job", record.token) == (75, "")


def test_of_signals_in_quick_succession_one_a_second_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's copy does not count; someone who presses Ctrl-C again and again does."""
    count = StopCount()
    with count.listening():
        for now, number in ((100.0, 1), (100.4, 1), (100.8, 1), (101.2, 2), (101.6, 2)):
            monkeypatch.setattr("utils.signals.time.monotonic", lambda now=now: now)
            signal.raise_signal(signal.SIGINT)
            monkeypatch.undo()
            assert count.count == number


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    records, record = begun(tmp_path, "true")
    assert records.read("job") == record
    (tmp_path / "records/job" / EXIT_FILE).write_text(json.dumps([1]))
    assert read_json(tmp_path / "records/job" / EXIT_FILE) == {}
    assert records.exit_status("job", record.token) is None
