"""Job files: commands, one a line, each with a mark that says where it stands.

    [ ] waiting    [-] running    [x] done    [!] failed

`---` alone on a line is a barrier: what is below it starts when everything above it is done. All other lines are
comments, and every byte that is not a mark stays as it is. Several runners and an editor may work on one file: whoever
changes a mark holds the lock, reads the file again and replaces it in one move.
"""

import fcntl
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.files import replacing, sha256_of_text

Mark = Literal[" ", "-", "x", "!"]
JOB = re.compile(rb"(?:\xef\xbb\xbf)?\[([ x!-])\][ \t]+(\S.*?)\s*", re.DOTALL)
NEARLY_A_JOB = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[.?\].*", re.DOTALL)
BARRIER = re.compile(rb"---+\s*")
REPLACE_TRIES = 100
SAVING_SECONDS = 1.0


class JobError(ValueError):
    """A job file, job or option that cannot be used; the message says where and what would be right."""


@dataclass(frozen=True)
class JobLine:
    """A job of the file.

    number: of its line, from 1.
    occurrence: how many lines above have the same command.
    section: how many barriers are above it.
    """

    number: int
    mark: Mark
    command: str
    occurrence: int
    section: int

    @property
    def key(self) -> str:
        """What names the job as long as its command stays the same, wherever its line goes."""
        digest = sha256_of_text(self.command)[:12]
        return f"{digest}-{self.occurrence}"


def _parse(data: bytes) -> Iterator[tuple[JobLine, int]]:
    """Each job with the position of its mark."""
    seen: Counter[bytes] = Counter()
    position = section = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if match := JOB.fullmatch(line):
            mark, command = match.group(1).decode(), match.group(2)
            text = command.decode(errors="surrogateescape")
            yield JobLine(number, mark, text, seen[command], section), position + match.start(1)  # pyright: ignore[reportArgumentType]
            seen[command] += 1
        section += bool(BARRIER.fullmatch(line))
        position += len(line) + 1


class JobFile:
    """A job file and the folder beside it, `.<name>.runs/`, which holds what is known of running jobs."""

    def __init__(self, path: Path):
        self.name, self.stem = path.name, path.stem
        self.path = path.resolve()
        self.records = self.path.with_name(f".{self.path.name}.runs")
        self._patience = 0.0

    def _data(self) -> bytes:
        """The contents; while an editor saves, a file that was there may be gone or empty for a moment."""
        end = time.monotonic() + self._patience
        while True:
            try:
                data = self.path.read_bytes()
            except OSError as error:
                if time.monotonic() > end:
                    raise JobError(f"{self.name}: cannot be read: {error.strerror}") from error
            else:
                if data or time.monotonic() > end:
                    self._patience = SAVING_SECONDS
                    return data
            time.sleep(0.02)

    def read(self) -> list[JobLine]:
        """The jobs, in the file's order.

        Raises:
            JobError: there is no such file.
        """
        return [job for job, _ in _parse(self._data())]

    def nearly_jobs(self) -> list[int]:
        """The lines that look like jobs and are none."""
        lines = enumerate(self._data().split(b"\n"), start=1)
        return [n for n, line in lines if NEARLY_A_JOB.fullmatch(line) and not JOB.fullmatch(line)]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runners from changing marks and records.

        Raises:
            JobError: nothing can be written beside the file.
        """
        try:
            self.records.mkdir(exist_ok=True)
            file = (self.records / "lock").open("a")
        except OSError as error:
            raise JobError(f"{self.records}: cannot be written: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def set_mark(self, job: JobLine, old: Mark, new: Mark) -> bool:
        """Change a job's mark, wherever its line is now; the caller has the lock.

        Returns:
            Whether there is still a line with this command that has the old mark.
        """
        for _ in range(REPLACE_TRIES):
            before = self._state()
            data = self._data()
            found = next((at for line, at in _parse(data) if (line.key, line.mark) == (job.key, old)), None)
            if found is None:
                if self._state() == before:
                    return False
            elif self._replace(data[:found] + new.encode() + data[found + 1 :], before):
                return True
        raise JobError(f"{self.name}: changes all the time; the mark of '{job.command}' could not be written")

    def _state(self) -> tuple[int, int, int] | None:
        """What differs when the file has been written; None where it is gone for the moment."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return None
        return now.st_mtime_ns, now.st_ino, now.st_size

    def _replace(self, data: bytes, before: tuple[int, int, int] | None) -> bool:
        """Put other contents into the file in one move, unless an editor has changed it meanwhile."""
        with replacing(self.path) as temporary:
            temporary.write_bytes(data)
            if is_current := before is not None and self._state() == before:
                shutil.copymode(self.path, temporary)
            else:
                temporary.unlink()
        return is_current
