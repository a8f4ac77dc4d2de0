"""How a job ended: by the `status.json` of its run where it wrote one, else by its exit status."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.command import Job
from jobs.records import Record
from utils.run_status import EXIT_STATUS, USER_ERROR, read_status

Outcome = Literal["done", "failed", "fault", "interrupted"]


@dataclass(frozen=True)
class Verdict:
    """`fault` is a failure that another try would repeat: config, data or checkpoint.

    step: what a training run has reached.
    """

    outcome: Outcome
    reason: str
    step: int = 0

    @property
    def word(self) -> str:
        return "failed" if self.outcome == "fault" else self.outcome


def status_of(job: Job) -> dict[str, Any]:
    """The `status.json` of a training run; empty for another command or where there is none."""
    if job.project is None:
        return {}
    return read_status(job.folder)


def judge(status: dict[str, Any], record: Record, ended: tuple[int, str] | None) -> Verdict:
    """The verdict on one start of a job.

    Args:
        ended: exit status and reason; None where the process is gone and left no word.
    """
    code, why = ended if ended is not None else (None, "")
    if not status or status.get("updated") == record.seen:
        return _by_exit_status(code, why)
    state, step = status.get("state"), int(status.get("step", 0))
    reason = str(status.get("reason") or "")
    if state == "done":
        return Verdict("done", "", step)
    if state in ("failed", "non-finite"):
        return Verdict("fault" if code == USER_ERROR else "failed", f"{state}: {reason}", step)
    if state == "running" and code == USER_ERROR:
        return Verdict("fault", f"exit status {code}", step)
    return Verdict("interrupted", reason or f"killed at step {step}", step)


def _by_exit_status(code: int | None, why: str) -> Verdict:
    if code is None:
        return Verdict("interrupted", "its process is gone")
    if code == 0:
        return Verdict("done", "")
    if code == EXIT_STATUS["preempted"]:
        return Verdict("interrupted", why or f"exit status {code}")
    said = f"signal {-code}" if code < 0 else f"exit status {code}"
    return Verdict("fault" if code == USER_ERROR else "failed", f"{said} {why}".strip())


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
