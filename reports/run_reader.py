"""A run folder read back: its config, its metrics, and the last evaluation's table by ACT step."""

import logging
import os
import sys
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from inference.control_table import PREFIX
from utils.path_kinds import kind_of
from utils.run_folder import METRICS_FILE, read_lines

log = logging.getLogger(__name__)

SMOOTHING_STEPS = 100
STEP_TABLE = "act_steps"


@dataclass(frozen=True)
class Run:
    """A run folder's config and metrics."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, float]]
    folder: Path

    @property
    def last_step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def logged(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged."""
        return [(int(row["step"]), row[key]) for row in self.rows if key in row]

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged, each the mean of the last 100 steps' values."""
        smoothed: list[tuple[int, float]] = []
        near: deque[tuple[int, float]] = deque()
        for step, value in self.logged(key):
            near.append((step, value))
            while near[0][0] <= step - SMOOTHING_STEPS:
                near.popleft()
            smoothed.append((step, sum(v for _, v in near) / len(near)))
        return smoothed

    def last(self, key: str) -> float | None:
        """The last smoothed value."""
        points = self.logged(key)
        near = [value for step, value in points if step > points[-1][0] - SMOOTHING_STEPS]
        return sum(near) / len(near) if near else None

    def final(self, key: str) -> float | None:
        """The last value as it was logged."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    @property
    def controls(self) -> dict[str, float]:
        """The figures of the last evaluation that asked with other demonstrations."""
        return next((row for row in reversed(self.rows) if f"{PREFIX}/queries" in row), {})

    def steps_to(self, key: str, level: float) -> int | None:
        """The first step at which the smoothed metric reaches the level."""
        return next((step for step, value in self.series(key) if value >= level), None)


def load_run(folder: Path, keys: Collection[str] | None = None, *, may_be_empty: bool = False) -> Run:
    """Read a run folder.

    Args:
        keys: the metrics to keep (None: all of them); those of controls are kept in any case.
        may_be_empty: a run that has logged nothing yet is one too.

    Raises:
        ValueError: it has no config or no metrics.
    """
    path = folder / METRICS_FILE
    for needed in (folder / "config.yaml", *(() if may_be_empty else (path,))):
        if not needed.is_file():
            raise ValueError(f"{folder}: not a run folder ({needed.name} is missing), but {kind_of(folder)}")
    config = _read_config(folder / "config.yaml")
    rows = [{**_numbers(row, keys), "step": row["step"]} for _, row in read_lines(path)] if path.exists() else []
    if not rows and not may_be_empty:
        raise ValueError(f"{path}: no metrics yet")
    return Run(folder.resolve().name, config, rows, folder)


def _read_config(path: Path) -> dict[str, Any]:
    """A run's config, with what names its model.

    Raises:
        ValueError: it is none.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    arch = config.get("arch") if isinstance(config, dict) else None
    if not isinstance(arch, dict) or not isinstance(arch.get("name"), str):
        raise ValueError(f"{path}: not the config of a run (it has no arch.name)")
    return config


def _numbers(row: dict[str, Any], keys: Collection[str] | None = None) -> dict[str, float]:
    """The finite numbers among a line's values."""
    wanted = row.items()
    if keys is not None:
        wanted = [(key, row[key]) for key in keys if key in row]
        if f"{PREFIX}/queries" in row:  # families have names of their own
            wanted += [(key, value) for key, value in row.items() if key.startswith(f"{PREFIX}/")]
    return {key: v for key, v in wanted if isinstance(v, int | float) and abs(v) <= sys.float_info.max}


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name take as much of their path in front as tells them apart.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [run.folder.resolve().parts for run in runs]
    for number, run in enumerate(runs):
        if parts[number] in parts[:number]:
            raise ValueError(f"{run.folder}: this run is given twice")
    named = []
    for run, own in zip(runs, parts, strict=True):
        same = [other for other in parts if other != own and other[-1] == own[-1]]
        length = 1
        while any(other[-length:] == own[-length:] for other in same):
            length += 1
        named.append(replace(run, name=os.sep.join(own[-length:])))
    return named


def last_step_table(folder: Path) -> tuple[int, list[dict[str, float]]]:
    """The training step and the rows (one for each ACT step) of the last evaluation; step 0 and none without one."""
    path = folder / f"{STEP_TABLE}.jsonl"
    last: tuple[int, list[dict[str, float]]] = 0, []
    for _, content in read_lines(path) if path.exists() else ():
        rows = content.get(STEP_TABLE)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            log.warning("%s: the line of step %s has no table and is left out", path, content["step"])
            continue
        last = content["step"], [_numbers(row) for row in rows]
    return last
