"""A run's logs. `metrics.jsonl` is the source of truth; observers follow what is written in the run folder."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from utils.files import naming
from utils.run_folder import METRICS_FILE


class RunObserver(Protocol):
    """Told, on rank 0, that something has been written in a run folder; what it needs to know, it reads there."""

    def logged(self) -> None:
        """A line has been added to `metrics.jsonl`."""
        ...

    def evaluated(self, *, is_last: bool) -> None:
        """An evaluation's files have been written; with `is_last` the run ends soon."""
        ...

    def ended(self) -> None:
        """The run has ended, however it did; `status.json` says how."""
        ...


ObserverFactory = Callable[[Path], RunObserver]


class RunLogger:
    """Writes metrics of rank 0; on other ranks (`folder` None) it does nothing."""

    def __init__(self, folder: Path | None, observers: Sequence[ObserverFactory] = ()):
        self.folder = folder
        self.file = None if folder is None else (folder / METRICS_FILE).open("a", encoding="utf-8")
        self.observers = [] if folder is None else [observe(folder) for observe in observers]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line; values that are not finite are left out."""
        if self.file is None:
            return
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        with naming(Path(self.file.name)):
            self.file.write(json.dumps({"step": step, **finite}) + "\n")
            self.file.flush()
        for observer in self.observers:
            observer.logged()

    def log_rows(self, step: int, name: str, rows: list[dict[str, float]]) -> None:
        """Add a line with a table to `<name>.jsonl`."""
        if self.folder is not None:
            path = self.folder / f"{name}.jsonl"
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, name: rows}) + "\n")

    def evaluated(self, *, is_last: bool) -> None:
        """Tell the observers that the files of an evaluation are there."""
        for observer in self.observers:
            observer.evaluated(is_last=is_last)

    def to_disk(self) -> None:
        """Wait until the lines would survive a power failure, so that no checkpoint is ahead of its log."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush, and tell the observers that the run has ended."""
        if self.file is not None:
            self.file.close()
        for observer in self.observers:
            observer.ended()
