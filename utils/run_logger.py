"""A run's logs. `metrics.jsonl` is the source of truth; wandb mirrors it and can never stop a run."""

import json
import logging
import math
import netrc
import os
import uuid
from pathlib import Path
from typing import Any

from config.schema import TrainConfig, dump_config
from utils.checkpoint import write_folder_file
from utils.run_folder import METRICS_FILE

log = logging.getLogger(__name__)
WANDB_ID_FILE = "wandb_id"


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb_id(folder: Path) -> str:
    """The id under which wandb knows the run, for as long as its folder lives."""
    path = folder / WANDB_ID_FILE
    if not path.exists():
        write_folder_file(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


class RunLogger:
    """Writes metrics of rank 0; on other ranks (`folder` None) it does nothing."""

    def __init__(self, folder: Path | None, config: TrainConfig):
        self.folder = folder
        self.file = None if folder is None else (folder / METRICS_FILE).open("a", encoding="utf-8")
        self.wandb_run = None if folder is None else self._start_wandb(folder, config)

    @staticmethod
    def _start_wandb(folder: Path, config: TrainConfig) -> Any:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "disabled":
            return None
        try:
            import wandb

            return wandb.init(
                project=config.project_name,
                name=folder.name,
                id=_wandb_id(folder),
                resume="allow",
                dir=folder,
                config=dump_config(config),
                mode=mode,  # pyright: ignore[reportArgumentType]
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # noqa: BLE001 - whatever happens inside wandb, the run goes on
            log.warning("wandb could not start (%s): metrics go to metrics.jsonl only", error)
            return None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line; values that are not finite are left out."""
        if self.file is None:
            return
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        self._to_wandb(lambda run: run.log(finite, step=step))

    def log_rows(self, step: int, name: str, rows: list[dict[str, float]]) -> None:
        """Add a line with a table to `<name>.jsonl`."""
        if self.folder is not None:
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, name: rows}) + "\n")

    def to_disk(self) -> None:
        """Wait until the lines would survive a power failure, so that no checkpoint is ahead of its log."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def log_page(self, step: int, name: str, html: str) -> None:
        """Put a page into the run folder and, as a panel, into wandb."""
        if self.folder is None:
            return
        (self.folder / name).write_text(html, encoding="utf-8")

        def send(run: Any) -> None:
            import wandb

            run.log({name.removesuffix(".html"): wandb.Html(html)}, step=step)

        self._to_wandb(send)

    def _to_wandb(self, send: Any) -> None:
        if self.wandb_run is None:
            return
        try:
            send(self.wandb_run)
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("wandb failed (%s): metrics go to metrics.jsonl only from here on", error)
            self.wandb_run = None

    def close(self) -> None:
        """Flush and end."""
        if self.file is not None:
            self.file.close()
        self._to_wandb(lambda run: run.finish())
        self.wandb_run = None
