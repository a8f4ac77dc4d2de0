"""Which process may write a run folder: a lock file beside it, `.<run_name>.lock`.

The name of the lock does not move with what it guards, so it is held across looking for an earlier run, setting that
aside and making a new folder. The system frees it however its process ends.
"""

import fcntl
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from utils.errors import ConfigError

log = logging.getLogger(__name__)
OWNER_SECONDS = 1.0  # an owner writes its name right after it has taken the lock


@dataclass(frozen=True)
class Lock:
    """A process has it as long as the file is open.

    made: folders that were made for it, the innermost first.
    """

    path: Path
    file: TextIO
    made: tuple[Path, ...]


_held: dict[Path, Lock] = {}


def lock_file(folder: Path) -> Path:
    """The file whose lock guards a run folder."""
    return folder.with_name(f".{folder.name}.lock")


def lock_folder(folder: Path) -> None:
    """Keep other processes from writing a run folder, which need not be there yet, until this one ends or unlocks it.

    Raises:
        ConfigError: another process has it, or nothing can be written there.
    """
    if folder.resolve() in _held:
        return
    path = lock_file(folder)
    made = tuple(parent for parent in path.parents if not parent.exists())
    try:
        file = _opened(path)
        while not _has(file, folder) or not _is_at(file, path):  # its owner has removed it meanwhile
            file.close()
            file = _opened(path)
        _sign(file)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror or error}); runs are written below the working directory, "
            f"{Path.cwd()}: start where there is room and the permission to write"
        ) from error
    _held[folder.resolve()] = Lock(path.resolve(), file, made)


def _opened(path: Path) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # the folder was another's, and empty; a dangling link stays one
            if path.is_symlink():
                raise


def _has(file: TextIO, folder: Path) -> bool:
    """Take the lock of an open file.

    Raises:
        ConfigError: another process has it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a record lock: worker processes do not inherit it
    except (BlockingIOError, PermissionError) as error:
        owner = _owner(file)
        file.close()
        raise ConfigError(
            f"{folder}: {owner} is still writing this folder; stop it, or name another (+run_name, --output-dir)"
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): see to it that no second process writes it", folder, error)
    return True


def _owner(file: TextIO) -> str:
    """Who has the lock, as the owner has written it."""
    end = time.monotonic() + OWNER_SECONDS
    while time.monotonic() < end:
        time.sleep(0.02)
        file.seek(0)
        if name := file.read().strip():
            return name
    return "another process"


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that others find under its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: TextIO) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def unlock_folder(folder: Path) -> None:
    """Let others write the folder again, where this process has it; no lock file stays, nor a folder made for it."""
    lock = _held.pop(folder.resolve(), None)
    if lock is None:
        return
    with lock.file:
        lock.path.unlink(missing_ok=True)
        for parent in lock.made:
            try:
                parent.rmdir()
            except OSError:  # it has something in it
                break
