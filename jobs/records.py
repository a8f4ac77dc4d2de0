"""What is known of running jobs, in `.<job file>.runs/`: a folder for each job, a lock for each runner.

A runner lives as long as it holds the lock of its file, a job as long as its process holds `process.lock`; the system
frees both however they end. Whoever starts, takes up or ends a job holds the job file's lock meanwhile; an order to
stop, and the claim of a job whose process is gone, need only the job's own.
"""

import fcntl
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TextIO

from jobs.process import EXIT_FILE, LOCK_FILE, RECORD_FILE, STOP_FILE
from utils.files import read_json, write_file, write_json


@dataclass(frozen=True)
class Record:
    """One start of a job, and how often it has been started before.

    owner: the runner that watches it; empty: none, the job waits for its next start.
    token: names this start.
    devices: of this machine, by number; gpus: how many, wherever it runs.
    launch: what the executor knows it by.
    seen: `updated` of the run's status.json before the start.
    step: the furthest that the run's status.json had reached at any of its starts.
    """

    command: str
    name: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] | None = None
    directory: str = ""
    log: str = ""
    devices: tuple[str, ...] = ()
    gpus: int = 0
    executor: str = "local"
    launch: str = ""
    owner: str = ""
    owner_pid: int = 0
    host: str = ""
    token: str = ""
    started: float = 0.0
    seen: float = 0.0
    step: int = 0
    failures: int = 0
    interruptions: int = 0


def try_lock(path: Path) -> TextIO | None:
    """The open file, locked; None where another process has it."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class Records:
    """The records of one job file, as one runner sees them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runner = uuid.uuid4().hex[:12]
        self._lock: TextIO | None = None

    def register(self) -> None:
        """Let other runners see that this one lives; forget those that do not."""
        for path in self.folder.glob("runner-*.lock"):
            if (lock := try_lock(path)) is not None:
                path.unlink()
                lock.close()
        self._lock = try_lock(self._runner_file(self.runner))

    def unregister(self) -> None:
        """This runner is gone."""
        if self._lock is not None:
            self._runner_file(self.runner).unlink(missing_ok=True)
            self._lock.close()

    def _runner_file(self, runner: str) -> Path:
        return self.folder / f"runner-{runner}.lock"

    def is_alive(self, runner: str) -> bool:
        """Whether a runner holds its lock."""
        path = self._runner_file(runner)
        if runner == self.runner:
            return True
        if not runner or not path.exists():
            return False
        lock = try_lock(path)
        if lock is not None:
            lock.close()
        return lock is None

    def job_folder(self, key: str) -> Path:
        """Where the record and the process of a job leave word for each other."""
        return self.folder / key

    def read(self, key: str) -> Record | None:
        """The record of a job; None where there is none."""
        values = read_json(self.folder / key / RECORD_FILE)
        known = {field.name for field in fields(Record)}
        try:
            record = Record(**{name: value for name, value in values.items() if name in known})
        except TypeError:
            return None
        return replace(record, arguments=tuple(record.arguments), devices=tuple(record.devices))

    def write(self, key: str, record: Record) -> None:
        """Replace the record of a job."""
        self.job_folder(key).mkdir(exist_ok=True)
        write_json(self.folder / key / RECORD_FILE, asdict(record))

    def begin(self, key: str, record: Record) -> Record:
        """The record of a new start by this runner, written; what an earlier start left is gone."""
        started = replace(record, owner=self.runner, owner_pid=os.getpid(), host=this_host(), token=uuid.uuid4().hex)
        self.write(key, started)
        for name in (STOP_FILE, EXIT_FILE):
            (self.folder / key / name).unlink(missing_ok=True)
        return started

    def adopt(self, key: str, record: Record) -> Record:
        """The record with this runner as its owner, written."""
        adopted = replace(record, owner=self.runner, owner_pid=os.getpid(), host=this_host())
        self.write(key, adopted)
        return adopted

    def forget(self, key: str) -> None:
        """Remove what is known of a job."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether no process of the job lives; if so, none begins inside the block."""
        folder = self.job_folder(key)
        folder.mkdir(exist_ok=True)
        folder.chmod(folder.stat().st_mode)  # NFS looks again for files that it believes are not there
        lock = try_lock(self.folder / key / LOCK_FILE)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.close()

    def exit_status(self, key: str, token: str) -> tuple[int, str] | None:
        """How a start ended, with its reason; None as long as it has not, or where nobody could say."""
        word = read_json(self.folder / key / EXIT_FILE)
        return (int(word["status"]), str(word["reason"])) if word.get("token") == token else None

    def ask_to_stop(self, key: str, order: str) -> None:
        """TERM or KILL, for the job's process to read."""
        path = self.folder / key / STOP_FILE
        write_file(path, order)


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()
