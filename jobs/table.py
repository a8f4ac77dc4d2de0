"""What `run_jobs.py` shows without starting anything: the table of `--list`, the commands of `--dry-run`."""

import shlex
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from jobs.command import Job, Understood
from jobs.file import JobError, JobFile, JobLine
from jobs.records import Record, Records
from jobs.sheet import Options, Sheet
from jobs.verdict import status_of

WORDS = {" ": "waiting", "-": "running", "x": "done", "!": "failed"}
COLUMNS = ("line", "", "state", "job", "step", "train accuracy", "pass@2", "time left")
NONE = "–"


def job_table(file: JobFile, only: str | None) -> str:
    """One row a job: where it stands, by the file, its record and its run's status."""
    records, jobs = Records(file.records), Understood(file.stem)
    rows: list[Sequence[str]] = [COLUMNS]
    for line in file.read():
        try:
            job = jobs.job(line)
        except JobError as error:
            rows.append((str(line.number), f"[{line.mark}]", "not valid", str(error), *(NONE,) * 4))
            continue
        if job.matches(only):
            record = records.read(job.key)
            has_runner = record is not None and records.is_alive(record.owner)
            rows.append(_row(job, status_of(job), record, has_runner=has_runner))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(_padded, row, widths, range(len(row)))).rstrip() for row in rows) + "\n"


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if 1 <= column <= 3 else cell.rjust(width)


def _row(job: Job, status: dict[str, Any], record: Record | None, *, has_runner: bool) -> tuple[str, ...]:
    last = status.get("last") or {}
    return (
        str(job.line.number),
        f"[{job.line.mark}]",
        _state(job.line, status, has_runner),
        job.name,
        f"{status.get('step')}/{status.get('total_steps')}" if status else NONE,
        _percent(last.get("train/accuracy")),
        _percent(last.get("ARC/pass@2")),
        _time_left(status, record) if job.line.mark == "-" else NONE,
    )


def _state(line: JobLine, status: dict[str, Any], has_runner: bool) -> str:
    """The mark's word, and what the run itself says where that is something else."""
    word, said = WORDS[line.mark], status.get("state")
    if line.mark == "-" and not has_runner:
        return f"without runner ({said})" if said else "without runner"
    return word if said in (None, word) else f"{word} ({said})"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def _time_left(status: dict[str, Any], record: Record | None) -> str:
    """By the rate since the job's start."""
    if record is None or not status or status["updated"] == record.seen or status["step"] <= record.step:
        return NONE
    seconds = (status["updated"] - record.started) / (status["step"] - record.step)
    left = seconds * (status["total_steps"] - status["step"]) - (time.time() - status["updated"])
    return str(timedelta(seconds=round(max(0.0, left))))


def commands(sheet: Sheet) -> str:
    """The waiting jobs as they would be run, with the number of their devices."""
    return "".join(_command(job, sheet.options) for job in sheet.chosen() if job.line.mark == " ")


def _command(job: Job, options: Options) -> str:
    words = [*(f"{key}={value}" for key, value in job.environment.items()), *job.arguments]
    gpus = options.gpus_of(job)
    devices = f"{gpus} of devices {','.join(options.gpus)}" if gpus and options.gpus else f"{gpus or 'no'} devices"
    return f"{job.name}: {devices}, in {job.folder}\n    {shlex.join(words)}\n"
