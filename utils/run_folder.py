"""The run folder: where it is, who may write it, and how one goes on."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

from utils.errors import ConfigError
from utils.files import write_file

log = logging.getLogger(__name__)
LOCK_FILE = "run.lock"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
OUTPUT_LOG = "job.log"  # what started the run may write its output there
LINES_BY_STEP = (METRICS_FILE, "act_steps.jsonl")
_locks: dict[Path, TextIO] = {}  # a process has a lock as long as the file is open


def create_run_folder(folder: Path, config: dict[str, Any]) -> Path:
    """An empty run folder with the run's `config.yaml`; an earlier run of that name is moved aside, never mixed in.

    `OUTPUT_LOG` stays where it is.
    """
    aside = None
    if folder.exists() and any(path.name not in (OUTPUT_LOG, LOCK_FILE) for path in folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        log.warning("%s existed and was moved to %s", folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    if aside is not None and (aside / OUTPUT_LOG).exists():
        (aside / OUTPUT_LOG).rename(folder / OUTPUT_LOG)
    write_config(folder, config)
    return folder


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """`config.yaml`, in one move."""
    write_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def lock_folder(folder: Path) -> None:
    """Keep other processes from writing a run folder until this one ends, however it ends.

    Raises:
        ConfigError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unlock_folder(folder)
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a record lock: worker processes do not inherit it
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ConfigError(f"{folder}: {owner} is still writing this run; stop it, or use another +run_name") from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): see to it that no second process writes it", folder, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _locks[folder.resolve()] = file


def unlock_folder(folder: Path) -> None:
    """Let others write the folder again, where this process has it."""
    file = _locks.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a log of JSON objects that have a step: as they stand there, and read.

    A line that cannot be read, such as the last one of a process that was killed, is left out and named.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
                content["step"] = int(content["step"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                log.warning("%s: line %d is torn and is left out", path, number)
                continue
            yield line.rstrip("\n"), content


def keep_lines(source: Path, last_step: int, target: Path | None = None) -> None:
    """Write the lines of a log of JSON objects up to a step into `target` (None: back into the file), in one move.

    A line that cannot be read is left out and named.
    """
    if source.exists():
        kept = [line + "\n" for line, content in read_lines(source) if content["step"] <= last_step]
        write_file(target or source, "".join(kept))


def continue_run_folder(folder: Path, config: dict[str, Any], step: int) -> None:
    """Put a run's logs back to where they were at a step."""
    for name in LINES_BY_STEP:
        keep_lines(folder / name, step)
    write_config(folder, config)


def copy_logs(source: Path, folder: Path, step: int) -> None:
    """The lines of another run's logs up to a step."""
    for name in LINES_BY_STEP:
        keep_lines(source / name, step, folder / name)


def last_values(folder: Path) -> dict[str, float]:
    """The last value of every metric that was logged."""
    values: dict[str, Any] = {}
    path = folder / METRICS_FILE
    for line in path.read_text().splitlines() if path.exists() else ():
        values |= json.loads(line)
    values.pop("step", None)
    return values
