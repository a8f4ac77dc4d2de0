"""The process that a job runs under: it outlives the runner that started it, and leaves word of how the job ended.

`python -m jobs.process FOLDER TOKEN [--with-parent]` runs what `record.json` in FOLDER says, once for a token:

    process.lock   held as long as this process or the command lives: whoever holds it decides what happens to the job
    stop           written by a runner: TERM or KILL
    exit.json      how the command ended, in one move

It imports little, which is quick; psutil only when what a job has started is killed.
"""

import argparse
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from utils.files import read_json, write_json
from utils.processes import JOB_TOKEN_VARIABLE, module_command
from utils.run_status import EXIT_STATUS

RECORD_FILE, LOCK_FILE, STOP_FILE, EXIT_FILE = "record.json", "process.lock", "stop", "exit.json"
POLL_SECONDS = 0.1
ORPHAN_GRACE_SECONDS = 30.0
NOT_STARTED = 127
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME")  # with one id in wandb, all runs would be one
# By the signal, as its exit status, or 1, as torchrun ends for any rank that a signal has ended.
ENDED_WHEN_ASKED = frozenset((-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT, 1))
PR_SET_PDEATHSIG = 1


def read_stop(folder: Path) -> str:
    """What a runner has asked of the job: TERM, KILL, or nothing."""
    try:
        return (folder / STOP_FILE).read_text().strip()
    except OSError:
        return ""


def kill_remains(token: str, number: int = signal.SIGKILL) -> int:
    """A signal to every process on this host that a job has started, also in sessions of their own; how many."""
    import psutil

    killed = 0
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(JOB_TOKEN_VARIABLE) == token:
                process.send_signal(number)
                killed += 1
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return killed


class Supervisor:
    """Runs one job to its end.

    parent: the process without which the job is to end; None: none.
    """

    def __init__(self, folder: Path, token: str, parent: int | None):
        self.folder, self.token, self.parent = folder, token, parent
        self.obeyed = ""
        self.was_asked = False
        self.kill_at: float | None = None

    def run(self) -> None:
        """Wait for whoever has the job's lock, and run the job if it is still this process's to run."""
        with (self.folder / LOCK_FILE).open("a") as lock:
            while not self._has_lock(lock):
                if read_stop(self.folder) or self._is_orphan():
                    return
                time.sleep(POLL_SECONDS)
            record = read_json(self.folder / RECORD_FILE)
            has_ended = read_json(self.folder / EXIT_FILE).get("token") == self.token
            if record.get("token") == self.token and not has_ended:
                self._run_command(record, lock.fileno())

    @staticmethod
    def _has_lock(lock: Any) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _is_orphan(self) -> bool:
        return self.parent is not None and os.getppid() != self.parent

    def _run_command(self, record: dict[str, Any], lock: int) -> None:
        if read_stop(self.folder):
            return self._leave_word(EXIT_STATUS["preempted"], "stopped before it began")
        log = Path(record["log"])
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            opened = log.open("ab", buffering=0)
        except OSError as error:
            return self._leave_word(NOT_STARTED, f"its log cannot be written: {error}")
        with opened as output:
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {record['command']}\n".encode(errors="replace"))
            try:
                process = subprocess.Popen(
                    record["arguments"],
                    cwd=record["directory"],
                    env=_shared_environment() | record["environment"] | {JOB_TOKEN_VARIABLE: self.token},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,
                    pass_fds=(lock,),
                    preexec_fn=None if self.parent is None else _end_with_parent,
                )
            except OSError as error:
                output.write(f"error: {error}\n".encode())
                return self._leave_word(NOT_STARTED, str(error))
        self._forward_signals(process)
        while (status := self._wait(process)) is None:
            self._obey(process)
        if status:
            kill_remains(self.token)
        if self._is_orphan():  # who lost its parent is not done, but interrupted
            return None
        if self.was_asked and status in ENDED_WHEN_ASKED:
            self._leave_word(EXIT_STATUS["preempted"], f"stopped before it saved anything (exit status {status})")
        else:
            self._leave_word(status)
        return None

    @staticmethod
    def _wait(process: subprocess.Popen[bytes]) -> int | None:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def _obey(self, process: subprocess.Popen[bytes]) -> None:
        order = read_stop(self.folder)
        if not order and self._is_orphan():
            self.kill_at = self.kill_at or time.monotonic() + ORPHAN_GRACE_SECONDS
            order = "KILL" if time.monotonic() > self.kill_at else "TERM"
        if order == self.obeyed or order not in ("TERM", "KILL"):
            return
        self.obeyed, self.was_asked = order, True
        if order == "KILL":
            kill_remains(self.token)
        send(process, signal.Signals[f"SIG{order}"])

    def _forward_signals(self, process: subprocess.Popen[bytes]) -> None:
        def forward(number: int, frame: FrameType | None) -> None:
            self.was_asked = True
            send(process, signal.SIGTERM)

        signal.signal(signal.SIGTERM, forward)
        signal.signal(signal.SIGINT, forward)

    def _leave_word(self, status: int, reason: str = "") -> None:
        write_json(self.folder / EXIT_FILE, {"token": self.token, "status": status, "reason": reason})


def _shared_environment() -> dict[str, str]:
    """The variables that all jobs may have alike."""
    return {name: value for name, value in os.environ.items() if name not in OF_ONE_RUN}


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the process that started this one is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A signal to a command and all of its process group."""
    with suppress(ProcessLookupError):  # it has just ended
        if process.poll() is None:
            os.killpg(process.pid, number)


def command_line(folder: Path, token: str, *options: str) -> list[str]:
    """What starts this process."""
    return module_command("jobs.process", str(folder), token, *options)


def run_under(folder: Path, token: str) -> None:
    """Run a job and wait for it, as the task of a cluster: the job ends with this process, or when that is asked to."""
    process = subprocess.Popen(command_line(folder, token, "--with-parent"), start_new_session=True)
    process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("token")
    parser.add_argument("--with-parent", action="store_true", help="end the job when the parent process ends")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends them to all processes; the command inherits this
        signal.signal(number, signal.SIG_IGN)
    Supervisor(arguments.folder, arguments.token, os.getppid() if arguments.with_parent else None).run()


if __name__ == "__main__":
    main()
