"""A run's logs. `metrics.jsonl` is the source of truth; wandb follows it in a process of its own."""

import json
import math
import os
from pathlib import Path

from utils.run_folder import METRICS_FILE
from utils.wandb_process import Mirror


class RunLogger:
    """Writes metrics of rank 0; on other ranks (`folder` None) it does nothing."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.file = None if folder is None else (folder / METRICS_FILE).open("a", encoding="utf-8")
        self.mirror = None if folder is None else Mirror(folder)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line; values that are not finite are left out."""
        if self.file is None:
            return
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        if self.mirror is not None:
            self.mirror.check()

    def log_rows(self, step: int, name: str, rows: list[dict[str, float]]) -> None:
        """Add a line with a table to `<name>.jsonl`."""
        if self.folder is not None:
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, name: rows}) + "\n")

    def to_disk(self) -> None:
        """Wait until the lines would survive a power failure, so that no checkpoint is ahead of its log."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def log_page(self, name: str, html: str) -> None:
        """Put a page into the run folder."""
        if self.folder is not None:
            (self.folder / name).write_text(html, encoding="utf-8")

    def close(self) -> None:
        """Flush and end."""
        if self.file is not None:
            self.file.close()
        if self.mirror is not None:
            self.mirror.close()
