"""What a run is doing, for people and schedulers: `status.json` in the run folder, and exit statuses.

`python -m utils.run_status RUN` prints the state and ends with its exit status. Under torchrun that is the way to
tell a preempted run from a failed one: torchrun itself ends with 1 for both.
"""

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from utils.files import read_json, write_json
from utils.path_kinds import kind_of

log = logging.getLogger(__name__)
State = Literal["running", "done", "preempted", "failed", "non-finite"]
STATUS_FILE = "status.json"
USER_ERROR = 2
# 75 is EX_TEMPFAIL of sysexits.h: the same command goes on.
EXIT_STATUS: dict[str, int] = {"done": 0, "failed": 1, "non-finite": 3, "preempted": 75, "running": 4}
SHOWN_METRICS = (
    "train/loss",
    "train/accuracy",
    "train/exact_accuracy",
    "eval/accuracy",
    "eval/exact_accuracy",
    "ARC/pass@1",
    "ARC/pass@2",
)


class RunStatus:
    """Writes the `status.json` of a run. Rank 0 does; another rank only when it fails."""

    def __init__(self, folder: Path, rank: int, total_steps: int):
        self.path, self.rank, self.total_steps = folder / STATUS_FILE, rank, total_steps

    def write(self, state: State, step: int, metrics: dict[str, float] | None = None, reason: str = "") -> None:
        """Replace the file in one move. A disk that is full does not stop a run here."""
        if self.rank and state != "failed":
            return
        status = {
            "state": state,
            "step": step,
            "total_steps": self.total_steps,
            "reason": reason,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": time.time(),
            "last": {key: metrics[key] for key in SHOWN_METRICS if key in metrics} if metrics else {},
        }
        try:
            write_json(self.path, status)
        except OSError as error:
            log.warning("%s could not be written: %s", self.path, error)

    def write_failure(self, step: int, reason: str, *, is_consequence: bool) -> None:
        """State `failed`. A consequence (the connection to another rank is lost) does not cover up a cause."""
        if is_consequence and read_status(self.path.parent).get("state") == "failed":
            return
        self.write("failed", step, reason=f"rank {self.rank}: {reason}" if self.rank else reason)


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a run folder; empty where there is none."""
    return read_json(folder / STATUS_FILE)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.run_status", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder: runs/<project_name>/<run_name>")
    folder = parser.parse_args(argv).run
    status = read_status(folder)
    state = str(status.get("state"))
    if state not in EXIT_STATUS:
        what = f"{folder / STATUS_FILE} is missing or not a run's status; {folder} is {kind_of(folder)}"
        parser.exit(USER_ERROR, f"error: {what}\n")
    reason = f": {status['reason']}" if status.get("reason") else ""
    sys.stdout.write(f"{state} at step {status.get('step')} of {status.get('total_steps')}{reason}\n")
    parser.exit(EXIT_STATUS[state])


if __name__ == "__main__":
    main()
