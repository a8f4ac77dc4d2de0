"""The run folder: how one begins, and how one goes on."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from utils.files import write_file

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
OUTPUT_LOG = "job.log"  # what started the run may write its output there
LINES_BY_STEP = (METRICS_FILE, "act_steps.jsonl")


def create_run_folder(folder: Path, config: dict[str, Any]) -> Path:
    """An empty run folder with the run's `config.yaml`; an earlier run of that name is moved aside, never mixed in.

    `OUTPUT_LOG` stays where it is.
    """
    aside = None
    if folder.exists() and any(path.name != OUTPUT_LOG for path in folder.iterdir()):
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


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_config` has written."""
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


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
